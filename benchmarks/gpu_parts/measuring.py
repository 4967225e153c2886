"""Seconds and memory on a GPU, or on a CPU to try the benchmark; needs PyTorch alone."""

import gc
import importlib.metadata
import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


PACKAGES = "torch triton transformers trl accelerate deepspeed peft flash-attn kernels liger-kernel puma_trl".split()
DRIVER = Path("/proc/driver/nvidia/version")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Returns the card, its memory in GB, the driver and the versions of what is installed."""
    facts: dict[str, Any] = {"card": "a CPU", "memory_gb": None, "driver": None, "cuda": torch.version.cuda}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"card": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1)}
        facts["capability"] = f"{properties.major}.{properties.minor}"
    if DRIVER.is_file():
        found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", DRIVER.read_text(errors="replace"))
        facts["driver"] = found and found[0]
    facts["python"] = platform.python_version()
    for name in PACKAGES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = None
    return facts


def wait_for(device: torch.device) -> None:
    """Waits until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(function: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Returns the median time of a function that was called before."""
    seconds = []
    for _ in range(repeats):
        wait_for(device)
        start = time.perf_counter()
        function()
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def start_peak(device: torch.device) -> int:
    """Forgets the peak of memory so far, and returns the bytes in use."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def peak(device: torch.device) -> int:
    """Returns the most bytes in use since [`start_peak`]."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def first_line(error: Exception) -> str:
    """Returns the first line of an error, which becomes a cell of a table."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].replace("|", "/")[:160]
