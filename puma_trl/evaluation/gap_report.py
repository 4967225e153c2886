"""The table and the bar chart of the modality gap."""

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ..record.charts import chart
from .gap_answers import SIDES


# Column of the table → how it is written
COLUMNS = {
    "text-\nrich": "{text_rich_accuracy:.1%}",
    "vision-\nrich": "{vision_rich_accuracy:.1%}",
    "gap": "{gap:+.1%}",
    "forward /\nreverse KL": "{forward_kl:.3f} / {reverse_kl:.3f}",
    "the same,\nshuffled": "{shuffled_forward_kl:.3f} / {shuffled_reverse_kl:.3f}",
}
# Panel of the chart → bar → what it shows
PANELS = {
    "Accuracy": {"text-rich": "text_rich_accuracy", "vision-rich": "vision_rich_accuracy"},
    "KL per answer token, nats": {
        "forward KL": "forward_kl",
        "reverse KL": "reverse_kl",
        "forward KL shuffled": "shuffled_forward_kl",
        "reverse KL shuffled": "shuffled_reverse_kl",
    },
}


def name_models(paths: list[str]) -> list[str]:
    """Returns a name for each folder: its last part, with as many before it as tell it from the others."""
    parts = [Path(path).parts for path in paths]
    names = ["/".join(each[-1:]) for each in parts]
    for length in range(2, max(map(len, parts), default=0) + 1):
        names = [
            name if names.count(name) == 1 else "/".join(each[-length:])
            for name, each in zip(list(names), parts, strict=True)
        ]
    return names


def print_table(summaries: list[dict[str, Any]]) -> None:
    """Prints one table, a row per model; KL is in nats per answer token, shuffled = against another problem's text."""
    table = Table(title=f"Modality gap on {summaries[0]['pairs']:,} pairs", box=box.SIMPLE)
    table.add_column("model", overflow="fold")
    for title in COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    for summary in summaries:
        table.add_row(summary["label"], *(form.format(**summary) for form in COLUMNS.values()))
    Console().print(table)


def print_gap(summaries: list[dict[str, Any]], comparisons: list[dict[str, Any]] = ()) -> None:
    """
    Prints the table (see [`print_table`]), then the intervals, how the replies are, the gap of each kind, level and
    modality, and how models differ.
    """
    print_table(summaries)
    console = Console()
    for summary in summaries:
        for line in describe_summary(summary):
            console.print(line, markup=False, highlight=False)
    for comparison in comparisons:
        console.print(f"{comparison['second']} against {comparison['first']}:", markup=False, highlight=False)
        for side in SIDES:
            console.print(f"  {describe_comparison(side, comparison[side])}", markup=False, highlight=False)


def describe_summary(summary: dict[str, Any]) -> list[str]:
    """Returns lines about a model: intervals, agreement, replies, and the gap of each kind, level and modality."""
    sides = [f"{_name(side)} {_interval(summary[f'{side}_interval'])}" for side in SIDES]
    lines = [
        f"{summary['label']}: 95 % intervals: {', '.join(sides)},",
        f"  gap {_interval(summary['gap_interval'])} (McNemar p = {summary['gap_p']:.2g}); "
        f"same answer on both sides: {summary['agreement']:.1%}",
    ]
    replies = []
    for side in SIDES:
        length = summary[f"{side}_tokens"]
        words = "" if length is None else f"{length:.1f} tokens, "
        replies.append(f"{_name(side)} {words}{summary[f'{side}_cut']:.1%} cut off")
    lines.append(f"  replies: {'; '.join(replies)}")
    for field, values in summary["by"].items():
        for value, group in values.items():
            rates = " / ".join(f"{group[f'{side}_accuracy']:.1%}" for side in SIDES)
            lines.append(
                f"  {field} {value}: {rates}, gap {group['gap']:+.1%} {_interval(group['gap_interval'])}, "
                f"{group['pairs']:,} pairs"
            )
    return lines


def describe_comparison(side: str, change: dict[str, Any]) -> str:
    """Returns a line about two models on one side."""
    return (
        f"{_name(side)} {change['difference']:+.1%} {_interval(change['interval'])}, McNemar p = {change['p']:.2g}; "
        f"same answer: {change['agreement']:.1%}"
    )


def _name(side: str) -> str:
    return side.replace("_", "-")


def _interval(bounds: tuple[float, float]) -> str:
    return f"[{bounds[0]:.1%}, {bounds[1]:.1%}]"


def draw_gap(summaries: list[dict[str, Any]], path: Path) -> None:
    """
    Draws accuracy on both sides and the divergences, a group of bars per model; and, where the data has levels of
    modality, the vision-rich accuracy at each.
    """
    places = range(len(summaries))
    levels = list(dict.fromkeys(level for summary in summaries for level in summary["by"].get("modality", ())))
    columns = len(PANELS) + bool(levels)
    with chart(path, columns=columns, figsize=(max(4.5 * columns, 3 * len(summaries)), 3.8)) as axes:
        if levels:
            _draw_levels(axes[-1], summaries, levels)
        for axis, (title, bars) in zip(axes, PANELS.items(), strict=False):
            width = 0.8 / len(bars)
            for index, (name, key) in enumerate(bars.items()):
                spots = [place + (index - (len(bars) - 1) / 2) * width for place in places]
                axis.bar(spots, [summary[key] for summary in summaries], width, label=name)
                if title == "Accuracy":
                    intervals = [summary[key.replace("accuracy", "interval")] for summary in summaries]
                    axis.vlines(spots, *zip(*intervals, strict=True), color="black", linewidth=1)
            axis.set_xticks(list(places), [summary["label"] for summary in summaries])
            axis.set_title(title, fontsize=10)
            axis.grid(axis="y", alpha=0.3)
            axis.legend(fontsize=8)
            if title == "Accuracy":
                axis.set_ylim(0, 1)


def _draw_levels(axis: Any, summaries: list[dict[str, Any]], levels: list[str]) -> None:
    places = range(len(levels))
    for summary in summaries:
        groups = [summary["by"]["modality"][level] for level in levels]
        rates = [group["vision_rich_accuracy"] for group in groups]
        (line,) = axis.plot(places, rates, marker="o", label=summary["label"])
        intervals = [group["vision_rich_interval"] for group in groups]
        axis.vlines(places, *zip(*intervals, strict=True), color=line.get_color(), linewidth=1)
    axis.set_xticks(places, [level.replace("_", "\n") for level in levels], fontsize=8)
    axis.set_title("Vision-rich accuracy by modality", fontsize=10)
    axis.set_ylim(0, 1)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=8)
