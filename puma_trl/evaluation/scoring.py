"""`score`: from items and responses to `metrics.json` and `scored.jsonl`."""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from .benchmarks import Benchmark
from .files import write_json, write_jsonl
from .items import load_items
from .judging import Judge
from .responses import read_responses, read_settings
from .settings import ItemSource


@dataclass(frozen=True)
class Replies:
    """
    The items of a benchmark and what was replied to them.

    Args:
        source ([`ItemSource`]):
            Where the items come from.
        path (`Path`):
            The responses file.
        items (`list[dict[str, Any]]`):
            The items.
        responses (`dict[str, dict[str, Any]]`):
            Id as text → row, as [`read_responses`] returns them.
        settings (`dict[str, Any]`):
            The settings beside the responses file.
    """

    source: ItemSource
    path: Path
    items: list[dict[str, Any]]
    responses: dict[str, dict[str, Any]]
    settings: dict[str, Any]

    @classmethod
    def read(
        cls, source: ItemSource, path: Path, rules: Iterable[str | None] = (), allow_partial: bool = False
    ) -> "Replies":
        """
        Reads items and responses and checks them.

        Args:
            source ([`ItemSource`]):
                Where the items come from.
            path (`Path`):
                The responses file.
            rules (`Iterable[str | None]`, *optional*):
                The extraction rules that will be asked for, whose columns the items must have.
            allow_partial (`bool`, *optional*, defaults to `False`):
                Whether items may be missing that belong to others.

        Raises:
            EvaluationError: if input is bad.
        """
        benchmark = source.benchmark
        columns = sum((benchmark.extraction_columns.get(rule, ()) for rule in rules), benchmark.columns)
        items = load_items(benchmark, source.data, source.split, columns)
        benchmark.check_items(items, allow_partial)
        responses = read_responses(path, benchmark, items)
        if not responses:
            raise EvaluationError(f"{path} holds no responses. Generate them first, or name another file.")
        return cls(source, path, items, responses, read_settings(path))

    @property
    def benchmark(self) -> Benchmark:
        """The benchmark."""
        return self.source.benchmark

    def score(self, rule: str) -> list[dict[str, Any]]:
        """
        Scores every item by the benchmark's own comparison or the judgement that its row carries.

        Returns:
            One row `{"id", "extraction", "normalised", "answer", "correct"}` per item, in their order, null where
            there is none. A missing response is wrong.
        """
        # a carried null of the `final` rule says that it found nothing; by the official rule it is an extraction
        # like any other
        null_is_none = self.settings.get("extraction") == "final"
        benchmark = self.benchmark
        return [
            _score_item(benchmark, item, self.responses.get(benchmark.item_id(item)), rule, null_is_none)
            for item in self.items
        ]


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


def choose_rule(replies: Replies, extraction: str | None) -> tuple[str, str]:
    """
    Chooses the extraction rule and names where the extractions come from.

    Returns:
        The rule for rows without `extraction`, and the name for `metrics.json`: the rule's, or, where every row
        carries an extraction and none was asked for, the rule that made them, `"given"` if that is unknown.
    """
    rule = extraction or replies.benchmark.default_extraction
    all_carry = all("extraction" in row for row in replies.responses.values())
    return rule, replies.settings.get("extraction", "given") if all_carry and extraction is None else rule


def compute_metrics(replies: Replies, scored: list[dict[str, Any]], allow_partial: bool) -> dict[str, Any]:
    """
    Computes the aggregates, rates as unrounded fractions.

    Args:
        replies ([`Replies`]):
            What was scored.
        scored (`list[dict[str, Any]]`):
            What [`Replies.score`] returned.
        allow_partial (`bool`):
            Whether headline scores of an incomplete run are computed, labelled by `"partial": true`.

    Returns:
        Coverage (`items`, `answered`, `coverage`, `empty`, `given_extractions`, `given_judgements`, `partial`) and the
        benchmark's own metrics. Headline scores that missing responses would falsify are null, unless `allow_partial`.
    """
    benchmark, items, responses = replies.benchmark, replies.items, replies.responses
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
    replies: Replies, output: Path, rule: str | None = None, judge: Judge | None = None, allow_partial: bool = False
) -> dict[str, Any]:
    """
    Runs the subcommand: scores, writes `metrics.json` and, beside it, `scored.jsonl`.

    Args:
        replies ([`Replies`]):
            What is scored.
        output (`Path`):
            The metrics file.
        rule (`str`, *optional*):
            Extraction rule, one of `RULES`, for rows without `extraction`. Defaults to the benchmark's.
        judge (`Callable`, *optional*):
            What [`make_judge`] returned.
        allow_partial (`bool`, *optional*, defaults to `False`):
            Whether headline scores of incomplete runs are computed, labelled as partial.

    Returns:
        The metrics.

    Raises:
        EvaluationError: if the judge cannot be asked.
    """
    used_rule, extraction = choose_rule(replies, rule)
    scored = replies.score(used_rule)
    judge_settings = judge(replies.items, replies.responses, scored) if judge else None
    metrics = {
        "benchmark": replies.benchmark.name,
        "extraction": extraction,
        "judge": judge_settings["judge"] if judge_settings else "exact",
        "prompt": replies.settings.get("prompt"),
        **compute_metrics(replies, scored, allow_partial),
        "judge_settings": judge_settings,
        "settings": replies.settings,
        # from the folder of the metrics, which may be moved as a whole
        "files": {
            "data": replies.source.data,
            "split": replies.source.split,
            "responses": os.path.relpath(replies.path, output.parent),
        },
    }
    write_jsonl(output.with_name("scored.jsonl"), scored)
    write_json(output, metrics)
    return metrics
