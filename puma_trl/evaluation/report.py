"""`report`: `metrics.json` → `report.md` and a PNG, beside published figures where the user gives them."""

from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from ..record.charts import chart
from .benchmarks import BENCHMARKS
from .files import read_json, write_text


PROTOCOLS = {
    "official": "the official rule",
    "math_puma": "the rule of the original Math-PUMA project",
    "final": "the `final` rule of this project (last boxed expression, answer phrase, option letter or number)",
    "given": "extractions given in the responses file",
}
# What `score` writes for every benchmark and the report reads.
NEEDED = ("accuracy", "correct", "total", "items", "answered", "coverage", "empty", "partial")
NEEDED += ("extraction", "judge", "judge_settings", "prompt", "settings")


def run_report(metrics_path: Path, output: Path, reference_path: Path | None) -> Path:
    """
    Runs the subcommand.

    Args:
        metrics_path (`Path`):
            What `score` wrote.
        output (`Path`):
            The Markdown file; the chart is written beside it.
        reference_path (`Path`, *optional*):
            json of published figures to show beside ours, `{"name": {"metric": fraction}}`; none are built in. A
            metric is named as in the report's tables, such as `"accuracy"`, `"S1"` or `"problem_version/Text Lite"`.

    Returns:
        The path of the report.

    Raises:
        EvaluationError: if a file is missing or not of its form.
    """
    metrics = read_json(metrics_path)
    if not isinstance(metrics, dict) or metrics.get("benchmark") not in BENCHMARKS:
        raise EvaluationError(f"{metrics_path} is no metrics file of `score`: it names no known `benchmark`.")
    missing = [name for name in NEEDED if name not in metrics]
    if missing:
        raise EvaluationError(f"{metrics_path} lacks {', '.join(missing)}. Write it with `score` again.")
    reference = read_reference(reference_path)
    values = flatten(metrics)
    picture = output.with_suffix(".png")
    write_text(output, "\n".join(_report_lines(metrics, values, reference, picture.name)) + "\n")
    draw_chart(BENCHMARKS[metrics["benchmark"]].title, values, reference, picture)
    return output


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
        rates = [rate for figures in reference.values() for rate in figures.values()]
    except AttributeError:
        raise EvaluationError(f'{path} must hold {{"name": {{"metric": fraction}}}}.') from None
    bad = [rate for rate in rates if not isinstance(rate, int | float) or not 0 <= rate <= 1]
    if bad:
        raise EvaluationError(f"{path}: {bad[0]!r} is no fraction between 0 and 1. Write 41.5 % as 0.415.")
    return reference


def flatten(metrics: dict[str, Any]) -> dict[str, tuple[float | None, str]]:
    """Returns metric name → (rate, counts in words) of every rate, nested names joined by a slash."""
    values: dict[str, tuple[float | None, str]] = {}
    values["accuracy"] = (metrics["accuracy"], f"{metrics['correct']}/{metrics['total']}")
    for name in ("S1", "S2", "S3"):
        if name in metrics:
            values[name] = (metrics[name], "")
    for setting, dimensions in (metrics.get("four_dimensional") or {}).items():
        values[f"{setting}/score"] = (dimensions["score"], "")
        for name in ("IK", "IG", "CM", "RM"):
            values[f"{setting}/{name}"] = (dimensions[name]["rate"], str(dimensions[name]["count"]))
    for name, rate in metrics.get("domains", {}).items():
        values[f"domains/{name}"] = (rate, "")
    groups = {name: metrics.get(name, {}) for name in ("problem_version", "text_only", "subject", "question_type")}
    groups |= {f"subfield/{subject}": fields for subject, fields in metrics.get("subfield", {}).items()}
    groups |= metrics.get("groups", {})
    for group, rates in groups.items():
        for name, rate in rates.items():
            values[f"{group}/{name}"] = (rate["accuracy"], f"{rate['correct']}/{rate['total']}")
    return values


def _report_lines(
    metrics: dict[str, Any],
    values: dict[str, tuple[float | None, str]],
    reference: dict[str, dict[str, float]],
    picture: str,
) -> list[str]:
    settings = metrics["settings"]
    lines = [f"# {BENCHMARKS[metrics['benchmark']].title}", "", *_protocol_lines(metrics), ""]
    if settings:
        lines += ["| setting | value |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in settings.items()] + [""]
    lines += [f"![rates]({picture})", ""]
    lines.append(" | ".join(["| metric", "this run", "count", *reference]) + " |")
    lines.append("|---" * (3 + len(reference)) + "|")
    for name, (rate, count) in values.items():
        others = [_percent(figures.get(name)) for figures in reference.values()]
        lines.append(" | ".join([f"| {name}", _percent(rate), count, *others]) + " |")
    if reference:
        lines += ["", f"The figures of {', '.join(reference)} were given by the user and not measured here."]
    return lines


def _protocol_lines(metrics: dict[str, Any]) -> list[str]:
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
    official_needs_llm = BENCHMARKS[metrics["benchmark"]].official_needs_llm
    if rule == "final" or (rule == "official" and not llm and official_needs_llm):
        lines.append(
            "**This is not the official protocol**, whose extraction needs a language model: do not compare these "
            "figures with published ones."
        )
    if metrics["partial"]:
        lines.append("**Partial run**: these figures do not stand for the whole benchmark.")
    if "four_dimensional" in metrics and metrics["four_dimensional"] is None:
        lines.append("The four dimensions are withheld, because missing responses would falsify them.")
    return lines


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{rate:.2%}"


def draw_chart(
    title: str, values: dict[str, tuple[float | None, str]], reference: dict[str, dict[str, float]], path: Path
) -> None:
    """
    Draws the rates as horizontal bars, a group per metric.

    Args:
        title (`str`):
            Name of the benchmark.
        values (`dict[str, tuple[float | None, str]]`):
            What [`flatten`] returned; metrics without a rate are left out.
        reference (`dict[str, dict[str, float]]`):
            Published figures given by the user.
        path (`Path`):
            The PNG.
    """
    names = [name for name, (rate, _) in values.items() if rate is not None]
    series = {"this run": {name: values[name][0] for name in names}} | reference
    height = 0.8 / len(series)
    with chart(path, figsize=(9, 1.5 + 0.22 * max(len(names), 1) * len(series))) as (axis,):
        for index, (label, figures) in enumerate(series.items()):
            places = [place + index * height for place, name in enumerate(names) if name in figures]
            axis.barh(places, [figures[name] for name in names if name in figures], height, label=label)
        axis.set_yticks([place + 0.4 - height / 2 for place in range(len(names))], names, fontsize=7)
        axis.invert_yaxis()
        axis.set_xlim(0, 1)
        axis.set_title(title)
        axis.grid(axis="x", alpha=0.3)
        if reference:
            axis.legend(fontsize=8)
