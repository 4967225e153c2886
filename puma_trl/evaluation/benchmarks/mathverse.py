"""
MathVerse (https://huggingface.co/papers/2403.14624): data, prompts, extraction and aggregates by the definitions of the
official repository, ZrrSkywalker/MathVerse.
"""

from collections import defaultdict
from typing import Any

from ...errors import EvaluationError
from ..answers import final_answer, puma_mathverse
from ..rates import group_rates, rate


NAME = "mathverse"
TITLE = "MathVerse"
HUB_ID = "AI4Math/MathVerse"
# The Hub data set has one configuration per split, of the same name.
CONFIG_IS_SPLIT = True
ARCHIVE = "images.zip"
ID = "sample_index"
DUPLICATES = "The splits testmini and testmini_text_only number their rows separately: score them one at a time."
IMAGE_COLUMNS = ("image",)
COLUMNS = ("sample_index", "problem_version", "question_type", "answer", "metadata")
PROMPT_COLUMNS = {"official": ("query_wo",), "math_puma": ("query_cot",)}
# Metrics that an incomplete run would falsify.
HEADLINE = ()
EXTRACTION_COLUMNS = {}
DEFAULT_EXTRACTION = "final"  # the official extraction needs a language model
TEXT_ONLY = "Text Only"
VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only", TEXT_ONLY)


def check_items(items: list[dict[str, Any]], allow_partial: bool) -> None:
    """
    Checks what the aggregates need.

    Raises:
        EvaluationError: if a problem version is unknown or the metadata lacks subject or subfield.
    """
    for item in items:
        if item["problem_version"] not in VERSIONS:
            raise EvaluationError(
                f"Item {item[ID]} has `problem_version` {item['problem_version']!r}; expected one of {VERSIONS}."
            )
        metadata = item["metadata"]
        if not isinstance(metadata, dict) or not metadata.get("subject") or not metadata.get("subfield"):
            raise EvaluationError(f"Item {item[ID]}: `metadata` must hold `subject` and `subfield`, not {metadata!r}.")


def build_prompt(item: dict[str, Any], variant: str) -> str:
    """Returns the prompt: `query_wo`, the official leaderboard's, or `query_cot`, which the original project sends."""
    return item[PROMPT_COLUMNS[variant][0]]


def extract(item: dict[str, Any], reply: str | None, rule: str) -> str | None:
    """
    Extracts the answer from a reply without a language model.

    Args:
        item (`dict[str, Any]`):
            The item as published.
        reply (`str`, *optional*):
            What the model said; `None` is an empty reply.
        rule (`str`):
            `"official"`, the trimmed reply without a leading "Extracted Answer: ", `"math_puma"` or `"final"`.

    Returns:
        The extraction, or `None` where the `final` rule finds nothing.
    """
    reply = reply or ""
    if rule == "math_puma":
        return puma_mathverse(reply)
    if rule == "final":
        return final_answer(reply, "choice" if item["question_type"] == "multi-choice" else "text")
    return clean_llm_extraction(reply, rule)


def needs_llm(item: dict[str, Any], reply: str | None) -> bool:
    """Returns whether the official extraction asks a language model about this reply: always, unless it is empty."""
    return bool(reply and reply.strip())


def clean_llm_extraction(text: str, rule: str) -> str:
    """Returns a language model's extraction as the official script takes it: without its own prefix, trimmed."""
    return text.lstrip().removeprefix("Extracted Answer: ").strip()


def normalise(item: dict[str, Any], extraction: Any) -> Any:
    """Returns the extraction itself: the comparison with the gold answer is the judge's work."""
    return extraction


def is_correct(item: dict[str, Any], normalised: Any) -> bool:
    """Returns whether the extraction equals the gold answer as it stands, untrimmed (the official quick match)."""
    return normalised == item["answer"]


def compute_metrics(items: list[dict[str, Any]], correct: list[bool]) -> dict[str, Any]:
    """
    Computes the micro accuracies: pooled over the five versions with a picture, per version, subject, subfield within
    its subject, and question type; Text Only rows enter `text_only` alone.

    Args:
        items (`list[dict[str, Any]]`):
            All items.
        correct (`list[bool]`):
            Whether each item was answered correctly.

    Returns:
        `dict[str, Any]` with rates as fractions.
    """
    pairs = list(zip(items, correct, strict=True))
    pooled = [(item, right) for item, right in pairs if item["problem_version"] != TEXT_ONLY]
    text_only = [(item, right) for item, right in pairs if item["problem_version"] == TEXT_ONLY]
    subfields = defaultdict(list)
    for item, right in pooled:
        subfields[item["metadata"]["subject"]].append((item["metadata"]["subfield"], right))
    return {
        **rate(right for _, right in pooled),
        "problem_version": group_rates((item["problem_version"], right) for item, right in pooled),
        "subject": group_rates((item["metadata"]["subject"], right) for item, right in pooled),
        "subfield": {subject: group_rates(rows) for subject, rows in subfields.items()},
        "question_type": group_rates((item["question_type"], right) for item, right in pooled),
        "text_only": group_rates((item["problem_version"], right) for item, right in text_only),
    }
