"""Counts and rates, as `metrics.json` holds them, and how Markdown shows them."""

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


def percent(rate: float | None) -> str:
    """Returns a rate as reports write it, a dash where nothing was counted."""
    return "–" if rate is None else f"{rate:.2%}"


def markdown_table(rows: list[list[str]]) -> list[str]:
    """Returns the lines of a table, of which the first row is the header."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return [head, "|---" * len(rows[0]) + "|", *body]
