"""Whether two answers mean the same, as the official judges take it: notation and units do not matter."""

import re
from collections.abc import Sequence

from .options import LETTERS, Options, read_stated
from .quantities import evaluate, is_close, plain_math, strip_unit
from .units import read_measured, same_measure, same_time


BETWEEN = re.compile(r"\s*(,(?!\d{3}(?!\d))|[;，；、]|\b(?:or|and)\b|或者?|和)\s*", re.IGNORECASE)
LONE_LETTER = re.compile(rf"(?<![A-Za-z])[{LETTERS}](?![A-Za-z])")


def same_quantity(gold: str, answer: str) -> bool | None:
    """
    Returns whether two answers are the same quantity, `None` where one of them is not one.

    "12" and "12 cm^2" are, "0.5 m" and "50 cm", "50%" and "0.5", "3:15 pm" and "15:15"; "0.5 m" and "0.5 cm", or "2 h"
    and "2 min", are not. A name before "=" does not count, nor does the order of roots: "x = 3 or x = -3".
    """
    same = same_time(gold, answer)
    if same is None:
        same = _same_roots(gold, answer)
    if same is not None:
        return same
    measured = read_measured(gold), read_measured(answer)
    if None in measured:
        return None
    return same_measure(*zip(*measured, strict=True))


def same_words(gold: str, answer: str) -> bool:
    """Returns whether two answers are the same text without regard to case, spaces, notation and a trailing point."""
    return _bare(gold) == _bare(answer)


def same_option(gold: str, answer: str, options: Sequence[str]) -> bool:
    r"""
    Returns whether an answer names the right option, by its letter or its text, and no other.

    Args:
        gold (`str`):
            The right letter, such as "B" or "(B)"; several ("C\nD") must all be named.
        answer (`str`):
            What a reply was read as.
        options (`Sequence[str]`):
            Texts of the options, empty where they are not known.
    """
    right = set(LONE_LETTER.findall(gold))
    if len(right) != 1 or len(gold.strip(" ().\n")) > 1:
        named = set(LONE_LETTER.findall(answer))
        return (bool(right) and named == right) or same_words(gold, answer)
    return read_stated(answer, Options.of(options)) in right


def readable_latex(text: str) -> str:
    """Returns an answer as math-verify can read it: without its unit and its trailing point, roots as commands."""
    text = strip_unit(re.sub(r"[\s.。]+$", "", text))
    text = re.sub(r"(?<!\\sqrt)√\s*(\d+(?:\.\d+)?|[a-z])", r"\\sqrt{\1}", text)
    text = re.sub(r"√\s*[({]([^(){}]*)[)}]", r"\\sqrt{\1}", text)
    return text.replace("π", r"\pi ").replace("²", "^2").replace("³", "^3").replace("°", "").replace("·", r"\cdot ")


def _bare(text: str) -> str:
    return "".join(plain_math(text).casefold().split()).strip(".。,;:*\"'")


def _same_roots(gold: str, answer: str) -> bool | None:
    """Returns whether two answers are the same values in any order, `None` unless both list those of one name."""
    roots = _roots(gold), _roots(answer)
    if None in roots or len(roots[0][1]) != len(roots[1][1]) or len(roots[0][0] | roots[1][0]) > 1:
        return None
    return all(map(is_close, *(sorted(values) for _, values in roots)))


def _roots(text: str) -> tuple[set[str], list[float]] | None:
    """Returns the names (without numbers) and the values of a text such as "x = 3 or x = -3", "x = ±3", "3 or -3"."""
    text = re.sub(r"([A-Za-z]\w*\s*=\s*)?(?:±|\\pm)\s*([^\s,;]+)$", r"\g<1>\2 or -\2", plain_math(text).strip(" .。"))
    pieces = BETWEEN.split(text)
    parts, joints = pieces[::2], pieces[1::2]
    values = [evaluate(part) for part in parts]
    if not joints or None in values:
        return None
    names = {re.sub(r"[_\d{}]+", "", part.rpartition("=")[0]).strip() for part in parts} - {""}
    is_open = all(joint.lower() in ("or", "或", "或者") for joint in joints)
    return (names, values) if names or is_open else None
