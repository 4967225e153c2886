"""Whether two answers mean the same, as the official judges take it: notation and units do not matter."""

import math
import re
from collections.abc import Sequence

from .options import LETTERS, Options, read_stated
from .quantities import BEHIND, evaluate, find_quantities, plain_math, strip_unit


METRES = {"km": 1000.0, "m": 1.0, "dm": 0.1, "cm": 0.01, "mm": 0.001, "千米": 1000.0, "米": 1.0, "厘米": 0.01}
WORDS = {"kilo": "km", "centi": "cm", "milli": "mm", "deci": "dm", "": "m"}
POWERS = {"square": 2, "sq": 2, "平方": 2, "cubic": 3, "cu": 3, "立方": 3}
LONE_LETTER = re.compile(rf"(?<![A-Za-z])[{LETTERS}](?![A-Za-z])")


def same_quantity(gold: str, answer: str) -> bool | None:
    """
    Returns whether two answers are the same quantity, `None` where one of them is not one.

    "12" and "12 cm^2" are, and "0.5 m" and "50 cm"; "0.5 m" and "0.5 cm" are not. A name before "=" does not count.

    Args:
        gold (`str`):
            The right answer.
        answer (`str`):
            Another one.
    """
    values = evaluate(gold), evaluate(answer)
    if None in values:
        return None
    units = _metric_unit(gold), _metric_unit(answer)
    if None not in units and units[0] != units[1]:
        if units[0][1] != units[1][1]:
            return False
        values = tuple(value * unit[0] for value, unit in zip(values, units, strict=True))
    return math.isclose(*values, rel_tol=1e-6, abs_tol=1e-9)


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


def _metric_unit(text: str) -> tuple[float, int] | None:
    """Returns the metres of the unit behind a quantity, and its power; `None` where there is no metric length."""
    text = plain_math(text).rpartition("=")[2]
    found = find_quantities(text)
    unit = BEHIND.match(text, found[0].end) if found else None
    if unit is None:
        return None
    match = re.fullmatch(
        r"(?:(square|sq|cubic|cu)\.? )?(?:(km|dm|cm|mm|m)|(kilo|centi|milli|deci|)met(?:er|re)s?|"
        r"(平方|立方)?(千米|厘米|米))(?:\^?([23]))?",
        " ".join(unit.group().split()),
    )
    if match is None:
        return None
    name = match[2] or match[5] or WORDS[match[3] or ""]
    power = int(match[6] or POWERS.get(match[1] or match[4], 1))
    return METRES[name] ** power, power
