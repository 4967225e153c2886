"""What the benchmarks share: how they start other processes, and how their tables and verdicts look."""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "benchmarks" / "configs"  # of real models
PROBE = ROOT / "tests" / "distributed" / "probe.py"
# What trains in stage 2, and words of made-up problems
PARTS = ["aligner", "vision_tower_low", "vision_tower_high"]
WORDS = "the angle of a triangle and its side with circle line point area find sum is so we get degrees".split()
# fp32 on a CPU; nothing is kept or reported
ON_CPU = {
    "bf16": False,
    "dtype": "float32",
    "lambda_kl": 0.5,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
}


def environment() -> dict[str, str]:
    """Returns the environment of a process that runs this copy of the package on one thread."""
    changes = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    # DeepSpeed looks for `ninja` there
    changes["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | changes


def memory_of_imports() -> int:
    """Returns the KiB that Python and the libraries of a run take."""
    code = "import resource, puma_trl.run; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    return int(run([sys.executable, "-c", code], "imports", env=environment()).stdout)


def run(command: list[str], name: str, **kwargs: Any) -> subprocess.CompletedProcess:
    """
    Runs a command and captures what it prints.

    Raises:
        RuntimeError: if it fails, with the name of the run.
    """
    result = subprocess.run(command, capture_output=True, text=True, **kwargs)
    if result.returncode != 0:
        raise RuntimeError(f"{name} failed:\n{result.stderr[-3000:]}")
    return result


def launch(
    engine: str,
    facts: Path,
    options: dict[str, Any],
    flags: Iterable[str] = (),
    variables: dict[str, str] | None = None,
) -> list[dict]:
    """
    Runs the training script in two processes on a CPU, through the probe of the tests.

    Args:
        engine (`str`):
            Name of a file of `accelerate_configs`.
        facts (`Path`):
            Start of the names of the files that the probe writes.
        options (`dict[str, Any]`):
            Options of the training script, beside `ON_CPU`.
        flags (`Iterable[str]`, *optional*):
            Options of the probe.
        variables (`dict[str, str]`, *optional*):
            Further variables of the environment.

    Returns:
        What the probe wrote in either process.

    Raises:
        RuntimeError: if the run fails, or was not one of two processes.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ROOT / "accelerate_configs" / f"{engine}.yaml"), "--num_processes", "2"]
    command += [str(PROBE), str(facts), *flags]
    command += [str(piece) for key, value in (ON_CPU | options).items() for piece in (f"--{key}", value)]
    run(command, f"{engine} {options}", env=environment() | (variables or {}))
    ranks = [json.loads(path.read_text()) for path in sorted(facts.parent.glob(f"{facts.name}.[01]"))]
    if [rank["world_size"] for rank in ranks] != [2, 2]:
        raise RuntimeError(f"{engine} {options} did not run in two processes.")
    return ranks


def read_arguments(
    parser: argparse.ArgumentParser, argv: list[str] | None = None, **least: float
) -> argparse.Namespace:
    """
    Reads the command line and refuses numbers that measure nothing.

    Args:
        parser (`argparse.ArgumentParser`):
            The options. Each number must be above 0 and finite.
        argv (`list[str]`, *optional*):
            Defaults to the command line.
        least (`float`):
            Option → the least number that it takes instead.
    """
    args = parser.parse_args(argv)
    for name, value in vars(args).items():
        for each in value if isinstance(value, list) else [value]:
            if not isinstance(each, int | float) or isinstance(each, bool):
                continue
            if not (least[name] <= each if name in least else 0 < each) or each == math.inf:
                bound = f"at least {least[name]:g}" if name in least else "above 0"
                parser.error(f"--{name} is {each:g}, but must be {bound} and finite")
    return args


def table_head(*names: str) -> str:
    """Returns the two lines that begin a table."""
    return f"{table_row(names)}\n{'|---' * len(names)}|"


def table_row(cells: Iterable[str]) -> str:
    """Returns a line of a table."""
    return f"| {' | '.join(cells)} |"


def verdict(
    name: str,
    value: float,
    sign: str,
    goal: float,
    form: str = "{:.3g}",
    goal_form: str | None = None,
    holds: bool = True,
) -> str:
    """
    Returns the line that says whether a goal is reached.

    Args:
        name (`str`):
            What was measured.
        value (`float`):
            The measurement.
        sign (`str`):
            `"≤"` or `"≥"`: on which side of the goal the measurement must be.
        goal (`float`):
            The goal, which may just be met.
        form (`str`, *optional*, defaults to `"{:.3g}"`):
            How the measurement is written.
        goal_form (`str`, *optional*):
            How the goal is written. Defaults to `form`.
        holds (`bool`, *optional*, defaults to `True`):
            Whether what the goal asks for besides is so.
    """
    reached = holds and (value <= goal if sign == "≤" else value >= goal)
    written = f"{form.format(value)}, goal {sign} {(goal_form or form).format(goal)}"
    return f"- {name}: {written}: {'reached' if reached else 'missed'}"
