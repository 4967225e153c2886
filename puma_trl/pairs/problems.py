"""The problem: what every kind of the generator returns."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from .drawing import Canvas


@dataclass(frozen=True)
class Problem:
    """
    One problem, before it is written in its text-rich and its vision-rich form.

    Args:
        facts (`str`):
            Everything that the figure shows, in words and numbers. The text-rich prompt is facts + question.
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
        level (`int`, *optional*, defaults to `1`):
            Difficulty: 1, 2 or 3.
    """

    facts: str
    question: str
    steps: str
    answer: str
    key: tuple
    draw: Callable[[Canvas], None]
    level: int = 1


Kind = Callable[[random.Random, int], Problem]
