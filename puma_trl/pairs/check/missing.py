"""Whether a question lacks what it speaks of: the options of its answer, or a figure."""

import re
from collections.abc import Iterator
from typing import Any

from ...data.texts import shorten
from .content import Side, short_answer


NO_OPTIONS = "letter without options"
NO_FIGURE = "figure without picture"
SHOWS_SOURCE = "picture shows source"

LETTER = re.compile(r"\W*(?:[Oo]ption|[Aa]nswer|[Cc]hoice|选)?\W*([A-H])\W*")
# Two options, whatever stands around their letters, or a list of them
MARK = r"\s?[).:：、．,，\]]"
OPTIONS = re.compile(
    rf"(?<![A-Za-z])A{MARK}\s*\S.*?(?<![A-Za-z])B(?:{MARK}|\s)|(?:[Cc]hoices|[Oo]ptions|选项)\s*[:：]", re.DOTALL
)
FIGURE = re.compile(
    r"(?i)\b(?:as\s+)?(?:is\s+)?(?:shown|seen|illustrated|depicted|pictured)\s+(?:in|on|by)\s+the\s+(?:\w+\s+)?"
    r"(?:figure|diagram|picture|image|graph|drawing)\b"
    r"|如(?:下|右|左|上)?图|下图|右图"
)


def find_missing(row: dict[str, Any], text_rich: Side) -> Iterator[tuple[str, str]]:
    """
    Finds what the text-rich question of a row lacks.

    Args:
        row (`dict[str, Any]`):
            The texts of the row.
        text_rich (`Side`):
            Its text-rich or only side.

    Yields:
        Kind of finding and details.
    """
    question = row["instruction"]
    answer = short_answer(row["output"]) or ""
    if not text_rich.pictures and LETTER.fullmatch(answer) and not OPTIONS.search(question):
        yield NO_OPTIONS, f"the answer is {answer.strip()!r}, and `instruction` {shorten(question, 80)!r}"
    figure = FIGURE.search(question)
    if not text_rich.pictures and figure:
        yield NO_FIGURE, f"`instruction` has {figure[0]!r}, and its side has no picture"
