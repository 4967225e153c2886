"""
From a reply to an answer where no language model extracts it: the `final` rule, which is ours, and the rule of the
original Math-PUMA project for MathVerse.
"""

from .equivalence import readable_latex, same_option, same_quantity, same_words
from .final import final_answer
from .gold import find_truths, gold_answer, is_prose, same_truth
from .options import parse_options
from .puma import puma_mathverse
from .quantities import strip_unit
from .statements import strip_thoughts


__all__ = [
    "RULES",
    "final_answer",
    "find_truths",
    "gold_answer",
    "is_prose",
    "parse_options",
    "puma_mathverse",
    "readable_latex",
    "same_option",
    "same_quantity",
    "same_truth",
    "same_words",
    "strip_thoughts",
    "strip_unit",
]

RULES = ("official", "math_puma", "final")
