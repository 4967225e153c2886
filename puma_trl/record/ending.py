"""What a person sees at the end of a run: what was measured, what was written where, and what comes next."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..config import PumaKLConfig
from ..data.files import DROPPED
from .console import word_measures, word_time
from .hub import CURVES, push_command
from .provenance import PROVENANCE, RECIPE, name_stage


# File → what it is
FILES = {
    "README.md": "model card",
    RECIPE: "runs this stage again",
    PROVENANCE: "what the run is made of",
    CURVES: "loss, accuracy, learning rate over the steps",
    "trainer_state.json": "every number that was logged",
    DROPPED: "rows that were left out",
}
WEIGHTS = ("model*.safetensors", "adapter_model*.safetensors", "pytorch_model*.bin")


def print_end(
    args: PumaKLConfig, state: TrainerState, commands: list[str], first_step: int = 0, signs: Iterable[str] = ()
) -> None:
    """
    Prints the table that closes a run, and below it the next commands, each in one line to be copied.

    Args:
        args ([`PumaKLConfig`]):
            Training arguments; what is in their `output_dir` is told.
        state ([`~transformers.TrainerState`]):
            The state of the trainer.
        commands (`list[str]`):
            What [`next_commands`] returns.
        first_step (`int`, *optional*, defaults to `0`):
            The step that the run was resumed from.
        signs (`Iterable[str]`, *optional*):
            The signs of collapse that were told in training.
    """
    number, name = name_stage(args.use_kl, args.trainable_parts)
    table = Table(title=f"Stage {number} of 3, {name}: done", show_header=False)
    told = [("Sign of collapse", sign) for sign in signs]
    for label, value in [*describe_logs(state, first_step), *told, *describe_folder(args.output_dir)]:
        table.add_row(label, escape(value))
    console = Console()
    console.print(table)
    for label, command in zip(["Next:", *[" then"] * len(commands)], commands, strict=False):
        console.print(f"{label} {command}", soft_wrap=True, highlight=False, markup=False)


def describe_logs(state: TrainerState, first_step: int) -> list[tuple[str, str]]:
    """Returns the lines of the table about the time, the last training log and the last evaluations."""
    lines, evaluations = [], {}
    for logs in state.log_history:
        if "train_runtime" in logs:
            since = f", resumed at {first_step:,}" if first_step else ""
            lines = [("Steps", f"{state.global_step:,} in {word_time(logs['train_runtime'])}{since}")]
        split = next((name.removesuffix("_loss") for name in logs if re.fullmatch(r"eval(_.+)?_loss", name)), None)
        if split is not None:
            evaluations[split] = {name.removeprefix(f"{split}_"): value for name, value in logs.items()}
    last = next((logs for logs in reversed(state.log_history) if "loss" in logs), None)
    if last is not None:
        lines.append(("Last batches", ", ".join(word_measures(last))))
    for split, values in evaluations.items():
        name = "Evaluation" + split.removeprefix("eval").replace("_", " ", 1)
        lines.append((name, ", ".join(word_measures(values))))
    return lines


def describe_folder(folder: str | Path) -> list[tuple[str, str]]:
    """Returns the lines of the table about what an output folder holds."""
    folder = Path(folder)
    weights = [path for pattern in WEIGHTS for path in folder.glob(pattern)]
    megabytes = sum(path.stat().st_size for path in weights) / 1e6
    lines = [("Written to", str(folder))]
    if weights:
        size = f"{megabytes / 1000:,.1f} GB" if megabytes >= 1000 else f"{megabytes:,.1f} MB"
        lines.append(("", f"{', '.join(path.name for path in weights[:1])}{_more(len(weights) - 1)} ({size})"))
    lines += [("", f"{name} ({words})") for name, words in FILES.items() if (folder / name).exists()]
    steps = sorted(int(path.name.split("-")[1]) for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*[0-9]"))
    if steps:
        numbers = ", ".join(f"{step:,}" for step in steps[-3:])
        lines.append(("", f"{len(steps)} checkpoints, the last of step {numbers}"))
    return lines


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def next_commands(args: PumaKLConfig, recipe: str | None, is_peft: bool, is_multimodal: bool) -> list[str]:
    """
    Returns the commands that take up what a run has left: the next stage of the same folder of recipes, with what
    must come before it, or after the last one the modality gap.

    Args:
        args ([`PumaKLConfig`]):
            Training arguments.
        recipe (`str`, *optional*):
            The recipe of the run.
        is_peft (`bool`):
            Whether adapters were trained.
        is_multimodal (`bool`):
            Whether the model is a vision-language model.
    """
    number, _ = name_stage(args.use_kl, args.trainable_parts)
    following, start = _following(recipe, number)
    model, commands = str(args.output_dir), []
    is_local = start is not None and start.startswith(os.path.dirname(model) or start)
    if is_peft:
        merged = start if is_local and start != model else f"{model}-merged"
        commands.append(f"puma-trl merge {model} {merged}")
        model = merged
    if not is_multimodal:
        assembled = start if is_local and start != model else f"{model}-assembled"
        commands.append(f"puma-trl assemble --language_model {model} --vision_tower … --aligner … {assembled}")
        model = assembled
    if following is not None:
        own = "" if start == model else f" --model_name_or_path {model}"
        return [*commands, f"puma-trl train {following}{own}"]
    if is_multimodal and number > 1:
        commands.append(f"puma-trl eval gap --model {model} --data PAIRS.jsonl")
    return commands if args.push_to_hub else [*commands, push_command(model)]


def _following(recipe: str | None, number: int) -> tuple[str | None, str | None]:
    """Returns the recipe of the next stage beside one, if there is one, and the model that it starts from."""
    if recipe is None or f"stage{number}" not in os.path.basename(recipe):
        return None, None
    name = os.path.basename(recipe).replace(f"stage{number}", f"stage{number + 1}")
    path = Path(recipe).with_name(name)
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None, None
    start = values.get("model_name_or_path") if isinstance(values, dict) else None
    return str(path), start
