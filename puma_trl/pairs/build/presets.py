"""Rows of common data sets → problems: which columns hold the question, the answer and the diagram."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ...data.rows import read_images
from ...data.texts import check_text
from ...errors import DataError
from .latex import replace_math


# The column of diagrams, if rows have it and none is named.
IMAGE = "image"
# What stands in texts for a picture.
PLACEHOLDER = re.compile(r"<image ?\d*>")
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
    """

    question: str
    answer: str
    images: list[dict[str, Any]] = field(default_factory=list)
    facts: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Columns:
    """
    Names of the input's columns.

    Args:
        question, answer (`str`):
            Columns of texts.
        image (`str`, *optional*):
            Column of a path, an image, or a list of them. Defaults to `IMAGE`, where rows have that.
        choices (`str`, *optional*):
            Column of a list of texts, which are lettered and follow the question; rows may have none.
        facts (`str`, *optional*):
            Column of the conditions, where the question does not contain them.
    """

    question: str = "question"
    answer: str = "answer"
    image: str | None = None
    choices: str | None = None
    facts: str | None = None

    @property
    def names(self) -> list[str]:
        """The columns that are named, each once."""
        names = (self.question, self.answer, self.image, self.choices, self.facts)
        return list(dict.fromkeys(name for name in names if name))


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    no_number = isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value))
    if no_number or not isinstance(value, str | int | float):
        raise DataError(f"missing value: `{name}` is {value!r}, not text; the row has: {', '.join(row)}")
    if not str(value).strip():
        raise DataError(f"empty text: `{name}` is empty")
    return check_text(str(value).strip(), name)


def read_plain(row: dict[str, Any], columns: Columns, root: str | None) -> SourceProblem:
    """Reads a row whose columns hold plain texts."""
    question = _question(_text(row, columns.question), columns.question)
    if columns.choices:
        question = "\n".join([question, *_choices(row, columns.choices)])
    images = read_images(row, columns.image or IMAGE, root)
    facts = _text(row, columns.facts) if columns.facts else ""
    return SourceProblem(question, _text(row, columns.answer), images, facts)


def _question(text: str, name: str) -> str:
    text = PLACEHOLDER.sub("", text).strip()
    if not text:
        raise DataError(f"empty text: `{name}` is empty but for the place of a picture")
    return text


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


def read_math(row: dict[str, Any], columns: Columns, root: str | None) -> SourceProblem:
    """Reads MATH, and refuses problems whose diagram is a program of Asymptote, which would be printed as such."""
    problem = read_plain(row, columns, root)
    if "[asy]" in problem.question:
        raise DataError(f"diagram as code: `{columns.question}` has a program of Asymptote")
    return problem


def read_gsm8k(row: dict[str, Any], columns: Columns, root: str | None) -> SourceProblem:
    """Reads GSM8K: calculator marks are taken out of the solution, and the final answer is named."""
    problem = read_plain(row, columns, root)
    steps, mark, final = re.sub(r"<<[^<>]*>>", "", problem.answer).rpartition("####")
    if not mark or not final.strip():
        raise DataError(f"missing value: `{columns.answer}` has no final answer behind `####`")
    return replace(problem, answer=f"{steps.strip()}\nAnswer: {final.strip()}".strip())


def read_conversation(row: dict[str, Any], columns: Columns, root: str | None) -> SourceProblem:
    """
    Reads one question and its reply in the form of LLaVA, with `<image>` in the place of the picture.

    What stands before a line that begins with "Question:", as in Geo170K and MathV360K, says how to answer.
    """
    turns = row.get(columns.question)
    if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"missing value: `{columns.question}` is no list of a question and a reply")
    if [turn.get("from") for turn in turns[:2]] != ["human", "gpt"] or len(turns) > 2:
        speakers = ", ".join(str(turn.get("from")) for turn in turns)
        raise DataError(f"several turns: a pair has one question and one reply, this row has {speakers}")
    question = _question(_text(turns[0], "value"), "value")
    match = HINT.fullmatch(question)
    hint, question = (match["hint"] or "", match["question"]) if match else ("", question)
    images = read_images(row, columns.image, root)
    return SourceProblem(question, _text(turns[1], "value"), images, hint=hint)


Reader = Callable[[dict[str, Any], Columns, str | None], SourceProblem]
# name → (how a row is read, its columns)
PRESETS: dict[str, tuple[Reader, Columns]] = {
    "geoqa": (read_conversation, Columns("conversations", "conversations", "image")),  # as in Geo170K
    "gsm8k": (read_gsm8k, Columns("question", "answer")),
    "math": (read_math, Columns("problem", "solution")),
    "mathv360k": (read_conversation, Columns("conversations", "conversations", "image")),
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
