"""The report of the mini study: tables and a chart from the measurements, and what they show in words."""

import itertools
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation.gap_answers import SIDES
from ..files import whole_file
from ..record.charts import chart


BASELINE = "cross-entropy only"
COLUMNS = 3  # of the chart


@dataclass(frozen=True)
class Line:
    """
    A line of a table: what is shown of a variant, or of the model that it starts from.

    Args:
        seeds (`list[dict[str, Any]]`):
            For each seed, `here` and `elsewhere`: the measurement on problems of the kinds that the run learns from,
            and of other ones, and `warnings`: what the run has warned of.
        against (`str`, *optional*):
            The variant of the same regime, beside `BASELINE`, that it is compared with.
    """

    seeds: list[dict[str, Any]]
    against: str | None = None

    def values(self, name: str, part: str = "here") -> list[float]:
        """Returns a value of each seed."""
        return [seed[part][name] for seed in self.seeds]

    @property
    def accuracies(self) -> list[float]:
        """The vision-rich accuracies, by which variants are compared."""
        return self.values("vision_rich_accuracy")


Regimes = dict[str, dict[str, Line]]  # regime → variant → line


@dataclass(frozen=True)
class Difference:
    """
    The difference of two means.

    It counts as a difference when it is larger than twice its standard error (Welch: the variances of both means
    added), which with three seeds is a rough yardstick and no test.

    Args:
        mean (`float`):
            The difference.
        error (`float`):
            Its standard error.
    """

    mean: float
    error: float

    @property
    def verdict(self) -> str:
        """The difference in words."""
        return "no clear difference" if abs(self.mean) <= 2 * self.error else "better" if self.mean > 0 else "worse"

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} ± {100 * self.error:.1f}: {self.verdict}"


def compare(values: list[float], others: list[float]) -> Difference | None:
    """Compares two means, if there is more than one seed of each."""
    if min(len(values), len(others)) < 2:
        return None
    error = math.sqrt(sum(statistics.variance(part) / len(part) for part in (values, others)))
    return Difference(statistics.mean(values) - statistics.mean(others), error)


def closed_shares(line: Line, before: Line) -> list[float]:
    """Returns for each seed which share of the answer KL (mean of both directions) of the start is gone."""
    (start,) = _divergences(before)
    return [1 - end / start for end in _divergences(line)]


def _divergences(line: Line) -> list[float]:
    return [seed["here"]["forward_kl"] + seed["here"]["reverse_kl"] for seed in line.seeds]


def _spread(values: list[float], scale: float = 100) -> str:
    values = [scale * value for value in values]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def make_table(lines: dict[str, Line], before: Line) -> list[str]:
    """Returns the lines of one regime's table."""
    names = [
        "run",
        "text-rich %",
        "vision-rich %",
        "same answer %",
        "other kinds %",
        "KL closed %",
        "tokens",
        "against",
    ]
    table = [f"| {' | '.join(names)} |", "|" + len(names) * "---|"]
    for variant, line in {"before": before, **lines}.items():
        cells = [variant, _spread(line.values("text_rich_accuracy")), _spread(line.accuracies)]
        elsewhere = [line.values(f"{side}_accuracy", "elsewhere") for side in SIDES]
        cells += [_spread(line.values("agreement")), " / ".join(map(_spread, elsewhere))]
        cells += ["" if line is before else _spread(closed_shares(line, before))]
        cells += [_spread(line.values("vision_rich_tokens"), 1)]
        others = [] if variant == BASELINE or line is before else [BASELINE, *filter(None, [line.against])]
        differences = {other: compare(line.accuracies, lines[other].accuracies) for other in others}
        cells += ["; ".join(f"{other} {difference}" for other, difference in differences.items() if difference)]
        table.append(f"| {' | '.join(cells)} |")
    return table


def tell_differences(regimes: Regimes) -> list[str]:
    """Returns for each variant a sentence: in which regimes it is better, and in which worse, than what it changes."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for regime, lines in regimes.items():
        for variant, line in lines.items():
            other = line.against or BASELINE
            if variant == BASELINE or (difference := compare(line.accuracies, lines[other].accuracies)) is None:
                continue
            verdicts = found.setdefault((variant, other), {"better": [], "worse": [], "no clear difference": []})
            points = f"{100 * difference.mean:+.1f} ± {100 * difference.error:.1f}"
            verdicts[difference.verdict].append(f"{regime} ({points})")
    return [
        f"- **{variant}** against {other}: "
        + "; ".join(f"{verdict} with {', '.join(places)}" for verdict, places in verdicts.items() if places)
        + "."
        for (variant, other), verdicts in found.items()
    ]


def tell_elsewhere(regimes: Regimes) -> str:
    """Returns a sentence: which variants are better or worse than the baseline on kinds that they do not train on."""
    found = {"better": [], "worse": []}
    for regime, lines in regimes.items():
        baseline = lines[BASELINE].values("vision_rich_accuracy", "elsewhere")
        for variant, line in lines.items():
            difference = compare(line.values("vision_rich_accuracy", "elsewhere"), baseline)
            if difference is not None and difference.verdict in found:
                found[difference.verdict].append(f"{regime}, {variant} ({100 * difference.mean:+.1f})")
    words = [f"{verdict}: {'; '.join(places) or 'none'}" for verdict, places in found.items()]
    return f"- **Drawings of other kinds**, against {BASELINE}, {'. '.join(words)}."


def tell_warnings(regimes: Regimes) -> list[str]:
    """Returns a sentence for each warning: which runs have given it."""
    found: dict[str, list[str]] = {}
    for regime, lines in regimes.items():
        for variant, line in lines.items():
            given = [seed["warnings"] for seed in line.seeds]
            for words in sorted(set(itertools.chain(*given))):
                count = sum(words in warnings for warnings in given)
                seeds = "" if count == len(given) else f" ({count} of {len(given)} seeds)"
                found.setdefault(words, []).append(f"{regime}: {variant}{seeds}")
    return [f"- **Warned of** *{words}*: {'; '.join(places)}." for words, places in found.items()] or [
        "- **Warned of**: nothing."
    ]


def draw_lines(regimes: Regimes, path: Path) -> None:
    """Draws the vision-rich accuracy of each seed and the mean, and as a ring the mean on other kinds."""
    rows = math.ceil(len(regimes) / COLUMNS)
    with chart(path, COLUMNS, rows, dpi=110, figsize=(5 * COLUMNS, 3.1 * rows)) as axes:
        for axis, place in itertools.zip_longest(axes, regimes.items()):
            if place is None:
                axis.set_visible(False)
                continue
            regime, lines = place
            for height, line in enumerate(lines.values()):
                axis.plot(line.accuracies, [height] * len(line.seeds), "o", color="tab:blue", ms=3, alpha=0.5)
                axis.plot(statistics.mean(line.accuracies), height, "|", color="tab:blue", ms=14, mew=2)
                elsewhere = statistics.mean(line.values("vision_rich_accuracy", "elsewhere"))
                axis.plot(elsewhere, height, "o", color="tab:orange", ms=6, fillstyle="none")
            axis.set_yticks(range(len(lines)), list(lines), fontsize=8)
            axis.invert_yaxis()
            axis.set_xlim(0, 1)
            axis.set_title(regime, fontsize=10)
            axis.grid(alpha=0.3)


def write_report(regimes: Regimes, before: dict[str, Line], path: Path, setting: str) -> None:
    """
    Writes the Markdown file, and the chart of the same name beside it.

    Args:
        regimes (`Regimes`):
            Regime → variant → line.
        before (`dict[str, Line]`):
            Regime → the model that its runs start from.
        path (`Path`):
            The Markdown file.
        setting (`str`):
            What all runs share, in Markdown.
    """
    curves = path.with_suffix(".png")
    draw_lines(regimes, curves)
    first = next(iter(regimes))
    start, seeds = before[first].seeds[0], len(regimes[first][BASELINE].seeds)
    lines = [
        "# The mini study",
        "",
        "What do the KL term, the answers and the teacher change, all else equal? Every line below is one change to",
        "the same recipe, from the same model, with the same number of steps. This file and its chart are written by",
        f"`make study`, words included; a run is measured on {start['here']['pairs']} held-out problems of its kinds",
        f"and {start['elsewhere']['pairs']} of others by the answers it writes, and ± is the standard deviation over",
        f"{seeds} seeds.",
        "",
        setting,
        "",
        f"![held-out vision-rich accuracy of every run]({curves.name})",
        "",
        "Vision-rich accuracy on held-out problems: a dot for each seed, a stroke for their mean, and a ring for the",
        "mean on other kinds.",
        "",
        "## What it shows",
        "",
        "Points of vision-rich accuracy ± standard error; a difference counts when it is larger than twice that.",
        "",
        *tell_differences(regimes),
        tell_elsewhere(regimes),
        *tell_warnings(regimes),
    ]
    for regime, variants in regimes.items():
        lines += ["", f"## {regime[0].upper()}{regime[1:]}", "", *make_table(variants, before[regime])]
    lines += [
        "",
        "*Same answer*: to both sides. *Other kinds*: text-rich / vision-rich accuracy on kinds that the tower has",
        "learned and the run does not train on. *KL closed*: which share of the mean of forward and reverse KL",
        "between both sides is gone at the end. *Tokens*: of a vision-rich reply.",
        "",
    ]
    with whole_file(path) as file:
        file.write("\n".join(lines))
