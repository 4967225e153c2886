"""
MathVerse (https://huggingface.co/papers/2403.14624): data, prompts, extraction and aggregates by the definitions of
the official repository, ZrrSkywalker/MathVerse.
"""

from collections import defaultdict
from typing import Any

from ...errors import EvaluationError
from ..answers import final_answer, parse_options, puma_mathverse, strip_unit
from ..rates import group_rates, rate
from .benchmark import Benchmark


TEXT_ONLY = "Text Only"
VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only", TEXT_ONLY)


class MathVerse(Benchmark):
    """
    MathVerse. An extraction is compared with the gold answer as it stands (the official quick match); what is no exact
    match is a judge's work.
    """

    name = "mathverse"
    title = "MathVerse"
    hub_id = "AI4Math/MathVerse"
    config_is_split = True
    id_column = "sample_index"
    duplicates = "The splits testmini and testmini_text_only number their rows separately: score them one at a time."
    image_columns = ("image",)
    columns = ("sample_index", "problem_version", "question_type", "answer", "metadata")
    charted = ("accuracy", "problem_version", "text_only", "subject", "question_type")
    prompt_columns = {"official": ("query_wo",), "math_puma": ("query_cot",)}

    def check_items(self, items: list[dict[str, Any]], allow_partial: bool) -> None:
        """Checks what the aggregates need: a known problem version, subject and subfield."""
        for item in items:
            where = f"Item {self.item_id(item)}"
            if item["problem_version"] not in VERSIONS:
                raise EvaluationError(
                    f"{where} has `problem_version` {item['problem_version']!r}; expected one of {VERSIONS}."
                )
            metadata = item["metadata"]
            if not isinstance(metadata, dict) or not metadata.get("subject") or not metadata.get("subfield"):
                raise EvaluationError(f"{where}: `metadata` must hold `subject` and `subfield`, not {metadata!r}.")

    def describe(self, item: dict[str, Any]) -> str:
        """Returns a line for people: version, subject and subfield."""
        metadata = item["metadata"]
        return f"Item {self.item_id(item)}: {item['problem_version']}, {metadata['subject']}, {metadata['subfield']}"

    def show_question(self, item: dict[str, Any]) -> str:
        """Returns the full question where the data holds it."""
        return item.get("question_for_eval") or item.get("question") or ""

    def build_prompt(self, item: dict[str, Any], variant: str) -> str:
        """Returns `query_wo`, the official leaderboard's prompt, or `query_cot`, which the original project sends."""
        return item[self.prompt_columns[variant][0]]

    def extract(self, item: dict[str, Any], reply: str | None, rule: str) -> str | None:
        """
        Extracts the answer without a language model (see [`Benchmark.extract`]): by the rule `"official"` the trimmed
        reply without a leading "Extracted Answer: ".
        """
        reply = reply or ""
        if rule == "math_puma":
            return puma_mathverse(reply)
        if rule == "final":
            if item["question_type"] == "multi-choice":
                return final_answer(reply, "choice", self.options(item))
            answer = final_answer(reply, "text")
            return answer and strip_unit(answer)  # nearly all gold answers are values without one
        return self.clean_llm_extraction(reply, rule)

    def options(self, item: dict[str, Any]) -> tuple[str, ...]:
        """Returns the texts of an item's options from A on, which stand in its question; empty where they do not."""
        texts = (item.get(name) for name in ("question_for_eval", "question", "query_wo", "query_cot"))
        return next((found for text in texts if text and (found := parse_options(text))), ())

    def needs_llm(self, item: dict[str, Any], reply: str | None) -> bool:
        """Returns whether the official extraction asks a language model about a reply: always, unless it is empty."""
        return bool(reply and reply.strip())

    def clean_llm_extraction(self, text: str, rule: str) -> str:
        """Returns a language model's extraction as the official script takes it: without its own prefix, trimmed."""
        return text.lstrip().removeprefix("Extracted Answer: ").strip()

    def judge_question(self, item: dict[str, Any]) -> str:
        """
        Returns the question that a judge reads: the full one, because `question` is empty for Vision Only.

        Raises:
            EvaluationError: if the item holds none.
        """
        question = self.show_question(item)
        if not question:
            raise EvaluationError(
                f"Item {self.item_id(item)} has neither `question_for_eval` nor `question`, which the judge reads. "
                "Use the Hub's copy of the data, which has the former."
            )
        return question

    def compute_metrics(self, items: list[dict[str, Any]], correct: list[bool]) -> dict[str, Any]:
        """
        Computes the micro accuracies: pooled over the five versions with a picture, per version, subject, subfield
        within its subject, and question type. Text Only rows enter `text_only` alone, and the pooled accuracy where
        there are no others.
        """
        pairs = list(zip(items, correct, strict=True))
        pooled = [(item, right) for item, right in pairs if item["problem_version"] != TEXT_ONLY]
        text_only = [(item, right) for item, right in pairs if item["problem_version"] == TEXT_ONLY]
        subfields = defaultdict(list)
        for item, right in pooled:
            subfields[item["metadata"]["subject"]].append((item["metadata"]["subfield"], right))
        return {
            # alone, the text-only split has no other figure
            **rate(right for _, right in pooled or text_only),
            "problem_version": group_rates((item["problem_version"], right) for item, right in pooled),
            "subject": group_rates((item["metadata"]["subject"], right) for item, right in pooled),
            "subfield": {subject: group_rates(rows) for subject, rows in subfields.items()},
            "question_type": group_rates((item["question_type"], right) for item, right in pooled),
            "text_only": group_rates((item["problem_version"], right) for item, right in text_only),
        }
