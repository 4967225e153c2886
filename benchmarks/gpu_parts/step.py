"""
A stage-2 step of a real model with random weights: padded and padding-free, by attention and micro-batch, beside TRL's
SFT step on the student side alone; and its memory beside the plan.

Frozen weights are bf16, what trains is fp32, layers are checkpointed. Tokens are those of both sides that are read,
padding left out. The share of the card's peak (MFU) is what `Costs` of puma_trl/train/throughput.py counts, divided by
the maker's dense bf16 peak.
"""

import copy
import gc
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from common import PARTS
from trl import ModelConfig

from puma_trl.start.memory import Setting, count, empty_model, plan

from .measuring import first_line, peak, start_peak
from .model import SIZES, TINY_SIZES, make_model, make_processor, make_rows, make_trainer, read_config


# name → settings, attention
VARIANTS = {
    "padding-free, varlen": ({"padding_free": True}, "varlen"),
    "padded, sdpa": ({"padding_free": False}, "sdpa"),
    "padding-free, FlashAttention": ({"padding_free": True}, "flash_attention_2"),
    "padded, FlashAttention": ({"padding_free": False}, "flash_attention_2"),
    "TRL's SFT, padded, sdpa": ({"padding_free": False, "use_kl": False}, "sdpa"),
}
MODELS, BATCHES, COMPARED_AT = ["Qwen2-VL-2B"], (1, 2, 4, 8, 16), 8
WARM_UP, STEPS = 2, 4


def plan_gb(config: Any, largest: dict[str, int], rows: int, settings: dict[str, Any], on_gpu: bool) -> dict:
    """Returns what the memory plan says of a run whose largest micro-batch was so large, in GB by part."""
    setting = Setting(
        width=2 if on_gpu else 4,
        processes=1,
        zero=0,
        pairs=settings.get("use_kl", True),
        rows=rows,
        length=largest["tokens"] / rows,
        patches=largest["patches"] / rows,
        answers=largest["answers"] / rows,
        checkpointing=True,
        optimizer=8,
        padding_free=settings["padding_free"],
    )
    counts = count(empty_model(config), ModelConfig(), PARTS)
    # what trains is fp32 and cast by autocast, as adapters are
    parts = asdict(plan(config, counts, setting, is_adapted=True))
    return {"total": sum(parts.values()) / 1e9} | {name: size / 1e9 for name, size in parts.items()}


def watch_batches(trainer: Any) -> dict[str, int]:
    """Returns a dictionary that fills with the sizes of the largest micro-batch of the student."""
    largest = {"tokens": 0, "patches": 0, "answers": 0}
    compute_loss = trainer.compute_loss

    def watched(model, inputs, *args, **kwargs):
        sizes = {
            "tokens": inputs["input_ids"].numel(),
            "patches": len(inputs["pixel_values"]) if "pixel_values" in inputs else 0,
            "answers": int((inputs["labels"] != -100).sum()),
        }
        largest.update({name: max(largest[name], size) for name, size in sizes.items()})
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = watched
    return largest


def measure(name: str, variant: str, batch: int, device: torch.device, tiny: bool) -> dict[str, Any]:
    """Returns speed and memory of a variant, or why there is none."""
    settings, attention = VARIANTS[variant]
    on_gpu = device.type == "cuda"
    steps = 2 if tiny else WARM_UP + STEPS
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            before = start_peak(device)
            family = "qwen2_vl" if tiny else read_config(name).model_type
            processor = make_processor(family, (TINY_SIZES if tiny else SIZES)["side"][1])
            dtype = torch.bfloat16 if on_gpu else torch.float32
            model = make_model(None if tiny else name, processor, device, dtype, attention)
            config = copy.deepcopy(model.config)  # the trainer changes what it says of attention
            rows = make_rows(batch * steps, folder, tiny)
            trainer = make_trainer(
                model,
                processor,
                rows,
                folder,
                per_device_train_batch_size=batch,
                max_steps=steps,
                dataloader_num_workers=4 if on_gpu else 0,
                **settings,
            )
            largest = watch_batches(trainer)
            start_peak(device)
            trainer.train()
            used = (peak(device) - before) / 1e9
            plans = plan_gb(config, largest, batch, settings, on_gpu)
            logs = [entry for entry in trainer.state.log_history if "perf/tokens_per_second" in entry]
            found = {key: statistics.median(entry[key] for entry in logs[-STEPS:]) for key in _perf(logs[-1])}
            return found | {"peak_gb": used, "plan_gb": plans["total"], "plan": plans, "largest": largest}
        except Exception as error:  # out of memory, or no such attention here: the others are still measured
            return {"failed": first_line(error)}
        finally:
            trainer = model = None
            gc.collect()


def _perf(entry: dict[str, float]) -> list[str]:
    return [name for name in entry if name.startswith("perf/")]


def run(
    device: torch.device, tiny: bool, has_time: Callable[[], bool], models: list[str] = MODELS
) -> list[dict[str, Any]]:
    """
    Measures all variants that can be had.

    Args:
        device (`torch.device`):
            Where.
        tiny (`bool`):
            Whether it is only to be tried, with the mini model.
        has_time (`Callable`):
            Says whether to go on.
        models (`list[str]`):
            Files of benchmarks/configs.
    """
    has_flash = device.type == "cuda" and (find_spec("flash_attn") or find_spec("kernels")) is not None
    found = []
    for name in models:
        compared = [(variant, 2 if tiny else COMPARED_AT) for variant in VARIANTS]
        sizes = [] if tiny else [(next(iter(VARIANTS)), batch) for batch in BATCHES if batch != COMPARED_AT]
        for variant, batch in [*compared, *sizes]:
            if ("Flash" not in variant or has_flash) and has_time():
                row = {"model": "mini" if tiny else name, "step": variant, "rows": batch}
                found.append(row | measure(name, variant, batch, device, tiny))
    return found
