"""Rows of any form → problems, and what common data sets need besides: presets."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ...data.columns import Form
from ...data.places import IMAGE_PLACE, PLACEHOLDER
from ...data.rows import read_row
from ...data.texts import check_text
from ...data.turns import SYSTEM
from ...errors import DataError
from .latex import replace_math


# Fields that hold a question, and an answer, of which a form has one
QUESTION_FIELDS = ("instruction", "messages", "prompt")
ANSWER_FIELDS = ("output", "messages", "completion")
# Conversations that say how to answer before they ask.
HINT = re.compile(r"(?s)(?:(?P<hint>.*?\S)\s*\n)?\s*Question:\s*(?P<question>.+)")
LETTERED = re.compile(r"\s*\(?([A-Z])\s*[.:)\]]")


class NoConditions(DataError):
    """A problem has nothing that could be printed while what is asked stays in the prompt."""


@dataclass(frozen=True)
class SourceProblem:
    """
    A problem as it stands in the input.

    Args:
        question (`str`):
            What is asked, with its conditions and choices.
        answer (`str`):
            The answer, which becomes the output of both sides.
        images (`list[dict]`):
            Its diagrams: structs of `bytes` and `path`.
        facts (`str`, *optional*):
            The conditions, where they stand in a column of their own.
        hint (`str`, *optional*):
            How to answer, which tells nothing of the problem and stays in the prompt.
        system (`str`, *optional*):
            The system prompt of both sides.
        unread (`list[str]`, *optional*):
            Columns of the row that the form has not seen and that are not read.
    """

    question: str
    answer: str
    images: list[dict[str, Any]] = field(default_factory=list)
    facts: str = ""
    hint: str = ""
    system: str = ""
    unread: list[str] = field(default_factory=list)


def read_problem(
    raw: Any, root: str | None, form: Form, choices: str | None = None, facts: str | None = None
) -> SourceProblem:
    """
    Reads a row as training does, and what it has for a build alone.

    Args:
        raw (`Any`):
            The row as it stands in the file.
        root (`str`, *optional*):
            Folder that relative image paths start from.
        form ([`Form`]):
            The form of the row.
        choices (`str`, *optional*):
            Column of a list of texts, which are lettered and follow the question; rows may have none.
        facts (`str`, *optional*):
            Column of the conditions, where the question does not contain them.

    Raises:
        DataError: if the row cannot be read, has several turns or two sides, or lacks a question, an answer or facts.
    """
    row = read_row(_prepare(raw, form) if isinstance(raw, dict) else raw, root, form)
    if row["instruction_2"] is not None:
        raise DataError("two sides: the row is a pair already")
    turns = row["history"]
    system = turns.pop(0)["content"] if turns and turns[0]["role"] == SYSTEM else ""
    if turns:
        raise DataError(f"several turns: a pair has one question and one reply, this row has {len(turns) + 2} turns")
    question, answer = row["instruction"].replace(IMAGE_PLACE, "").strip(), row["output"].strip()
    for text, fields in ((question, QUESTION_FIELDS), (answer, ANSWER_FIELDS)):
        if not text:
            name = next(".".join(form.fields[name][0]) for name in fields if name in form.fields)
            raise DataError(f"empty text: `{name}` is empty, or has nothing but the place of a picture")
    if choices:
        question = "\n".join([question, *_choices(raw, choices)])
    conditions = _text(raw, facts) if facts else ""
    return SourceProblem(
        question, answer, row["image_url"], conditions, system=system, unread=list(row["unread"] or ())
    )


def _prepare(raw: dict[str, Any], form: Form) -> dict[str, Any]:
    """Writes numbers as texts, as many data sets have answers, and takes out places of pictures that a row lacks."""
    raw = dict(raw)
    for name in ("instruction", "output"):
        for column, *inside in form.fields.get(name, ()):
            if not inside and _is_number(raw.get(column)):
                raw[column] = str(raw[column])
    if not any(raw.get(path[0]) for path in form.fields["image_url"]):
        for name in QUESTION_FIELDS:
            for column, *_ in form.fields.get(name, ()):
                if column in raw:
                    raw[column] = _without_places(raw[column])
    return raw


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _without_places(value: Any) -> Any:
    if isinstance(value, str):
        return PLACEHOLDER.sub("", value)
    if isinstance(value, list):
        return [_without_places(part) for part in value]
    return {name: _without_places(part) for name, part in value.items()} if isinstance(value, dict) else value


def _text(row: dict[str, Any], name: str) -> str:
    value = str(row[name]) if _is_number(row.get(name)) else row.get(name)
    if not isinstance(value, str):
        raise DataError(f"missing value: `{name}` is {value!r}, not text; the row has: {', '.join(row)}")
    if not value.strip():
        raise DataError(f"empty text: `{name}` is empty")
    return check_text(value.strip(), name)


def _choices(row: dict[str, Any], name: str) -> list[str]:
    """Letters the choices, unless they are lettered already."""
    choices = row.get(name) or []
    if not isinstance(choices, list) or not all(isinstance(choice, str | int | float) for choice in choices):
        raise DataError(f"wrong type: `{name}` is {choices!r}, not a list of choices")
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    if len(choices) > len(letters):
        raise DataError(f"too many choices: `{name}` has {len(choices)}, more than letters")
    texts = [check_text(str(choice).strip(), name) for choice in choices]
    found = [LETTERED.match(text) for text in texts]
    if all(found) and [match[1] for match in found] == list(letters[: len(texts)]):
        return texts
    return [f"{letter}. {text}" for letter, text in zip(letters, texts, strict=False)]


def split_hint(problem: SourceProblem) -> SourceProblem:
    """What stands before a line that begins with "Question:", as in Geo170K and MathV360K, says how to answer."""
    match = HINT.fullmatch(problem.question)
    return replace(problem, hint=match["hint"] or "", question=match["question"]) if match else problem


def name_final_answer(problem: SourceProblem) -> SourceProblem:
    """
    Takes the marks of a calculator out of a solution of GSM8K, and names the final answer.

    Raises:
        DataError: if there is no final answer.
    """
    steps, mark, final = re.sub(r"<<[^<>]*>>", "", problem.answer).rpartition("####")
    if not mark or not final.strip():
        raise DataError("missing value: the solution has no final answer behind `####`")
    return replace(problem, answer=f"{steps.strip()}\nAnswer: {final.strip()}".strip())


def refuse_asymptote(problem: SourceProblem) -> SourceProblem:
    """
    Returns a problem of MATH.

    Raises:
        DataError: if its diagram is a program of Asymptote, which would be printed as such.
    """
    if "[asy]" in problem.question:
        raise DataError("diagram as code: the question has a program of Asymptote")
    return problem


@dataclass(frozen=True)
class Preset:
    """
    A common data set.

    Args:
        columns (`dict[str, str]`):
            Where it has what, as far as its columns do not tell: our column → the data set's.
        clean (`Callable`):
            Brings the texts of a problem into order.
    """

    columns: dict[str, str]
    clean: Callable[[SourceProblem], SourceProblem]


PRESETS = {
    "geoqa": Preset({"messages": "conversations"}, split_hint),  # as in Geo170K
    "gsm8k": Preset({}, name_final_answer),
    "math": Preset({"output": "solution"}, refuse_asymptote),
    "mathv360k": Preset({"messages": "conversations"}, split_hint),
}


# The sentences that ask come last, and mostly begin with one of these or end in a question mark.
ASKS = re.compile(
    r"(?i)^\W*(?:find|what|which|how|calculate|compute|determine|solve|prove|show|evaluate|simplify|if so)\b"
    r"|,\s*(?:then\s+)?(?:find|what|which|how|calculate|compute|determine)\b"
)
SENTENCE = re.compile(r"(?<=[.?!。？！])\s+(?=\S)|(?<=[。？！])|\n+")
ABBREVIATION = re.compile(r"(?:^|[\s(])(?:[Ff]igs?|Eq|Mrs?|Ms|Dr|Prof|St|vs|approx|cf|e\.g|i\.e)\.$")
CHOICES = re.compile(
    r"\n\s*(?:(?:Choices|Options|选项)\s*[:：]|\(?A\s*[.:)．：、])|\s\(A\)(?=.*\s\(B\))|\sA[.:)．：、](?=.*\n\s*B[.:)．：、])",
    re.DOTALL,
)


def split_question(problem: SourceProblem) -> tuple[str, str]:
    """
    Splits a problem into its conditions and what is asked.

    Where they do not stand in columns of their own, the last sentences that ask, and all behind them (choices), are
    the question; if none is seen to ask, the last sentence before the choices is.

    Raises:
        NoConditions: if nothing is left in the place of the conditions.
    """
    if problem.facts:
        return problem.facts, problem.question
    text = problem.question
    choices = CHOICES.search(text)
    end = choices.start() if choices else len(text)
    starts = _sentence_starts(text[:end])
    parts = [text[start:stop].strip() for start, stop in zip(starts, [*starts[1:], end], strict=True)]
    asking = [index for index, part in enumerate(parts) if part.endswith(("?", "？")) or ASKS.search(part)]
    first = asking[-1] if asking else len(parts) - 1
    while first - 1 in asking:
        first -= 1
    if first == 0:
        raise NoConditions("no conditions: nothing stands before the sentence that asks, which stays in the prompt")
    return text[: starts[first]].strip(), text[starts[first] :].strip()


def _sentence_starts(text: str) -> list[int]:
    """Finds where sentences start, not within formulas nor behind abbreviations."""
    masked = replace_math(text, lambda match: re.sub(r"\s", "\0", match[0]))  # formulas without white space
    starts = [0]
    for match in SENTENCE.finditer(masked):
        before = masked[max(0, match.start() - 10) : match.start()]
        if match.end() < len(text) and not ABBREVIATION.search(before):
            starts.append(match.end())
    return starts
