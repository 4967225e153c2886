"""Two accuracies on the same problems: their difference with its interval, and McNemar's exact test."""

import math
from collections.abc import Sequence
from typing import Any

from ..record.intervals import wilson


def mcnemar(only_first: int, only_second: int) -> float:
    """Returns McNemar's exact two-sided p-value, given how many problems only one of two has right."""
    count, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(count, right) for right in range(fewer + 1))
    return min(1.0, 2 * tail / 2**count)


def compare_outcomes(first: Sequence[bool], second: Sequence[bool]) -> dict[str, Any]:
    """
    Compares two accuracies on the same problems.

    Args:
        first (`Sequence[bool]`):
            Whether each problem is right in the first way of answering.
        second (`Sequence[bool]`):
            The same in the second.

    Returns:
        `{"difference", "interval", "only_first", "only_second", "p"}`: first minus second with its 95 % interval
        (Newcombe's hybrid score for paired proportions), how many are right in one way only, and the p-value of
        McNemar's exact test.
    """
    pairs = list(zip(first, second, strict=True))
    cells = [pairs.count(cell) for cell in ((True, True), (True, False), (False, True), (False, False))]
    both, only_first, only_second, neither = cells
    count = len(pairs)
    rates = ((both + only_first) / count, (both + only_second) / count)
    (low_1, high_1), (low_2, high_2) = wilson(both + only_first, count), wilson(both + only_second, count)
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    phi = (both * neither - only_first * only_second) / math.sqrt(margins) if margins else 0.0
    difference = rates[0] - rates[1]
    down, up = (rates[0] - low_1, high_2 - rates[1]), (high_1 - rates[0], rates[1] - low_2)
    return {
        "difference": difference,
        "interval": (difference - _distance(*down, phi), difference + _distance(*up, phi)),
        "only_first": only_first,
        "only_second": only_second,
        "p": mcnemar(only_first, only_second),
    }


def _distance(first: float, second: float, phi: float) -> float:
    return math.sqrt(max(0.0, first * first - 2 * phi * first * second + second * second))
