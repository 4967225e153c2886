"""LaTeX → a tree of what is to be drawn. What is not known is an error, so that no source is drawn in its place."""

import re
from dataclasses import dataclass, field, replace
from typing import Any

from .symbols import ORD


COMMAND = re.compile(r"\\(?:([a-zA-Z]+)\*?|(.))", re.DOTALL)


class CannotDraw(ValueError):
    """A piece of LaTeX has no place in a picture: the message says why."""


@dataclass(frozen=True)
class Sign:
    """Characters that are drawn as they are, with their kind (see `symbols.py`) and face: `rm`, `it` or `bf`."""

    text: str
    kind: str = ORD
    face: str = "rm"


@dataclass(frozen=True)
class Space:
    """A blank of `width` em, `ruled` if a rule stands in its place."""

    width: float
    ruled: bool = False


@dataclass(frozen=True)
class Row:
    """Nodes beside each other."""

    items: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Scripts:
    """An index and an exponent of a base, or limits, which stand `stacked` above and below it."""

    base: Any
    below: Any = None
    above: Any = None
    stacked: bool = False


@dataclass(frozen=True)
class Fraction:
    """One above the other, with a rule between if it is `ruled`."""

    above: Any
    below: Any
    ruled: bool = True


@dataclass(frozen=True)
class Root:
    """A root with its index."""

    body: Any
    index: Any = None


@dataclass(frozen=True)
class Marked:
    """A body with a line, an arrow or the like above, below, around or across it."""

    body: Any
    mark: str


@dataclass(frozen=True)
class Fenced:
    """A body between delimiters as high as it, `""` for none; `height` in em is that of a single large one."""

    left: str
    body: Any
    right: str
    height: float = 0.0


@dataclass(frozen=True)
class Hidden:
    """The room of a body, without its ink."""

    body: Any


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it holds, how many columns and rows it takes, and its alignment if it has its own."""

    body: Any
    columns: int = 1
    rows: int = 1
    align: str = ""


@dataclass(frozen=True)
class Table:
    """
    Rows of cells.

    Args:
        rows (`tuple[tuple[Cell, ...], ...]`):
            The cells.
        aligns (`str`):
            `l`, `c` or `r` of each column.
        gaps (`tuple[float, ...]`):
            Room between each column and the next, in em.
        bars (`frozenset[int]`):
            Columns before which an upright rule stands; the number of columns for one behind the last.
        rules (`tuple[tuple[int, int, int], ...]`):
            Level rules: the row below, the first column, and that behind the last.
    """

    rows: tuple[tuple[Cell, ...], ...]
    aligns: str
    gaps: tuple[float, ...]
    bars: frozenset[int] = field(default_factory=frozenset)
    rules: tuple[tuple[int, int, int], ...] = ()


def join(items: list[Any]) -> Row:
    """Puts nodes beside each other; letters of one face become one sign, which is drawn in one go."""
    merged: list[Any] = []
    for item in items:
        before = merged[-1] if merged else None
        if (
            isinstance(item, Sign)
            and isinstance(before, Sign)
            and item.kind == before.kind == ORD
            and item.face == before.face
            and item.text.isalnum()
            and before.text.isalnum()
        ):
            merged[-1] = replace(before, text=before.text + item.text)
        elif isinstance(item, Row) and not item.items:
            continue
        else:
            merged.append(item)
    return Row(tuple(merged))
