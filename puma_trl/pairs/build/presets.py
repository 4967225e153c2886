"""Rows of any form → problems, and what common datasets need besides: presets."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...data.columns import ANSWER_FIELDS, QUESTION_FIELDS, Form
from ...data.numbers import number_to_text
from ...data.places import IMAGE_PLACE
from ...data.rows import read_row
from ...data.texts import check_text, describe
from ...data.turns import SYSTEM
from ...errors import DataError
from .choices import LETTERS, answer_letter, read_choices
from .escapes import refuse_escapes
from .latex import find_code
from .splits import split_text


# "Look at <image>. Find x.", "如<image>所示"
PLACES_IN_SENTENCES = (
    (re.compile(rf"(?i)(\b(?:in|at|from|of|see)\s+)(?:the\s+)?{IMAGE_PLACE}"), r"\1the picture"),
    (re.compile(rf"([如在看从由])\s*{IMAGE_PLACE}\s*"), r"\1图"),
)
# Conversations that say how to answer before they ask.
HINT = re.compile(r"(?s)(?:(?P<hint>.*?\S)\s*\n)?\s*Question:\s*(?P<question>.+)")


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
        by_position (`bool`, *optional*):
            Whether the answer was the position of a choice, and is its letter now.
        unread (`list[str]`, *optional*):
            Columns of the row that the form has not seen and that are not read.
    """

    question: str
    answer: str
    images: list[dict[str, Any]] = field(default_factory=list)
    facts: str = ""
    hint: str = ""
    system: str = ""
    by_position: bool = False
    unread: list[str] = field(default_factory=list)


def read_problem(
    raw: Any, root: str | None, form: Form, choices: Sequence[str] = (), facts: str | None = None
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
        choices (`Sequence[str]`, *optional*):
            Column of the choices, or one for each. They follow the question, see [`read_choices`]; rows may have none.
        facts (`str`, *optional*):
            Column of the conditions, where the question does not contain them; rows may have none.

    Raises:
        DataError: if the row cannot be read, has several turns or two sides, or lacks a question or an answer.
    """
    row = read_row(raw, root, form)
    if row["instruction_2"] is not None:
        raise DataError("two sides: the row is a pair already")
    turns = row["history"]
    system = turns.pop(0)["content"] if turns and turns[0]["role"] == SYSTEM else ""
    if turns:
        raise DataError(f"several turns: a pair has one question and one reply, this row has {len(turns) + 2} turns")
    question, answer = _without_places(row["instruction"]), row["output"].strip()
    for text, fields in ((question, QUESTION_FIELDS), (answer, ANSWER_FIELDS)):
        if not text:
            name = next(".".join(form.fields[name][0]) for name in fields if name in form.fields)
            raise DataError(f"empty text: `{name}` is empty, or has nothing but the place of a picture")
    by_position = False
    if choices:
        options = read_choices(_choices(raw, choices), ", ".join(choices))
        lettered = answer_letter(answer, options)
        by_position, answer = lettered != answer, lettered
        question = "\n".join([question, *(option.line for option in options)])
    conditions = _text(raw, facts) if facts else ""
    for name, text in (("question", question), ("answer", answer), ("facts", conditions)):
        refuse_escapes(text, name)
    code = find_code(f"{conditions}\n{question}")
    if code:
        raise DataError(f"diagram as code: the question has {code}, which would be printed as such; give its picture")
    unread = list(row["unread"] or ())
    return SourceProblem(
        question, answer, row["image_url"], conditions, system=system, by_position=by_position, unread=unread
    )


def _choices(raw: dict[str, Any], names: Sequence[str]) -> Any:
    """Returns what the column of the choices holds, or of several columns the letters of those that are not empty."""
    if len(names) == 1:
        return raw.get(names[0])
    values = {letter: raw.get(name) for letter, name in zip(LETTERS, names, strict=False)}
    return {letter: value for letter, value in values.items() if value not in (None, "")}


def _without_places(question: str) -> str:
    """Takes the places of pictures out of a question; one that is a word of a sentence is named."""
    for place, name in PLACES_IN_SENTENCES:
        question = place.sub(name, question)
    return question.replace(IMAGE_PLACE, "").strip()


def _text(row: dict[str, Any], name: str) -> str:
    value = number_to_text(row.get(name))
    if not isinstance(value, str | None):
        raise DataError(f"wrong type: `{name}` is {describe(value)}, not text")
    return check_text(value.strip(), name) if value and value.strip() else ""


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


@dataclass(frozen=True)
class Preset:
    """
    A common dataset.

    Args:
        columns (`dict[str, str]`):
            Where it has what, as far as its columns do not tell: our column → the dataset's.
        clean (`Callable`, *optional*):
            Brings the texts of a problem into order.
    """

    columns: dict[str, str]
    clean: Callable[[SourceProblem], SourceProblem] = lambda problem: problem


PRESETS = {
    "geoqa": Preset({"messages": "conversations"}, split_hint),  # as in Geo170K
    "gsm8k": Preset({}, name_final_answer),
    "math": Preset({"output": "solution"}),
    "mathv360k": Preset({"messages": "conversations"}, split_hint),
}


def split_question(problem: SourceProblem) -> tuple[str, str]:
    """
    Splits a problem into its conditions and what is asked, see [`split_text`] where they do not stand in columns of
    their own.

    Raises:
        NoConditions: if nothing is left in the place of the conditions.
    """
    if problem.facts:
        return problem.facts, problem.question
    split = split_text(problem.question)
    return split.conditions, split.asked
