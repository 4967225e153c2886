"""What is measured on answers that the student has written itself."""

from collections.abc import Sequence

import torch

from ..step.forward import SUMS


# Sums over the micro-batches with such answers: those of the pair step, the tokens that were read, and of the answers
COMPLETION_SUMS = ("completions", "completion_tokens", "clipped", "ngrams", "repeated_ngrams")
ON_POLICY_SUMS = (*SUMS, "input_tokens", *COMPLETION_SUMS)
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
    ngrams, repeated = zip(*map(count_repeats, answers), strict=True)
    sums = (len(answers), sum(map(len, answers)), sum(clipped), sum(ngrams), sum(repeated))
    return torch.tensor(sums, dtype=torch.double)


def describe_on_policy(sums: dict[str, float]) -> dict[str, float]:
    """
    Returns the means by the names that are logged.

    Args:
        sums (`dict[str, float]`):
            Sums over all ranks, by the names of `ON_POLICY_SUMS`.
    """
    means = {name: sums[of] / max(sums["num_tokens"], 1.0) for name, of in ON_POLICY_MEANS.items()}
    return means | {name: sums[of] / max(sums[over], 1.0) for name, (of, over) in COMPLETION_MEANS.items()}
