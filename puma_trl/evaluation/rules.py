"""`score --rules`: the same replies by several extraction rules, so that one sees how much of a score is the rule."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..record.intervals import wilson
from .benchmarks import Benchmark
from .files import write_json, write_text
from .judging import Judge
from .rates import markdown_table, percent
from .scoring import Replies


MAX_EXAMPLES = 10
MAX_TEXT = 200  # characters of a reply's end in an example
GIVEN = "given"


def compare_rules(replies: Replies, rules: Sequence[str], judge: Judge | None) -> dict[str, Any]:
    """
    Scores the same replies by several rules.

    Args:
        replies ([`Replies`]):
            What is scored. Extractions that rows carry make a rule of their own, `"given"`, and are not used by the
            others.
        rules (`Sequence[str]`):
            Some of `RULES`.
        judge (`Callable`, *optional*):
            What [`make_judge`] returned.

    Returns:
        `{"rules": {rule: {correct, total, accuracy, interval}}, "items", "differ": number of items on which rules
        differ, "differences": rows of these items}`.
    """
    benchmark, items, responses = replies.benchmark, replies.items, replies.responses
    bare = {key: {name: row[name] for name in row if name != "extraction"} for key, row in responses.items()}
    ways = {rule: (replace(replies, responses=bare), rule) for rule in rules}
    if any("extraction" in row for row in responses.values()):
        ways[GIVEN] = replies, benchmark.default_extraction
    scored = {}
    for name, (rows, rule) in ways.items():
        scored[name] = rows.score(rule)
        if judge:
            judge(items, rows.responses, scored[name])
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


def run_rules(replies: Replies, output: Path, rules: Sequence[str], judge: Judge | None = None) -> str:
    """
    Runs what `score` does beyond scoring where several rules are asked for.

    Args:
        replies ([`Replies`]):
            What is scored.
        output (`Path`):
            The metrics file, beside which `rules.json` and `rules.md` are written.
        rules (`Sequence[str]`):
            Some of `RULES`.
        judge (`Callable`, *optional*):
            What [`make_judge`] returned.

    Returns:
        The table, to be printed.

    Raises:
        EvaluationError: if the judge cannot be asked.
    """
    rules = list(dict.fromkeys(rules))
    comparison = compare_rules(replies, rules, judge)
    return write_comparison(comparison, output, _note_unasked(replies.benchmark, rules))


def _note_unasked(benchmark: Benchmark, rules: list[str]) -> list[str]:
    """Returns the lines that name the rules of which only the steps without a language model were taken."""
    short = [rule for rule in rules if rule in benchmark.llm_rules]
    if not short:
        return []
    return [
        "",
        f"Without its language model: {', '.join(short)}. Replies that its direct steps leave to the model count as "
        "wrong here. `eval extract --llm NAME` asks it; score its file to see the whole rule as `given`.",
    ]


def write_comparison(comparison: dict[str, Any], output: Path, notes: Sequence[str] = ()) -> str:
    """
    Writes `rules.json` and `rules.md` beside the metrics.

    Returns:
        The table, as it is printed.
    """
    rows = [["rule", "accuracy", "95 % interval", "correct"]]
    for rule, figures in comparison["rules"].items():
        interval = " to ".join(map(percent, figures["interval"] or (None,)))
        rows.append([rule, percent(figures["accuracy"]), interval, f"{figures['correct']}/{figures['total']}"])
    differ = f"The rules differ on {comparison['differ']:,} of {comparison['items']:,} items."
    lines = [*markdown_table(rows), "", differ, *notes]
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
