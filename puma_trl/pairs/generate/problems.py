"""The problem: what every kind of the generator returns, and how exact answers are written."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from .drawing import Canvas


@dataclass(frozen=True)
class Problem:
    """
    One problem, before it is written in its text-rich and its vision-rich form.

    Args:
        facts (`str`):
            Everything that the figure shows, in words and numbers. The text-rich prompt is facts + question (without
            a picture, facts + `question_alone`).
        question (`str`):
            What is asked, without any number. It is the vision-rich prompt.
        steps (`str`):
            The solution step by step, without the final answer.
        answer (`str`):
            The exact answer.
        key (`tuple`):
            The content, equal for two problems that differ only in wording or order. Splits are disjoint by it.
        draw (`Callable[[Canvas], None]`):
            Draws the figure with all numbers of the facts.
        question_alone (`str`, *optional*):
            What is asked where there is no picture. Defaults to the question.
    """

    facts: str
    question: str
    steps: str
    answer: str
    key: tuple
    draw: Callable[[Canvas], None]
    question_alone: str | None = None


Kind = Callable[[random.Random, int], Problem]


def listed(items: Sequence[str]) -> str:
    """Returns one or more items as a list in words: A, B and C."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


def decimal_text(value: Fraction) -> str:
    """Returns a number without a remainder of eighths, such as 67.5, as a decimal."""
    return f"{float(value):g}"


def pi_text(value: Fraction) -> str:
    """Returns a multiple of π: 12π, π, 9π/2."""
    value = Fraction(value)
    top = "π" if value.numerator == 1 else f"{value.numerator}π"
    return top if value.denominator == 1 else f"{top}/{value.denominator}"


def root_parts(square: int) -> tuple[int, int]:
    """Returns the root of a whole number as (factor, rest): √50 = 5√2 is (5, 2)."""
    factor = max(root for root in range(1, math.isqrt(square) + 1) if square % root**2 == 0)
    return factor, square // factor**2


def root_text(factor: int, rest: int) -> str:
    """Returns factor·√rest: 5√2, √3, 7."""
    if rest == 1:
        return str(factor)
    return f"√{rest}" if factor == 1 else f"{factor}√{rest}"


def term_text(factor: int, symbol: str) -> str:
    """Returns the first term of a sum: 3x, x, -x."""
    return {1: symbol, -1: f"-{symbol}"}.get(factor, f"{factor}{symbol}")


def sum_text(*terms: tuple[int, str]) -> str:
    """
    Returns a sum such as x^2 - 4x + 1.

    Args:
        terms (`tuple[int, str]`):
            Factor and symbol of each; those with the factor 0 are left out.
    """
    text = ""
    for factor, symbol in terms:
        if factor == 0:
            continue
        term = term_text(abs(factor) if text else factor, symbol) if symbol else str(abs(factor) if text else factor)
        text = f"{text} {'-' if factor < 0 else '+'} {term}" if text else term
    return text or "0"
