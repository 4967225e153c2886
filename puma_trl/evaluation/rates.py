"""Counts and rates, as `metrics.json` holds them."""

from collections.abc import Iterable
from typing import Any


def rate(outcomes: Iterable[bool]) -> dict[str, Any]:
    """Returns `{correct, total, accuracy}`; the accuracy is a fraction, or `None` where nothing was counted."""
    outcomes = list(outcomes)
    correct, total = sum(outcomes), len(outcomes)
    return {"correct": correct, "total": total, "accuracy": correct / total if total else None}


def group_rates(pairs: Iterable[tuple[str, bool]]) -> dict[str, dict[str, Any]]:
    """Returns the [`rate`] of every value of a field, given (value, outcome) pairs, best first as official reports."""
    groups: dict[str, list[bool]] = {}
    for value, outcome in pairs:
        groups.setdefault(value, []).append(outcome)
    rates = {value: rate(outcomes) for value, outcomes in groups.items()}
    return dict(sorted(rates.items(), key=lambda entry: entry[1]["accuracy"], reverse=True))
