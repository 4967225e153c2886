"""The table and the bar chart of the modality gap."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..record.charts import chart


COLUMNS = (
    ("text-\nrich", "text_rich_accuracy", "{:.1%}"),
    ("vision-\nrich", "vision_rich_accuracy", "{:.1%}"),
    ("gap", "gap", "{:+.1%}"),
    ("forward\nKL", "forward_kl", "{:.3f}"),
    ("reverse\nKL", "reverse_kl", "{:.3f}"),
    ("forward KL\nshuffled", "shuffled_forward_kl", "{:.3f}"),
    ("reverse KL\nshuffled", "shuffled_reverse_kl", "{:.3f}"),
)


def print_gap(summaries: list[dict[str, Any]]) -> None:
    """Prints one table, a row per model; KL is in nats per answer token, shuffled = against another problem's text."""
    table = Table(title=f"Modality gap on {summaries[0]['pairs']:,} pairs")
    table.add_column("model")
    for title, _, _ in COLUMNS:
        table.add_column(title, justify="right")
    for summary in summaries:
        table.add_row(summary["label"], *(form.format(summary[name]) for _, name, form in COLUMNS))
    Console().print(table)


def draw_gap(summaries: list[dict[str, Any]], path: Path) -> None:
    """
    Draws accuracy on both sides and the divergences, a group of bars per model.

    Args:
        summaries (`list[dict[str, Any]]`):
            What [`summarise`] returned per model.
        path (`Path`):
            The PNG.
    """
    panels = (
        ("Accuracy", COLUMNS[:2], (0, 1)),
        ("KL per answer token, nats", COLUMNS[3:], None),
    )
    places = range(len(summaries))
    with chart(path, columns=len(panels), figsize=(max(9, 3 * len(summaries)), 3.8)) as axes:
        for axis, (title, columns, limits) in zip(axes, panels, strict=True):
            width = 0.8 / len(columns)
            for index, (name, key, _) in enumerate(columns):
                axis.bar(
                    [place + (index - (len(columns) - 1) / 2) * width for place in places],
                    [summary[key] for summary in summaries],
                    width,
                    label=name.replace("-\n", "-").replace("\n", " "),
                )
            axis.set_xticks(list(places), [summary["label"] for summary in summaries])
            axis.set_title(title, fontsize=10)
            axis.grid(axis="y", alpha=0.3)
            axis.legend(fontsize=8)
            if limits:
                axis.set_ylim(*limits)
