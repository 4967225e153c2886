"""
MathVista (https://huggingface.co/papers/2310.02255): data, prompts, extraction, normalisation and aggregates by the
definitions of the official repository, lupantech/MathVista.
"""

import re
import string
from typing import Any

from ...errors import EvaluationError
from ..answers import final_answer
from ..rates import group_rates, rate
from .benchmark import Benchmark


GROUPS = ("question_type", "answer_type", "language", "source", "category", "task", "context", "grade", "skills")
TYPED_GROUPS = ("question_type", "answer_type")

LETTER_HINT = "Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end."
TYPE_HINT = "Please answer the question requiring {kind} and provide the final {what}, e.g., {examples}, at the end."
GENERIC_HINT = "Please answer the question and provide the final answer at the end."
# (answer_type, precision) -> what the official hint says
TYPE_HINTS = {
    ("integer", None): ("an integer answer", "value", "1, 2, 3"),
    ("float", 1): ("a floating-point number with one decimal place", "value", "1.2, 1.3, 1.4"),
    ("float", 2): ("a floating-point number with two decimal places", "value", "1.23, 1.34, 1.45"),
    ("list", None): ("a Python list as an answer", "list", "[1, 2, 3], [1.2, 1.3, 1.4]"),
}


class MathVista(Benchmark):
    """MathVista. The normalised extraction is compared with the gold answer as strings."""

    name = "mathvista"
    title = "MathVista"
    hub_id = "AI4Math/MathVista"
    id_column = "pid"
    image_columns = ("decoded_image", "image")
    charted = ("accuracy", "question_type", "task", "skills")
    columns = ("pid", "answer", "question_type", "answer_type", "choices", "precision", "metadata")
    llm_rules = ("official", "math_puma")
    prompt_columns = {
        "official": ("question", "choices", "unit", "precision", "question_type", "answer_type"),
        "math_puma": ("question",),
    }

    def check_items(self, items: list[dict[str, Any]], allow_partial: bool) -> None:
        """Checks what normalisation and aggregates need: options, a known answer type, the fields of groups."""
        for item in items:
            where = f"Item {self.item_id(item)}"
            if item["question_type"] == "multi_choice":
                if not item["choices"]:
                    raise EvaluationError(f"{where} is multi_choice but its `choices` are {item['choices']!r}.")
            elif item["answer_type"] not in ("integer", "float", "list"):
                raise EvaluationError(
                    f"{where} has `answer_type` {item['answer_type']!r}; a {item['question_type']} item must be "
                    "integer, float or list."
                )
            for name in GROUPS[len(TYPED_GROUPS) :]:
                if not isinstance(item["metadata"], dict) or name not in item["metadata"]:
                    raise EvaluationError(f"{where}: `metadata` lacks `{name}`.")

    def describe(self, item: dict[str, Any]) -> str:
        """Returns a line for people: task and context."""
        return f"Item {self.item_id(item)}: {item['metadata']['task']}, {item['metadata']['context']}"

    def show_question(self, item: dict[str, Any]) -> str:
        """Returns the question with its options."""
        return "\n".join([str(item.get("question") or ""), *_letter_options(item)])

    def build_prompt(self, item: dict[str, Any], variant: str) -> str:
        """
        Returns the prompt, rebuilt from the fields: `"official"` is the published `query` (hint by answer type,
        question with its unit, lettered options), `"math_puma"` drops options, unit and type as the original project
        does.
        """
        if variant == "math_puma":
            return f"Hint: {GENERIC_HINT}\nQuestion: {item['question']}"
        lines = [f"Hint: {self._official_hint(item)}", f"Question: {item['question']}"]
        if item["unit"]:
            lines[-1] += f" (Unit: {item['unit']})"
        if item["choices"]:
            lines += ["Choices:", *_letter_options(item)]
        return "\n".join(lines)

    def _official_hint(self, item: dict[str, Any]) -> str:
        if item["question_type"] == "multi_choice":
            return LETTER_HINT
        precision = int(item["precision"]) if item["answer_type"] == "float" else None
        if (item["answer_type"], precision) not in TYPE_HINTS:
            raise EvaluationError(
                f"Item {self.item_id(item)}: no hint for a float with `precision` {item['precision']!r}."
            )
        kind, what, examples = TYPE_HINTS[item["answer_type"], precision]
        return TYPE_HINT.format(kind=kind, what=what, examples=examples)

    def extract(self, item: dict[str, Any], reply: str | None, rule: str) -> str | None:
        """
        Extracts the answer without a language model (see [`Benchmark.extract`]).

        The official order: an empty reply stays empty; a multiple-choice reply that equals an option is the answer; a
        reply that parses as the integer or float asked for is the answer; the rest goes to a language model, whose
        failure gives the empty string. The rules `"official"` and `"math_puma"` end with that too, `"final"` with
        [`final_answer`].
        """
        direct = _extract_directly(item, reply or "")
        if direct is not None and not (rule == "final" and direct == ""):
            return direct
        if rule != "final":
            return ""
        if item["question_type"] == "multi_choice":
            return final_answer(reply or "", "choice", item["choices"], item.get("question") or "")
        return final_answer(reply or "", "list" if item["answer_type"] == "list" else "number")

    def needs_llm(self, item: dict[str, Any], reply: str | None) -> bool:
        """Returns whether the official extraction asks a language model: where its direct steps decide nothing."""
        return _extract_directly(item, reply or "") is None

    def clean_llm_extraction(self, text: str, rule: str) -> str:
        """Returns a language model's extraction: as it is, or as the original project takes it, lower-cased."""
        if rule == "math_puma":
            _, prefix, rest = text.lower().partition("extracted answer:")
            return (rest.replace("extracted answer:", "") if prefix else text.lower()).strip()
        return text

    def normalise(self, item: dict[str, Any], extraction: Any) -> str | None:
        """
        Returns the extraction in the form of the gold answer, by the official rule.

        Multiple choice always gives an option: the one of the first parenthesised letter or of the bare capital
        letter, else the one at the smallest edit distance (the first of several). Numbers are cut or rounded as Python
        does it on binary floats, `None` where one cannot be read; a list stays the string that it is. What is no
        string is taken through `str`, so `None` is "None".
        """
        if item["question_type"] == "multi_choice":
            return _nearest_option(str(extraction).strip(), item["choices"])
        if item["answer_type"] == "list":
            return str(extraction)
        try:
            if item["answer_type"] == "integer":
                return str(int(float(extraction)))
            # the Hub stores the precision as a float, which `round` refuses
            return str(round(float(extraction), int(item["precision"])))
        except (TypeError, ValueError, OverflowError):
            return None

    def is_correct(self, item: dict[str, Any], normalised: str | None) -> bool:
        """Returns whether the normalised answer equals the gold answer as strings."""
        return normalised is not None and normalised == str(item["answer"])

    def compute_metrics(self, items: list[dict[str, Any]], correct: list[bool]) -> dict[str, Any]:
        """Computes the pooled accuracy and that of every value of every field; an item counts under all its skills."""
        pairs = list(zip(items, correct, strict=True))
        groups = {}
        for name in GROUPS:
            values = ((item if name in TYPED_GROUPS else item["metadata"])[name] for item in items)
            groups[name] = group_rates(
                (value, right)
                for entry, (_, right) in zip(values, pairs, strict=True)
                for value in (dict.fromkeys(entry) if name == "skills" else [entry])
                if value is not None
            )
        return {**rate(correct), "groups": groups}


def _letter_options(item: dict[str, Any]) -> list[str]:
    return [f"({letter}) {text}" for letter, text in zip(string.ascii_uppercase, item["choices"] or (), strict=False)]


def _extract_directly(item: dict[str, Any], reply: str) -> str | None:
    """Returns the extraction of the first three official steps, or `None` where they decide nothing."""
    if reply == "":
        return ""
    if item["question_type"] == "multi_choice" and reply in item["choices"]:
        return reply
    parse = {"integer": int, "float": float}.get(item["answer_type"])
    if parse is None:
        return None
    try:
        return str(parse(reply))
    except ValueError:
        return None


def _nearest_option(extraction: str, choices: list[str]) -> str:
    from rapidfuzz.distance import Levenshtein  # which `--help` need not wait for

    letter = re.search(r"\(([a-zA-Z])\)", extraction)
    if letter:
        extraction = letter.group(1).upper()
    letters = [chr(ord("A") + index) for index in range(len(choices))]
    if extraction in letters:
        return choices[letters.index(extraction)]
    return min(choices, key=lambda choice: Levenshtein.distance(extraction, choice))
