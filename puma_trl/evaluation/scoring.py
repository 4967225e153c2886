"""`score`: from items and responses to `metrics.json` and `scored.jsonl`."""

import os
import sys
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from .benchmarks import Benchmark
from .files import write_json, write_jsonl
from .items import load_items
from .judging import make_judge
from .responses import read_responses, read_settings
from .settings import ItemSource, LLMSettings


def score_responses(
    benchmark: Benchmark,
    items: list[dict[str, Any]],
    responses: dict[str, dict[str, Any]],
    rule: str,
    null_is_none: bool = False,
) -> list[dict[str, Any]]:
    """
    Scores every item by the benchmark's own comparison or the judgement that its row carries.

    Args:
        benchmark ([`Benchmark`]):
            The benchmark.
        items (`list[dict[str, Any]]`):
            Its items.
        responses (`dict[str, dict[str, Any]]`):
            Id as text → row, as [`read_responses`] returns them.
        rule (`str`):
            Extraction rule for rows that carry no `extraction`.
        null_is_none (`bool`, *optional*, defaults to `False`):
            Whether a carried `"extraction": null` was written by the `final` rule and so means that it found nothing.
            By the official rule null is an extraction like any other.

    Returns:
        One row `{"id", "extraction", "normalised", "answer", "correct"}` per item, in their order, null where there is
        none. A missing response is wrong.
    """
    return [_score_item(benchmark, item, responses.get(benchmark.item_id(item)), rule, null_is_none) for item in items]


def _score_item(
    benchmark: Benchmark, item: dict[str, Any], response: dict[str, Any] | None, rule: str, null_is_none: bool
) -> dict[str, Any]:
    extraction, normalised, correct = None, None, False
    if response is not None:
        carried = "extraction" in response
        extraction = response["extraction"] if carried else benchmark.extract(item, response.get("response"), rule)
        if extraction is not None or (carried and not null_is_none):
            normalised = benchmark.normalise(item, extraction)
            correct = benchmark.is_correct(item, normalised)
        correct = bool(response.get("judgement", correct))
    return {
        "id": item[benchmark.id_column],
        "extraction": extraction,
        "normalised": normalised,
        "answer": item["answer"],
        "correct": correct,
    }


def choose_rule(
    benchmark: Benchmark,
    extraction: str | None,
    settings: dict[str, Any],
    responses: dict[str, dict[str, Any]],
) -> tuple[str, str]:
    """
    Chooses the extraction rule and names where the extractions come from.

    Args:
        benchmark ([`Benchmark`]):
            The benchmark.
        extraction (`str`, *optional*):
            What the user asked for.
        settings (`dict[str, Any]`):
            The settings beside the responses file.
        responses (`dict[str, dict[str, Any]]`):
            Id as text → row.

    Returns:
        The rule for rows without `extraction`, and the name for `metrics.json`: the rule's, or, where every row
        carries an extraction and none was asked for, the rule that made them, `"given"` if that is unknown.
    """
    rule = extraction or benchmark.default_extraction
    all_carry = bool(responses) and all("extraction" in row for row in responses.values())
    return rule, settings.get("extraction", "given") if all_carry and extraction is None else rule


def compute_metrics(
    benchmark: Benchmark,
    items: list[dict[str, Any]],
    responses: dict[str, dict[str, Any]],
    scored: list[dict[str, Any]],
    allow_partial: bool,
) -> dict[str, Any]:
    """
    Computes the aggregates, rates as unrounded fractions.

    Args:
        benchmark ([`Benchmark`]):
            The benchmark.
        items (`list[dict[str, Any]]`):
            Its items.
        responses (`dict[str, dict[str, Any]]`):
            Id as text → row.
        scored (`list[dict[str, Any]]`):
            What [`score_responses`] returned.
        allow_partial (`bool`):
            Whether headline scores of an incomplete run are computed, labelled by `"partial": true`.

    Returns:
        Coverage (`items`, `answered`, `coverage`, `empty`, `given_extractions`, `given_judgements`, `partial`) and the
        benchmark's own metrics. Headline scores that missing responses would falsify are null, unless `allow_partial`.
    """
    metrics = {
        "items": len(items),
        "answered": len(responses),
        "coverage": len(responses) / len(items),
        "empty": sum("response" in row and not (row["response"] or "").strip() for row in responses.values()),
        "given_extractions": sum("extraction" in row for row in responses.values()),
        "given_judgements": sum("judgement" in row for row in responses.values()),
        **benchmark.compute_metrics(items, [row["correct"] for row in scored]),
    }
    unanswered = len(items) - len(responses)
    metrics["partial"] = unanswered > 0 or metrics.get("incomplete_groups", 0) > 0
    if unanswered and not allow_partial:
        for name in benchmark.headline:
            metrics[name] = None
            print(
                f"{unanswered} of {len(items)} items have no response, which would falsify `{name}`: it is withheld "
                "(null). Finish the run, or pass --allow_partial to count them as wrong.",
                file=sys.stderr,
            )
    return metrics


def run_score(
    source: ItemSource,
    responses_path: Path,
    output: Path,
    rule: str | None = None,
    judge_name: str = "exact",
    llm: LLMSettings | None = None,
    allow_partial: bool = False,
) -> dict[str, Any]:
    """
    Runs the subcommand: reads, scores, writes `metrics.json` and, beside it, `scored.jsonl`.

    Args:
        source ([`ItemSource`]):
            The items.
        responses_path (`Path`):
            The responses file.
        output (`Path`):
            The metrics file.
        rule (`str`, *optional*):
            Extraction rule, one of `RULES`, for rows without `extraction`. Defaults to the benchmark's.
        judge_name (`str`, *optional*, defaults to `"exact"`):
            One of `JUDGES`.
        llm ([`LLMSettings`], *optional*):
            The language model of the judge `"openai"`.
        allow_partial (`bool`, *optional*, defaults to `False`):
            Whether headline scores of incomplete runs are computed, labelled as partial.

    Returns:
        The metrics.

    Raises:
        EvaluationError: if input is bad.
    """
    benchmark = source.benchmark
    judge = make_judge(judge_name, benchmark, llm, output.with_name("judgements.jsonl"))
    columns = benchmark.columns + benchmark.extraction_columns.get(rule, ())
    items = load_items(benchmark, source.data, source.split, columns)
    benchmark.check_items(items, allow_partial)
    responses = read_responses(responses_path, benchmark, items)
    if not responses:
        raise EvaluationError(f"{responses_path} holds no responses. Generate them first, or name another file.")
    settings = read_settings(responses_path)
    used_rule, extraction = choose_rule(benchmark, rule, settings, responses)
    scored = score_responses(benchmark, items, responses, used_rule, settings.get("extraction") == "final")
    judge_settings = judge(items, responses, scored) if judge else None
    metrics = {
        "benchmark": benchmark.name,
        "extraction": extraction,
        "judge": judge_name,
        "prompt": settings.get("prompt"),
        **compute_metrics(benchmark, items, responses, scored, allow_partial),
        "judge_settings": judge_settings,
        "settings": settings,
        # from the folder of the metrics, which may be moved as a whole
        "files": {
            "data": source.data,
            "split": source.split,
            "responses": os.path.relpath(responses_path, output.parent),
        },
    }
    write_jsonl(output.with_name("scored.jsonl"), scored)
    write_json(output, metrics)
    return metrics
