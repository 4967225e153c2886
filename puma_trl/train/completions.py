"""What is measured on answers that the student has written itself."""

import importlib
import logging
from collections.abc import Sequence

import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl.trainer.utils import print_prompt_completions_sample

from ..errors import printable
from ..step.forward import SUMS


# Sums over the micro-batches with such answers: those of the pair step, the tokens that were read, and of the answers
COMPLETION_SUMS = ("completions", "completion_tokens", "clipped", "ngrams", "repeated_ngrams")
ON_POLICY_SUMS = (*SUMS, *COMPLETION_SUMS)
# Logged means over their tokens, and the sums they are of
ON_POLICY_MEANS = {f"on_policy/{name}": name for name in ("kl", "forward_kl", "reverse_kl", "entropy")} | {
    "on_policy/mean_token_accuracy": "correct",
    "on_policy/teacher_mean_token_accuracy": "teacher_correct",
}
# Logged means over the answers, or their n-grams: sum, and what it is divided by
COMPLETION_MEANS = {
    "completions/mean_length": ("completion_tokens", "completions"),
    "completions/clipped_ratio": ("clipped", "completions"),
    "completions/repeated_ngrams": ("repeated_ngrams", "ngrams"),
}
# Length of the n-grams that are counted
NGRAM = 4


def count_repeats(tokens: Sequence[int]) -> tuple[int, int]:
    """Returns the number of n-grams of an answer, and how many of them it had before."""
    ngrams = [tuple(tokens[start : start + NGRAM]) for start in range(len(tokens) - NGRAM + 1)]
    return len(ngrams), len(ngrams) - len(set(ngrams))


def sum_completions(answers: Sequence[Sequence[int]], clipped: Sequence[bool]) -> torch.Tensor:
    """
    Sums what is measured on answers, in the order of `COMPLETION_SUMS`.

    Args:
        answers (`Sequence[Sequence[int]]`):
            Their tokens.
        clipped (`Sequence[bool]`):
            Whether each was cut off before its end.
    """
    repeats = [count_repeats(answer) for answer in answers]
    ngrams, repeated = (sum(each[place] for each in repeats) for place in (0, 1))
    sums = (len(answers), sum(map(len, answers)), sum(clipped), ngrams, repeated)
    return torch.tensor(sums, dtype=torch.double)


def describe_on_policy(sums: dict[str, float]) -> dict[str, float]:
    """
    Returns the means by the names that are logged.

    Args:
        sums (`dict[str, float]`):
            Sums over all ranks, by the names of `ON_POLICY_SUMS`.
    """
    means = {}
    if sums["num_tokens"]:  # all answers may have been left out
        means = {name: sums[of] / sums["num_tokens"] for name, of in ON_POLICY_MEANS.items()}
    return means | {name: sums[of] / max(sums[over], 1.0) for name, (of, over) in COMPLETION_MEANS.items()}


class CompletionLog(TrainerCallback):
    """
    Prints the last prompts and answers at each log, and hands them to Weights & Biases and Trackio as the table
    `completions`, as TRL's trainers do; those of the main process.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self._last: list[tuple[list[int], list[int]]] = []

    def keep(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> None:
        """Keeps the tokens of prompts and answers in place of those before."""
        self._last = list(zip(prompts, answers, strict=True))

    def on_log(self, args, state, control, logs=None, **kwargs):
        last, self._last = self._last, []
        if not last or not state.is_world_process_zero:
            return
        prompts, answers = (
            [printable(text) for text in self.tokenizer.batch_decode(list(side), skip_special_tokens=True)]
            for side in zip(*last, strict=True)
        )
        if args.get_process_log_level() <= logging.WARNING:
            count = args.num_completions_to_print
            # the first ones, because TRL would choose some by the global random state
            print_prompt_completions_sample(prompts[:count], answers[:count], {}, None, state.global_step)
        table = pd.DataFrame({"step": state.global_step, "prompt": prompts, "completion": answers})
        for name in {"wandb", "trackio"} & set(args.report_to):
            tracker = importlib.import_module(name)
            tracker.log({"completions": tracker.Table(dataframe=table)})
