"""
The watch over a training: what is logged is compared with what was logged before, and each sign of collapse is told
once, with its remedy. docs/training.md tells what counts as one.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from accelerate.logging import get_logger
from transformers import Trainer, TrainerCallback, TrainerState

from ..config import PumaKLConfig
from ..record.provenance import SIGNS, update_provenance


logger = get_logger(__name__)

# What is judged is a mean over the logs of so many optimizer steps, or over so many evaluations
STEPS, EVALUATIONS = 20, 2
# By how much an accuracy of replies must have fallen from its best, or a share risen from its lowest
SHARE = 0.2
# The same for an accuracy of tokens, most of which a model that reads nothing still knows; and the factor by which the
# cross-entropy must have risen from its lowest besides
TOKEN_SHARE, CE_FACTOR = 0.05, 2.0
# Share of repeated 4-grams above which answers are nonsense, though they may be so since the first window
REPEATING = 0.5
# By which factor a length must have changed from what it was at first, and an entropy have risen or fallen
LENGTH_FACTOR, RISE_FACTOR, FALL_FACTOR = 3.0, 3.0, 10.0
# Nats per token up to which no entropy is too high
HIGH_ENTROPY = 1.0
# Share of its first value above which a KL has not fallen
KEPT_KL = 0.5

CALMER = "lower `learning_rate` or `on_policy_share`"

TEACHER, TEACHER_CE, TEXT_RICH = "teacher_mean_token_accuracy", "teacher_ce", "eval_text_rich_accuracy"
CUT_OFF, LENGTH, REPEATED = (f"completions/{name}" for name in ("clipped_ratio", "mean_length", "repeated_ngrams"))
ENTROPY, KL = "on_policy/entropy", "on_policy/kl"
OF_TRAINING = (TEACHER, TEACHER_CE, CUT_OFF, LENGTH, REPEATED, ENTROPY, KL)


class Mean(NamedTuple):
    """
    A mean of what was logged.

    Args:
        value (`float`):
            The mean.
        step (`int`):
            The optimizer step at its end.
    """

    value: float
    step: int


class Series:
    """
    The means of what is logged under one name, over windows that overlap.

    Args:
        size (`int`):
            Steps, or evaluations, of a window.
        least (`int`):
            With how many of them the first window counts.

    Attributes:
        now, first, low, high ([`Mean`], *optional*):
            The last, first, lowest and highest mean.
    """

    def __init__(self, size: int, least: int):
        self.size, self.least = size, least
        self.now: Mean | None = None
        self.first: Mean | None = None
        self.low: Mean | None = None
        self.high: Mean | None = None
        self._values: deque[tuple[float, int]] = deque()

    def add(self, step: int, value: float, weight: int) -> None:
        """Adds the mean of so many steps, or evaluations, up to `step`."""
        self._values.append((value, weight))
        total = sum(weight for _, weight in self._values)
        while total - self._values[0][1] >= self.size:
            total -= self._values.popleft()[1]
        if total < self.least:
            return
        self.now = Mean(sum(value * weight for value, weight in self._values) / total, step)
        self.first = self.first or self.now
        if self.low is None or self.now.value <= self.low.value:
            self.low = self.now
        if self.high is None or self.now.value >= self.high.value:
            self.high = self.now


class Watch(TrainerCallback):
    """
    Reads each log of a training, on all processes alike, warns once of each sign of collapse, and with
    `args.stop_on_collapse` saves a checkpoint and stops there. A run that is resumed reads its log history first. What
    was told goes into `provenance.json` too, from which the model card has it.

    Attributes:
        signs (`dict[str, str]`):
            Name → `step 40: …`, the signs of the whole run, each in one line.
        stopped_by (`str`, *optional*):
            The sign that has stopped the training.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._begin()

    def _begin(self) -> None:
        self.stopped_by: str | None = None
        self._series: dict[str, Series] = {}
        self.signs: dict[str, str] = {}
        self._last_step = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self._begin()
        for logs in state.log_history:
            self.read(logs)
        self._record(state)

    def on_log(self, args, state, control, **kwargs):
        signs = self.read(state.log_history[-1])
        for sign in signs:
            logger.warning(f"Sign of collapse at step {state.global_step}: {sign}")
        if signs:
            self._record(state)
        if signs and args.stop_on_collapse:
            self.stopped_by = signs[0]
            self.trainer.is_stopping = self.trainer.stop_requested = True  # all processes have read the same log
            control.should_training_stop = control.should_save = True

    def _record(self, state: TrainerState) -> None:
        if state.is_world_process_zero and self.signs:
            update_provenance(self.trainer.args.output_dir, {SIGNS: self.signs})

    def read(self, logs: dict[str, Any]) -> list[str]:
        """
        Adds a log.

        Returns:
            `list[str]`: the signs that are seen for the first time, each in one line with its remedy.
        """
        step, is_training = logs["step"], "loss" in logs
        for name, value in logs.items():
            if name == TEXT_RICH or name.startswith("eval_") and name.endswith((f"_{TEACHER}", f"_{TEACHER_CE}")):
                self._series.setdefault(name, Series(EVALUATIONS, 1)).add(step, value, 1)
            elif is_training and name in OF_TRAINING:
                self._series.setdefault(name, Series(STEPS, STEPS)).add(step, value, step - self._last_step)
        if is_training:
            self._last_step = step
        known = {name: series for name, series in self._series.items() if name in logs and series.now is not None}
        if LENGTH in known and known[CUT_OFF].now.value > SHARE:
            known[LENGTH].first = None  # answers that come to end by themselves become shorter
        signs = {name: text for name, text in find_signs(known, self.trainer.args) if name not in self.signs}
        self.signs |= {name: f"step {step}: {text}" for name, text in signs.items()}
        return [*signs.values()]


def find_signs(known: dict[str, Series], args: PumaKLConfig) -> Iterator[tuple[str, str]]:
    """
    Yields the signs of collapse that the last log shows: a name, and in one line what moved, since when, and the
    remedy.
    """
    moves = args.use_kl and args.teacher in ("live", "ema")
    frozen = "`teacher: frozen`, " if moves and (args.lambda_kl or args.on_policy_share) else ""
    for name, series in known.items():
        if name.endswith((TEACHER, TEXT_RICH)):
            # a teacher that stays as it is does worse on harder rows alone
            if (name != TEACHER or moves) and _has_fallen(name, known):
                remedy = f"Start anew with {frozen}fewer `trainable_parts` or a lower `learning_rate`."
                words = f"the accuracy on the text-rich side (`{name}`)"
                yield name, _tell(words, "{:.1%}", series.now, series.high, remedy)
        elif name == CUT_OFF and series.now.value - series.low.value > SHARE:
            words = "the share of sampled answers that are cut off at `max_completion_length`"
            remedy = f"Raise that if they make sense (`log_completions: true` shows some), else {CALMER}."
            yield name, _tell(words, "{:.1%}", series.now, series.low, remedy)
        elif name == REPEATED and (series.now.value - series.low.value > SHARE or series.now.value > REPEATING):
            words = "the share of repeated 4-grams in sampled answers"
            remedy = f"Set `repetition_penalty` above 1, or {CALMER}."
            yield name, _tell(words, "{:.1%}", series.now, series.low, remedy)
        elif name == LENGTH and series.first is not None:
            shorter, longer = sorted((series.now.value, series.first.value))
            if longer > LENGTH_FACTOR * shorter:
                words = "the mean length of sampled answers"
                remedy = f"Look at some of them (`log_completions: true`), {CALMER}."
                yield name, _tell(words, "{:.0f} tokens", series.now, series.first, remedy)
        elif name == ENTROPY:
            yield from _judge_entropy(series, known[KL], name)


def _has_fallen(name: str, known: dict[str, Series]) -> bool:
    accuracy = known[name]
    fall = accuracy.high.value - accuracy.now.value
    if name == TEXT_RICH:
        return fall > SHARE
    ce = known[f"{name.removesuffix(TEACHER)}{TEACHER_CE}"]
    return fall > TOKEN_SHARE and ce.now.value > CE_FACTOR * ce.low.value


def _judge_entropy(series: Series, kl: Series, name: str) -> Iterator[tuple[str, str]]:
    words, form = "the entropy of sampled answers", "{:.2g} nats per token"
    if series.now.value > max(RISE_FACTOR * series.first.value, HIGH_ENTROPY):
        remedy = f"{CALMER.capitalize()}."
        yield f"{name} rose", _tell(words, form, series.now, series.first, remedy)
    # where the KL falls with it, the student has learned to be as certain as its teacher
    elif FALL_FACTOR * series.now.value < series.first.value and kl.now.value > KEPT_KL * kl.first.value:
        remedy = f"The teacher does not agree (KL {kl.now.value:.2g}): raise `alpha_kl`, or {CALMER}."
        yield f"{name} fell", _tell(words, form, series.now, series.first, remedy)


def _tell(words: str, form: str, now: Mean, before: Mean, remedy: str) -> str:
    if now is before:
        return f"{words} is {form.format(now.value)}. {remedy}"
    moved = "fallen" if now.value < before.value else "risen"
    return (
        f"{words} has {moved} to {form.format(now.value)}, from {form.format(before.value)} at step {before.step}. "
        f"{remedy}"
    )
