"""What a terminal shows of a run: a line for each log, such as `step 120/1000 · loss 0.43 · … · 12 min left`."""

import logging
import sys
import time
from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback


# Logged beside what the line shows, for trackers and `trainer_state.json`
QUIET = {
    *("epoch", "entropy", "forward_kl", "num_input_tokens_seen", "num_tokens", "padding_share", "reverse_kl"),
    *("teacher_ce", "teacher_mean_token_accuracy", "total_flos"),
    *("model_preparation_time", "runtime", "samples_per_second", "steps_per_second", "tokens_per_second"),
}


def use_lines(trainer: Trainer) -> None:
    """
    Puts lines in place of the dictionaries that a trainer prints at each log; its bars, and what a notebook shows,
    stay.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer. The last of its callbacks that prints logs is replaced, which is the one it has added itself.
    """
    callbacks = trainer.callback_handler.callbacks
    for number, callback in reversed([*enumerate(callbacks)]):
        if type(callback) in LINES:
            callbacks[number] = LINES[type(callback)]()
            return


class Lines(PrinterCallback):
    """A line for each log, on the main process; none with `log_level: error` or `critical`."""

    def __init__(self):
        super().__init__()
        self._first_step, self._start = 0, time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        # a run that is resumed has not taken the steps before it
        self._first_step, self._start = state.global_step, time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or args.get_process_log_level() > logging.WARNING:
            return
        seconds, steps = time.monotonic() - self._start, state.global_step - self._first_step
        left = seconds / steps * (state.max_steps - state.global_step) if steps else 0.0
        tqdm.write(describe_log(logs or {}, state.global_step, state.max_steps, left))  # above the bars, if there are
        sys.stdout.flush()  # at once into a file, too


class BarsAndLines(Lines, ProgressCallback):
    """The same under Trainer's bars."""


LINES = {PrinterCallback: Lines, ProgressCallback: BarsAndLines}


def describe_log(logs: dict[str, Any], step: int, max_steps: int, left: float = 0.0) -> str:
    """
    Returns the line that tells of a log.

    Args:
        logs (`dict[str, Any]`):
            What is logged: a step of training, an evaluation, or the end of a training.
        step (`int`):
            Number of steps taken.
        max_steps (`int`):
            Number of steps of the run.
        left (`float`, *optional*, defaults to `0.0`):
            Seconds until it ends, where they are known.
    """
    if "train_runtime" in logs:
        return _join(
            f"{step:,} step{'' if step == 1 else 's'}",
            f"{word_time(logs['train_runtime'])} in training",
            _mean_loss(logs),
        )
    if "loss" in logs:
        speed, memory = logs.get("perf/tokens_per_second"), logs.get("perf/peak_memory_gib")
        return _join(
            f"step {step}/{max_steps}",
            *word_measures(logs),
            speed and f"{word_count(speed)} tok/s",
            memory and word_memory(memory),
            left >= 0.5 and f"{word_time(left)} left",
        )
    split = _split_of(logs)
    if split is None:
        numbers = [f"{name} {_number(value)}" for name, value in logs.items() if name not in QUIET]
        return _join(f"step {step}/{max_steps}", *numbers)
    values = {name.removeprefix(f"{split}_"): value for name, value in logs.items() if name.startswith(split)}
    return _join(f"step {step}/{max_steps}", split.replace("_", " "), *word_measures(values), *_more(values))


def _join(*pieces: Any) -> str:
    return " · ".join(piece for piece in pieces if piece)


def _split_of(logs: dict[str, Any]) -> str | None:
    """Returns the prefix of an evaluation, such as `eval` or `eval_geometry`."""
    return next((name.removesuffix("_loss") for name in logs if name.endswith("_loss")), None)


def _mean_loss(logs: dict[str, Any]) -> str:
    return f"mean loss {_number(logs['train_loss'])}" if "train_loss" in logs else ""


def word_measures(logs: dict[str, Any]) -> list[str]:
    """Returns what was measured: on pairs the gap, else the token accuracy."""
    found = [f"{name} {_number(logs[name])}" for name in ("loss", "kl", "ce") if name in logs]
    if "on_policy/kl" in logs:
        found.append(f"on-policy kl {_number(logs['on_policy/kl'])}")
    if "completions/mean_length" in logs:
        found.append(f"{logs['completions/mean_length']:.0f} tokens an answer")
        if cut_off := logs["completions/clipped_ratio"]:
            found[-1] += f", {cut_off:.0%} cut off"
    if "modality_gap" in logs:
        found.append(f"gap {100 * logs['modality_gap']:.1f} pt")
    elif "mean_token_accuracy" in logs:
        found.append(f"accuracy {logs['mean_token_accuracy']:.1%}")
    return found


def _more(values: dict[str, Any]) -> list[str]:
    """Returns metrics of the user's."""
    shown = QUIET | {"loss", "kl", "ce", "modality_gap", "mean_token_accuracy"}
    return [f"{name} {_number(value)}" for name, value in values.items() if name not in shown]


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if 0.1 <= abs(value) < 1000 else f"{value:.2g}"


def word_count(value: float) -> str:
    """Returns a number in a few characters, such as 950, 1.2k or 12k."""
    unit = ""
    for larger in "kMG":
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f}{unit}" if unit and value < 9.95 else f"{value:.0f}{unit}"


def word_memory(gib: float) -> str:
    """Returns GiB with as many digits as they need, such as 0.6 GiB or 31 GiB."""
    return f"{gib:.1f} GiB" if gib < 9.95 else f"{gib:.0f} GiB"


def word_time(seconds: float) -> str:
    """Returns a time in words, such as 45 s, 12 min or 3 h 20 min."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
