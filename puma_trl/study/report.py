"""The report of the mini study: a table and a chart from the measurements, and what they show in words."""

import math
import statistics
from pathlib import Path
from typing import Any

from ..files import whole_file
from ..record.charts import chart


TARGET = 0.8  # of held-out answers on the vision-rich side
BASELINE = "cross-entropy only"
Seeds = list[list[dict[str, Any]]]  # for each seed the measurements of its checkpoints


def final(seeds: Seeds, name: str) -> list[float]:
    """Returns a value of the last checkpoint of each seed."""
    return [steps[-1][name] for steps in seeds]


def steps_to_target(steps: list[dict[str, Any]]) -> float:
    """Returns the step at which the vision-rich accuracy reaches `TARGET`, linear between checkpoints, or infinity."""
    before = {"step": 0, "vision_rich_accuracy": 0.0}
    for after in steps:
        reached, past = after["vision_rich_accuracy"], before["vision_rich_accuracy"]
        if reached >= TARGET:
            share = (TARGET - past) / (reached - past)
            return before["step"] + share * (after["step"] - before["step"])
        before = after
    return math.inf


def closed_share(steps: list[dict[str, Any]], initial: dict[str, Any]) -> float:
    """Returns which share of the answer KL that a run started with (mean of both directions) is gone at its end."""
    start, end = (row["forward_kl"] + row["reverse_kl"] for row in (initial, steps[-1]))
    return 1 - end / start


def compare(values: list[float], baseline: list[float]) -> str:
    """
    Puts the difference of two means into words.

    It counts as a difference when it is larger than twice its standard error (Welch: the variances of both means
    added), which with three seeds is a rough yardstick and no test.
    """
    difference = statistics.mean(values) - statistics.mean(baseline)
    error = math.sqrt(sum(statistics.variance(part) / len(part) for part in (values, baseline)))
    verdict = "no clear difference" if abs(difference) <= 2 * error else "better" if difference > 0 else "worse"
    return f"{100 * difference:+.1f} ± {100 * error:.1f} points: {verdict}"


def _percent(values: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def _steps(values: list[float]) -> str:
    if math.inf not in values:
        spread = f" ± {statistics.stdev(values):.0f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.0f}{spread}"
    reached = sum(value < math.inf for value in values)
    return f"reached by {reached} of {len(values)}" if reached else "not reached"


def make_table(variants: dict[str, Seeds], initial: dict[str, Any]) -> list[str]:
    """Returns the lines of one regime's table."""
    names = ["run", "text-rich %", "vision-rich %", "gap", f"steps to {TARGET:.0%}", "KL closed %"]
    names += [f"vision-rich against {BASELINE}"]
    lines = [f"| {' | '.join(names)} |", "|" + len(names) * "---|"]
    baseline = final(variants[BASELINE], "vision_rich_accuracy")
    for variant, seeds in variants.items():
        accuracy = final(seeds, "vision_rich_accuracy")
        cells = [
            variant,
            _percent(final(seeds, "text_rich_accuracy")),
            _percent(accuracy),
            _percent(final(seeds, "gap")),
        ]
        cells += [_steps([steps_to_target(steps) for steps in seeds])]
        cells += [_percent([closed_share(steps, initial) for steps in seeds])]
        cells += ["" if variant == BASELINE or len(seeds) < 2 else compare(accuracy, baseline)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw_curves(results: dict[str, dict[str, Seeds]], path: Path) -> None:
    """Draws the vision-rich accuracy over the steps: the mean of the seeds, and from the least to the largest."""
    with chart(path, len(results), dpi=110, figsize=(4.6 * len(results), 4.6), sharey=True) as axes:
        for axis, (regime, variants) in zip(axes, results.items(), strict=True):
            for variant, seeds in variants.items():
                steps = [row["step"] for row in seeds[0]]
                values = [[row["vision_rich_accuracy"] for row in column] for column in zip(*seeds, strict=True)]
                (line,) = axis.plot(steps, list(map(statistics.mean, values)), marker="o", ms=3, label=variant)
                lows, highs = list(map(min, values)), list(map(max, values))
                axis.fill_between(steps, lows, highs, color=line.get_color(), alpha=0.12)
            axis.set_title(regime, fontsize=10)
            axis.set_xlabel("step")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7)
        axes[0].set_ylabel("held-out vision-rich accuracy")


def write_report(results: dict[str, dict[str, Seeds]], initial: dict[str, Any], path: Path, setting: str) -> None:
    """
    Writes the Markdown file, and the chart of the same name beside it.

    Args:
        results (`dict[str, dict[str, Seeds]]`):
            Regime → variant → for each seed the measurements of its checkpoints.
        initial (`dict[str, Any]`):
            The measurement of the model that all runs start from.
        path (`Path`):
            The Markdown file.
        setting (`str`):
            What all runs share, in Markdown.
    """
    curves = path.with_suffix(".png")
    draw_curves(results, curves)
    seeds = len(next(iter(next(iter(results.values())).values())))
    lines = [
        "# The mini study",
        "",
        "What does the KL term change, all else equal? Every line below is one change to the same recipe, from the",
        "same model, with the same number of steps. This file and its chart are written by `make study`, words",
        f"included; a run is measured on {initial['pairs']} held-out problems by the answers it writes, and ± is the",
        f"standard deviation over {seeds} seeds.",
        "",
        setting,
        "",
        f"Before the runs: text-rich {initial['text_rich_accuracy']:.1%},",
        f"vision-rich {initial['vision_rich_accuracy']:.1%},",
        f"forward KL {initial['forward_kl']:.2f} and reverse KL {initial['reverse_kl']:.2f} nats per answer token.",
        "",
        f"![held-out vision-rich accuracy over the steps]({curves.name})",
    ]
    for regime, variants in results.items():
        lines += ["", f"## {regime[0].upper()}{regime[1:]}", "", *make_table(variants, initial)]
    lines += [
        "",
        "*KL closed*: which share of the mean of forward and reverse KL between both sides is gone at the end.",
        f"*Steps to {TARGET:.0%}*: of the vision-rich accuracy, between measurements linearly. The last column:",
        "difference of the means ± its standard error; a difference counts when it is larger than twice that.",
        "",
    ]
    with whole_file(path) as file:
        file.write("\n".join(lines))
