"""
`report`: `metrics.json` → `report.html` (one page with everything in it), `report.md` and a PNG, beside published
figures where the user gives them.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from ..record.charts import chart
from ..record.intervals import wilson
from .benchmarks import BENCHMARKS
from .files import read_json, write_text
from .rates import markdown_table, percent
from .report_page import render_page
from .wrong_answers import find_wrong_answers


PROTOCOLS = {
    "official": "the official rule",
    "math_puma": "the rule of the original Math-PUMA project",
    "final": "the `final` rule of this project (last boxed expression, answer phrase, option letter or number)",
    "given": "extractions given in the responses file",
}
# What `score` writes for every benchmark and the report reads.
NEEDED = dict.fromkeys(("accuracy", "coverage"), int | float | None)
NEEDED |= dict.fromkeys(("correct", "total", "items", "answered", "empty", "partial"), int)
NEEDED |= {"extraction": str, "judge": str, "prompt": str | None}
NEEDED |= {"judge_settings": dict | None, "settings": dict, "files": dict}
# Key of published figures that names the extraction rule behind them
RULE = "rule"


@dataclass(frozen=True)
class Figure:
    """
    A rate of the report.

    Args:
        rate (`float`, *optional*):
            The rate as a fraction.
        count (`str`):
            Counts in words, empty where there are none.
        interval (`tuple[float, float]`, *optional*):
            Its 95 % interval, where it is a share of independent answers.
    """

    rate: float | None
    count: str = ""
    interval: tuple[float, float] | None = None

    @classmethod
    def of(cls, rate: dict[str, Any]) -> "Figure":
        """Makes a figure from `{correct, total, accuracy}`."""
        interval = wilson(rate["correct"], rate["total"])
        return cls(rate["accuracy"], f"{rate['correct']}/{rate['total']}", interval)


def run_report(metrics_path: Path, output: Path, reference_path: Path | None, image_root: str | None = None) -> Path:
    """
    Runs the subcommand.

    Args:
        metrics_path (`Path`):
            What `score` wrote. `scored.jsonl` beside it and the files that it names are read for examples.
        output (`Path`):
            The Markdown file; the page (`.html`) and the chart (`.png`) are written beside it.
        reference_path (`Path`, *optional*):
            json of published figures to show beside ours, `{"name": {"metric": fraction}}`; none are built in. A
            metric is named as in the report's tables, such as `"accuracy"`, `"S1"` or `"problem_version/Text Lite"`;
            `"rule"` may say by which extraction rule the figures were made.
        image_root (`str`, *optional*):
            Where the pictures of the examples are, as in `run`.

    Returns:
        The path of the page.

    Raises:
        EvaluationError: if a file is missing or not of its form.
    """
    metrics = read_json(metrics_path)
    if not isinstance(metrics, dict) or metrics.get("benchmark") not in BENCHMARKS:
        raise EvaluationError(f"{metrics_path} is no metrics file of `score`: it names no known `benchmark`.")
    missing = [name for name in NEEDED if name not in metrics]
    if missing:
        raise EvaluationError(f"{metrics_path} lacks {', '.join(missing)}. Write it with `score` again.")
    for name, kind in NEEDED.items():
        if not isinstance(metrics[name], kind):
            raise EvaluationError(
                f"{metrics_path}: `{name}` is {metrics[name]!r}, which `score` does not write. Write it with `score` "
                "again."
            )
    reference = read_reference(reference_path)
    benchmark, figures = BENCHMARKS[metrics["benchmark"]], collect_figures(metrics)
    picture, page = output.with_suffix(".png"), output.with_suffix(".html")
    charted = {name: figure for name, figure in figures.items() if name.split("/")[0] in benchmark.charted}
    draw_chart(benchmark.title, charted, reference, picture)
    protocol = describe_protocol(metrics, reference, figures)
    rows = make_table(figures, reference)
    settings = [["setting", "value"], *([name, str(value)] for name, value in metrics["settings"].items())]
    tables = ["\n".join(markdown_table(table)) for table in (rows, settings)]
    parts = [f"# {benchmark.title}", *protocol, f"![rates]({picture.name})", *tables]
    write_text(output, "\n\n".join(parts) + "\n")
    wrong = find_wrong_answers(benchmark, metrics, metrics_path.with_name("scored.jsonl"), image_root)
    write_text(page, render_page(benchmark.title, protocol, picture.read_bytes(), rows, wrong))
    return page


def read_reference(path: Path | None) -> dict[str, dict[str, float]]:
    """
    Reads published figures, `{"name": {"metric": fraction}}`; without a path there are none.

    Raises:
        EvaluationError: if the file is missing or not of that form.
    """
    if path is None:
        return {}
    reference = read_json(path)
    try:
        rates = [rate for figures in reference.values() for name, rate in figures.items() if name != RULE]
    except AttributeError:
        raise EvaluationError(f'{path} must hold {{"name": {{"metric": fraction}}}}.') from None
    bad = [rate for rate in rates if not isinstance(rate, int | float) or not 0 <= rate <= 1]
    if bad:
        raise EvaluationError(f"{path}: {bad[0]!r} is no fraction between 0 and 1. Write 41.5 % as 0.415.")
    return reference


def collect_figures(metrics: dict[str, Any]) -> dict[str, Figure]:
    """Returns metric name → figure of every rate, nested names joined by a slash."""
    figures = {"accuracy": Figure.of(metrics)}
    figures |= {name: Figure.of(rate) for name, rate in metrics.get("steps", {}).items()}
    for setting, dimensions in (metrics.get("four_dimensional") or {}).items():
        figures[f"{setting}/score"] = Figure(dimensions["score"])
        for name in ("IK", "IG", "CM", "RM"):
            figures[f"{setting}/{name}"] = Figure(dimensions[name]["rate"], str(dimensions[name]["count"]))
    figures |= {f"domains/{name}": Figure(rate) for name, rate in metrics.get("domains", {}).items()}
    groups = {name: metrics.get(name, {}) for name in ("problem_version", "text_only", "subject", "question_type")}
    groups |= {f"subfield/{subject}": fields for subject, fields in metrics.get("subfield", {}).items()}
    groups |= metrics.get("groups", {})
    for group, rates in groups.items():
        figures |= {f"{group}/{name}": Figure.of(rate) for name, rate in rates.items()}
    return figures


def make_table(figures: dict[str, Figure], reference: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Returns the rows of the table of all figures, the first one its header."""
    rows = [["metric", "this run", "95 % interval", "count", *reference]]
    for name, figure in figures.items():
        interval = "" if figure.interval is None else " to ".join(map(percent, figure.interval))
        others = [percent(published.get(name)) for published in reference.values()]
        rows.append([name, percent(figure.rate), interval, figure.count, *others])
    return rows


def describe_protocol(
    metrics: dict[str, Any], reference: dict[str, dict[str, Any]], shown: Collection[str]
) -> list[str]:
    """
    Says how the figures were made, and the published ones where that is known.

    Args:
        metrics (`dict[str, Any]`):
            What `score` wrote.
        reference (`dict[str, dict[str, Any]]`):
            Published figures given by the user.
        shown (`Collection[str]`):
            Names of the figures of this run.

    Returns:
        Paragraphs in Markdown without more than bold words.
    """
    rule, llm = metrics["extraction"], metrics["settings"].get("extraction_llm")
    lines = [
        f"{metrics['answered']:,} of {metrics['items']:,} items answered ({metrics['coverage']:.2%}); "
        f"{metrics['empty']:,} replies are empty. A missing response counts as wrong.",
        f"Prompt: {metrics['prompt'] or 'not recorded'}. Extraction: {PROTOCOLS.get(rule, rule)}"
        + (f", by the language model {llm}." if llm else ", without a language model."),
    ]
    counts = metrics["settings"].get("extractions")
    if counts:
        lines.append("Extractions: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()) + ".")
    judge = metrics["judge_settings"]
    lines.append(f"Judge: {metrics['judge']}" + (f" ({judge})." if judge else "."))
    asks_llm = "official" in BENCHMARKS[metrics["benchmark"]].llm_rules
    if rule == "final" or (rule == "official" and not llm and asks_llm):
        lines.append(
            "**This is not the official protocol**, whose extraction needs a language model: do not compare these "
            "figures with published ones."
        )
    if metrics["partial"]:
        lines.append("**Partial run**: these figures do not stand for the whole benchmark.")
    if "four_dimensional" in metrics and metrics["four_dimensional"] is None:
        lines.append("The four dimensions are withheld, because missing responses would falsify them.")
    if reference:
        made = [f"{name} ({RULE}: {figures.get(RULE, 'not known')})" for name, figures in reference.items()]
        lines.append(f"The figures of {', '.join(made)} were given by the user and not measured here.")
        unused = [
            f"{metric} of {name}"
            for name, rates in reference.items()
            for metric in rates
            if metric not in shown and metric != RULE
        ]
        if unused:
            lines.append(f"Not shown, since this run has no such figure: {', '.join(unused)}.")
    return lines


def draw_chart(title: str, figures: dict[str, Figure], reference: dict[str, dict[str, Any]], path: Path) -> None:
    """
    Draws rates as horizontal bars with their intervals, and published ones as marks.

    Args:
        title (`str`):
            Name of the benchmark.
        figures (`dict[str, Figure]`):
            What is to be drawn; figures without a rate are left out.
        reference (`dict[str, dict[str, Any]]`):
            Published figures given by the user.
        path (`Path`):
            The PNG.
    """
    shown = {name: figure for name, figure in figures.items() if figure.rate is not None}
    with chart(path, figsize=(9, 1.2 + 0.27 * max(len(shown), 1))) as (axis,):
        places = range(len(shown))
        axis.barh(places, [figure.rate for figure in shown.values()], 0.7, color="tab:blue", alpha=0.7)
        for place, figure in zip(places, shown.values(), strict=True):
            end = figure.rate
            if figure.interval:
                axis.hlines(place, *figure.interval, color="black", linewidth=1)
                end = figure.interval[1]
            axis.text(end + 0.01, place, f"{figure.rate:.1%}", va="center", fontsize=7)
        for name, published in reference.items():
            marks = [(published[metric], place) for place, metric in enumerate(shown) if metric in published]
            axis.plot(*zip(*marks, strict=True), "D", markersize=4, label=name) if marks else None
        axis.set_yticks(list(places), [name.replace("/", ": ") for name in shown], fontsize=7)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.08)
        axis.set_title(f"{title}, with 95 % intervals", fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
