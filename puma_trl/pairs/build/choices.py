"""The choices of a problem, however a file writes them, and answers that are positions of choices."""

import ast
import json
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...data.numbers import Number
from ...data.texts import check_text, describe
from ...errors import DataError


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTERED = re.compile(r"\s*[(（]?([A-Z])\s*[.．:：、)）\]]\s*")
# Where a choice begins in a text that holds all
BEGINS = re.compile(r"(?:^|(?<=[\s;；,，|]))[(（]?([A-Z])\s*[.．:：、)）]\s*")
NAMES = ("label", "key", "letter", "id", "option_label", "name")
TEXTS = ("text", "content", "value", "choice", "option", "answer")


@dataclass(frozen=True)
class Choice:
    """A choice: its letter, its text, and the line that is printed."""

    letter: str
    text: str
    line: str


def read_choices(value: Any, name: str) -> list[Choice]:
    """
    Reads the choices of a row.

    Args:
        value (`Any`):
            A list of texts or numbers, of lists with one of these or with a letter before it, or of objects with
            `label` and `text`; an object of letters and texts, or of `label` and `text` with a list each; a text such
            as `A. 1; B. 2`, or with such a list in JSON; or nothing.
        name (`str`):
            Its column.

    Returns:
        `list[Choice]`: none if the texts are nothing but letters, as of choices that stand in the picture.

    Raises:
        DataError: if it is something else, or has more choices than letters.
    """
    pairs = _pairs(value, name)
    if len(pairs) > len(LETTERS):
        raise DataError(f"too many choices: `{name}` has {len(pairs)}, more than letters")
    texts = [check_text(text, name) for _, text in pairs]
    if pairs and all(text == letter for text, letter in zip(texts, LETTERS, strict=False)):
        return []
    found = [LETTERED.match(text) for text in texts]
    if texts and all(found) and [match[1] for match in found] == list(LETTERS[: len(texts)]):
        return [Choice(match[1], text[match.end() :], text) for match, text in zip(found, texts, strict=True)]
    letters = [given or letter for (given, _), letter in zip(pairs, LETTERS, strict=False)]
    return [Choice(letter, text, f"{letter}. {text}") for letter, text in zip(letters, texts, strict=True)]


def _pairs(value: Any, name: str) -> list[tuple[str, str]]:
    """Returns letter, `""` if there is none, and text of each choice."""
    if value is None or value in ("", [], {}):
        return []
    if isinstance(value, str):
        return _read_text(value, name)
    if isinstance(value, dict):
        lists = {key: item for key, item in value.items() if isinstance(item, list)}
        label, text = _first(lists, NAMES), _first(lists, TEXTS)
        if text is not None:
            value = text if label is None else [list(pair) for pair in zip(label, text, strict=False)]
        else:
            items = [(key, item) for key, item in value.items() if item is not None]  # a table has all letters
            return [(str(key).strip(" .()"), _plain(item, name)) for key, item in items]
    if not isinstance(value, list):
        raise DataError(f"wrong type: `{name}` is {describe(value)}, not choices")
    return [_pair(item, name) for item in value]


def _pair(item: Any, name: str) -> tuple[str, str]:
    if isinstance(item, list) and len(item) == 2 and re.fullmatch(r"\s*\(?[A-Z][.):]?\s*", str(item[0])):
        return item[0].strip(" .():"), _plain(item[1], name)
    if isinstance(item, list) and len(item) == 1:
        return _pair(item[0], name)
    if isinstance(item, dict):
        label = _first(item, NAMES)
        return "" if label is None else str(label).strip(" .()"), _plain(_first(item, TEXTS), name)
    return "", _plain(item, name)


def _first(item: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((item[key] for key in keys if key in item), None)


def _plain(item: Any, name: str) -> str:
    if isinstance(item, bool) or not isinstance(item, str | int | float):
        raise DataError(f"wrong type: `{name}` has {describe(item)}, not the text of a choice")
    return str(item).strip()


def _read_text(text: str, name: str) -> list[tuple[str, str]]:
    """Reads choices that stand in one text, one after the other or as a list."""
    if text.lstrip().startswith(("[", "{")):
        for read in (partial(json.loads, parse_float=Number), ast.literal_eval):
            try:
                value = read(text)
            except (ValueError, SyntaxError, RecursionError):
                continue
            if isinstance(value, list | dict):
                return _pairs(value, name)
    begins = list(BEGINS.finditer(text))
    letters = [match[1] for match in begins]
    if len(letters) < 2 or letters != list(LETTERS[: len(letters)]):
        raise DataError(f"wrong type: `{name}` is {text[:60]!r}, which has no choices such as 'A. 1; B. 2'")
    ends = [*(match.start() for match in begins[1:]), len(text)]
    return [(match[1], text[match.end() : end].strip(" \t\n;；,，|")) for match, end in zip(begins, ends, strict=True)]


def answer_letter(answer: str, choices: list[Choice]) -> str:
    """
    Returns an answer; one that is the position of a choice, counted from 0, becomes its letter.

    Raises:
        DataError: if it is a whole number that is no choice, and the position of none.
    """
    if not choices or not re.fullmatch(r"\d{1,2}", answer) or any(choice.text == answer for choice in choices):
        return answer
    if int(answer) >= len(choices):
        if int(answer) > len(choices) or any(re.search(r"\d", choice.text) for choice in choices):
            return answer  # a result that is named in other words
        raise DataError(
            f"answer and choices: the answer is {answer}, and there are {len(choices)} choices, counted from 0; write "
            "the letter, or the text of the choice"
        )
    return choices[int(answer)].letter
