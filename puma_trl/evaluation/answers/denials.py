"""Quantities that a text says are not the answer, or leaves open: "it is not 104", "4 or 5"."""

import math
import re
from collections.abc import Sequence

from .quantities import UNIT, Quantity
from .statements import DOUBT, REACH
from .units import same_measure, unit_behind


DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|cannot|never|nor|neither|rather than|instead of)|n['’]t|不是|不为|并非|不会是|不可能是|不等于|≠)"
    r"\s{0,4}(?:be\b|equal\b|exactly\b|equal to\b|(?:option|choice|answer|value)\b)?[\s*$(（\"'“:：]{0,4}"
    r"(?:[A-Za-z]\s?=\s?)?$",
    re.IGNORECASE,
)
DENIED_BEHIND = re.compile(
    rf"(?:\s?{UNIT})?[\s*$)）\"'”]{{0,4}}(?:(?:is|was|are|would be|seems)\s(?:also\s|clearly\s|therefore\s)?"
    r"(?:wrong|incorrect|false|impossible|ruled out|not\s(?:the\s)?(?:correct\s|right\s)?"
    r"(?:answer|value|one|it|correct|right|true|possible)\b)|"
    r"isn['’]t\s(?:the\s)?(?:correct|right|answer|it|true|possible)\b|"
    r"(?:cannot|can['’]t) be\s(?:the|right|correct|true)\b|"
    r"[是]?(?:不对|错误?的?(?![一-鿿])|不正确|不是答案))",
    re.IGNORECASE,
)
# What stands between two answers of which it is left open which one is meant
OR = re.compile(
    rf"(?:\s?{UNIT})?[\s,，*$)）\"'”]{{0,4}}(?:\bor\b|或者?|还是)[\s*$(（\"'“]{{0,4}}"
    r"(?:(?:maybe|perhaps|possibly|even|the|an?|option|choice|it is|it's)\s)?(?:[A-Za-z][_\d]{0,3}\s?=\s?)?",
    re.IGNORECASE,
)


def without_denied(text: str, quantities: Sequence[Quantity]) -> list[Quantity]:
    """Returns the quantities of a text but those of which it says that they are not the answer."""
    return [each for each in quantities if not _is_denied(text, each)]


def _is_denied(text: str, quantity: Quantity) -> bool:
    before = text[max(0, quantity.start - REACH) : quantity.start]
    return bool(DENIED_BEFORE.search(before) or DOUBT.search(before) or DENIED_BEHIND.match(text, quantity.end))


def with_alternatives(text: str, quantities: Sequence[Quantity], last: Quantity) -> Quantity:
    """
    Returns the quantities that "or" joins to one as a single one without a value; the one itself where there are none.

    "1/2 or 0.5" says the same twice and leaves nothing open.
    """
    first, is_open = last, False
    for each in reversed([each for each in quantities if each.end <= last.start]):
        if not OR.fullmatch(text, each.end, first.start):
            break
        is_open |= not _says_again(text, each, last)
        first = each
    return Quantity(math.nan, text[first.start : last.end], first.start, last.end, False) if is_open else last


def _says_again(text: str, first: Quantity, last: Quantity) -> bool:
    units = unit_behind(text, first), unit_behind(text, last)
    rounded = units[0] == units[1] and (first.matches(last.value) or last.matches(first.value))
    return rounded or same_measure((first.value, last.value), units)
