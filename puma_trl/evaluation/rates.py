"""Counts and rates, as `metrics.json` holds them, and their intervals."""

import math
from collections.abc import Iterable
from typing import Any


Z95 = 1.959963984540054


def rate(outcomes: Iterable[bool]) -> dict[str, Any]:
    """Returns `{correct, total, accuracy}`; the accuracy is a fraction, or `None` where nothing was counted."""
    outcomes = list(outcomes)
    correct, total = sum(outcomes), len(outcomes)
    return {"correct": correct, "total": total, "accuracy": correct / total if total else None}


def wilson(correct: int, total: int) -> tuple[float, float] | None:
    """Returns the 95 % interval of a rate by Wilson's score, `None` where nothing was counted."""
    if not total:
        return None
    share, square = correct / total, Z95 * Z95
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = Z95 * math.sqrt(share * (1 - share) / total + square / (4 * total * total)) / (1 + square / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def group_rates(pairs: Iterable[tuple[str, bool]]) -> dict[str, dict[str, Any]]:
    """Returns the [`rate`] of every value of a field, given (value, outcome) pairs, best first as official reports."""
    groups: dict[str, list[bool]] = {}
    for value, outcome in pairs:
        groups.setdefault(value, []).append(outcome)
    rates = {value: rate(outcomes) for value, outcomes in groups.items()}
    return dict(sorted(rates.items(), key=lambda entry: entry[1]["accuracy"], reverse=True))
