"""`score --rules`: the same replies by several extraction rules, so that one sees how much of a score is the rule."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..record.intervals import wilson
from .benchmarks import Benchmark, MathVista
from .files import write_json, write_text
from .items import load_items
from .judging import Judge, make_judge
from .responses import read_responses, read_settings
from .scoring import score_responses
from .settings import ItemSource, LLMSettings


MAX_EXAMPLES = 10
MAX_TEXT = 200  # characters of a reply's end in an example
GIVEN = "given"


def compare_rules(
    benchmark: Benchmark,
    items: list[dict[str, Any]],
    responses: dict[str, dict[str, Any]],
    rules: list[str],
    judge: Judge | None,
    null_is_none: bool = False,
) -> dict[str, Any]:
    """
    Scores the same replies by several rules.

    Args:
        benchmark ([`Benchmark`]):
            The benchmark.
        items (`list[dict[str, Any]]`):
            Its items.
        responses (`dict[str, dict[str, Any]]`):
            Id as text → row. Extractions that rows carry make a rule of their own, `"given"`, and are not used by the
            others.
        rules (`list[str]`):
            Some of `RULES`.
        judge (`Callable`, *optional*):
            What [`make_judge`] returned.
        null_is_none (`bool`, *optional*, defaults to `False`):
            As of [`score_responses`].

    Returns:
        `{"rules": {rule: {correct, total, accuracy}}, "items", "differ": number of items on which rules differ,
        "differences": rows of these items}`.
    """
    bare = {key: {name: row[name] for name in row if name != "extraction"} for key, row in responses.items()}
    carried = any("extraction" in row for row in responses.values())
    scored = {}
    for rule in [*rules, *([GIVEN] if carried else [])]:
        rows = responses if rule == GIVEN else bare
        used = benchmark.default_extraction if rule == GIVEN else rule
        scored[rule] = score_responses(benchmark, items, rows, used, null_is_none)
        if judge:
            judge(items, rows, scored[rule])
    figures = {}
    for rule, rows in scored.items():
        metrics = benchmark.compute_metrics(items, [row["correct"] for row in rows])
        figures[rule] = {name: metrics[name] for name in ("correct", "total", "accuracy")}
        figures[rule]["interval"] = wilson(metrics["correct"], metrics["total"])
    differences = [
        {
            "id": item[benchmark.id_column],
            "answer": item["answer"],
            "extractions": {rule: rows[position]["extraction"] for rule, rows in scored.items()},
            "correct": {rule: rows[position]["correct"] for rule, rows in scored.items()},
            "response": responses.get(benchmark.item_id(item), {}).get("response"),
        }
        for position, item in enumerate(items)
        if len({rows[position]["correct"] for rows in scored.values()}) > 1
    ]
    return {"rules": figures, "items": len(items), "differ": len(differences), "differences": differences}


def run_rules(
    source: ItemSource,
    responses_path: Path,
    output: Path,
    rules: Sequence[str],
    judge_name: str = "exact",
    llm: LLMSettings | None = None,
) -> str:
    """
    Runs what `score` does beyond scoring where several rules are asked for.

    Args:
        source ([`ItemSource`]):
            The items.
        responses_path (`Path`):
            The responses file.
        output (`Path`):
            The metrics file, beside which `rules.json` and `rules.md` are written.
        rules (`Sequence[str]`):
            Some of `RULES`.
        judge_name (`str`, *optional*, defaults to `"exact"`):
            One of `JUDGES`.
        llm ([`LLMSettings`], *optional*):
            The language model of the judge `"openai"`.

    Returns:
        The table, to be printed.

    Raises:
        EvaluationError: if input is bad.
    """
    benchmark, rules = source.benchmark, list(dict.fromkeys(rules))
    judge = make_judge(judge_name, benchmark, llm, output.with_name("judgements.jsonl"))
    columns = sum((benchmark.extraction_columns.get(rule, ()) for rule in rules), benchmark.columns)
    items = load_items(benchmark, source.data, source.split, columns)
    responses = read_responses(responses_path, benchmark, items)
    null_is_none = read_settings(responses_path).get("extraction") == "final"
    comparison = compare_rules(benchmark, items, responses, rules, judge, null_is_none)
    return write_comparison(comparison, output, _note_unasked(benchmark, rules))


def _note_unasked(benchmark: Benchmark, rules: list[str]) -> list[str]:
    """Returns the lines that name the rules of which only the steps without a language model were taken."""
    short = [
        rule for rule in rules if rule == "official" or (rule == "math_puma" and isinstance(benchmark, MathVista))
    ]
    if not benchmark.official_needs_llm or not short:
        return []
    return [
        "",
        f"Without its language model: {', '.join(short)}. Replies that its direct steps leave to the model count as "
        "wrong here. `eval extract --llm NAME` asks it; score its file to see the whole rule as `given`.",
    ]


def write_comparison(comparison: dict[str, Any], output: Path, notes: Sequence[str] = ()) -> str:
    """
    Writes `rules.json` and `rules.md` beside the metrics.

    Args:
        comparison (`dict[str, Any]`):
            What [`compare_rules`] returned.
        output (`Path`):
            The metrics file.
        notes (`Sequence[str]`, *optional*):
            Lines below the table.

    Returns:
        The table, as it is printed.
    """
    lines = ["| rule | accuracy | 95 % interval | correct |", "|---|---|---|---|"]
    for rule, figures in comparison["rules"].items():
        low, high = figures["interval"] or (None, None)
        interval = "–" if low is None else f"{low:.2%} to {high:.2%}"
        accuracy = "–" if figures["accuracy"] is None else f"{figures['accuracy']:.2%}"
        lines.append(f"| {rule} | {accuracy} | {interval} | {figures['correct']}/{figures['total']} |")
    lines += ["", f"The rules differ on {comparison['differ']:,} of {comparison['items']:,} items.", *notes]
    table = "\n".join(lines)
    examples = [line for row in comparison["differences"][:MAX_EXAMPLES] for line in _example(row)]
    write_json(output.with_name("rules.json"), comparison)
    write_text(output.with_name("rules.md"), "\n".join(["# Rules", "", table, "", *examples]) + "\n")
    return table


def _example(row: dict[str, Any]) -> list[str]:
    """Returns the lines of an item on which rules differ: the end of its reply and what each rule takes from it."""
    reply = " ".join((row["response"] or "").split())
    reply = ("…" if len(reply) > MAX_TEXT else "") + reply[-MAX_TEXT:]
    taken = [
        f"- {rule}: `{extraction}` ({'right' if row['correct'][rule] else 'wrong'})"
        for rule, extraction in row["extractions"].items()
    ]
    return [f"## Item {row['id']}: {row['answer']}", "", f"> {reply}", "", *taken, ""]
