"""
Trees of LaTeX → pieces with their places, in the manner of TeX.

Laid out here, since ziamath and mathtext have no Chinese, no lines in tables, and ziamath draws the names of
commands that it does not know.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from . import fonts, marks
from .metrics import Metrics
from .pieces import Laid, rule
from .symbols import BIG, BIN, CLOSE, NAME, OPEN, ORD, PUNCT, REL
from .tables import lay_table
from .tree import Fenced, Fraction, Hidden, Marked, Root, Row, Scripts, Sign, Space, Table


MIN_SMALL_DIGIT = 7  # pixels; digits of exponents and indices
SMALL = 0.7  # size of an exponent, as a share of the letters
LARGE = 1.4  # size of large operators
THIN, MEDIUM, THICK = 1 / 6, 2 / 9, 5 / 18  # em
# What stands before a sign that could be binary and makes it one of a number: -3
UNARY = (None, BIN, REL, OPEN, PUNCT, BIG, NAME)


@dataclass(frozen=True)
class Setter(Metrics):
    """
    Lays trees out in a typeface.

    Args:
        full (`int`, *optional*):
            In exponents, the size of the letters outside of them.
    """

    full: int = 0

    @property
    def small(self) -> "Setter":
        """The setter of exponents; those of exponents are as large."""
        if self.full:
            return self
        path = fonts.face_path(self.typeface, "rm")
        size = max(fonts.smallest_size(path, MIN_SMALL_DIGIT), round(SMALL * self.size))
        return Setter(self.book, self.typeface, size, self.size)

    def lay(self, node: Any) -> Laid:
        """
        Lays a tree out.

        Raises:
            DataError: if a character is in no font.
        """
        return _lay(self, node)


@lru_cache(maxsize=8192)
def _lay(setter: Setter, node: Any) -> Laid:
    return _LAYERS[type(node)](setter, node)


def beside(parts: Sequence[tuple[int, Laid]], width: int) -> Laid:
    """Puts parts beside each other, each at its place."""
    return Laid(
        tuple(piece for x, part in parts for piece in part.moved(x)),
        width,
        max((part.ascent for _, part in parts), default=0),
        max((part.descent for _, part in parts), default=0),
    )


def _lay_sign(setter: Setter, node: Sign) -> Laid:
    if node.kind != BIG:
        return setter.signs(node.text, node.face)
    return setter.centred(setter.signs(node.text, node.face, round(LARGE * setter.size)))


def _lay_space(setter: Setter, node: Space) -> Laid:
    width = setter.em(node.width)
    return Laid((rule(0, 1, width, setter.line),) if node.ruled else (), width, 0, 0)


def kind_of(node: Any, last: bool = False) -> str:
    """Returns the kind of a node, of its first or last sign."""
    if isinstance(node, Sign):
        return node.kind
    if isinstance(node, Row):
        return kind_of(node.items[-1 if last else 0], last) if node.items else ORD
    if isinstance(node, Scripts):
        return kind_of(node.base, last)
    return ORD


def gap(setter: Setter, before: str | None, kind: str) -> float:
    """Returns the room between two kinds of signs, in em; exponents have little."""
    if before is None:
        return 0.0
    if setter.full:
        return THIN / 2 if BIN in (before, kind) or REL in (before, kind) else 0.0
    if REL in (before, kind):
        return 0.0 if before == kind or kind in (CLOSE, PUNCT) or before == OPEN else THICK
    if BIN in (before, kind):
        return MEDIUM
    if before == PUNCT:
        return THIN
    if NAME in (before, kind) or BIG in (before, kind):
        return 0.0 if kind in (OPEN, CLOSE, PUNCT) or before == OPEN else THIN
    return 0.0


def break_formula(node: Row) -> list[Row]:
    """Cuts a formula before the operators between its terms, and behind its commas, for lines to break there."""
    pieces: list[list[Any]] = [[]]
    before = None
    for item in node.items:
        kind = kind_of(item)
        if kind in (BIN, REL) and before not in UNARY and before is not None:
            pieces.append([Space(0.25), item, Space(0.25)])
        else:
            pieces[-1].append(item)
            if kind == PUNCT:
                pieces[-1].append(Space(THIN))
                pieces.append([])
        before = kind
    return [Row(tuple(piece)) for piece in pieces if piece]


def _lay_row(setter: Setter, node: Row) -> Laid:
    parts, x, before = [], 0, None
    for index, item in enumerate(node.items):
        kind, last = kind_of(item), kind_of(item, last=True)
        if kind == BIN and (before in UNARY or index == len(node.items) - 1):
            kind = last = ORD
        if isinstance(item, Space):
            before = ORD if before is None else before
        else:
            x += setter.em(gap(setter, before, kind))
            before = last
        laid = setter.lay(item)
        parts.append((x, laid))
        x += laid.width
    return beside(parts, x)


def _lay_scripts(setter: Setter, node: Scripts) -> Laid:
    base = setter.lay(node.base)
    above = setter.small.lay(node.above) if node.above is not None else None
    below = setter.small.lay(node.below) if node.below is not None else None
    if node.stacked:
        return _stack(setter, base, above, below)
    strut = setter.signs("x", "rm")
    clear = max(1, setter.em(0.06))
    up = max(setter.em(0.36), base.ascent - setter.small.em(0.40)) if above else 0
    down = max(setter.em(0.16), base.descent + setter.small.em(0.10)) if below else 0
    if above:
        up = max(up, above.descent + strut.ascent // 2)
    if below:
        down = max(down, below.ascent - strut.ascent + clear)
    if above and below:  # which must not touch
        down = max(down, clear + above.descent - up + below.ascent)
    x, pieces = base.width + clear, base.pieces
    width, ascent, descent = base.width, base.ascent, base.descent
    for part, shift in ((above, -up), (below, down)):
        if part:
            pieces += part.moved(x, shift)
            width = max(width, x + part.width + clear)
            ascent, descent = max(ascent, part.ascent - shift), max(descent, part.descent + shift)
    return Laid(pieces, width, ascent, descent)


def _stack(setter: Setter, base: Laid, above: Laid | None, below: Laid | None) -> Laid:
    """Puts parts above and below a base, all in the middle."""
    clear = max(2, setter.em(0.12))
    width = max(part.width for part in (base, above, below) if part)
    pieces = base.moved((width - base.width) // 2)
    ascent, descent = base.ascent, base.descent
    if above:
        pieces += above.moved((width - above.width) // 2, -(base.ascent + clear + above.descent))
        ascent += clear + above.descent + above.ascent
    if below:
        pieces += below.moved((width - below.width) // 2, base.descent + clear + below.ascent)
        descent += clear + below.ascent + below.descent
    return Laid(pieces, width, ascent, descent)


def _lay_fraction(setter: Setter, node: Fraction) -> Laid:
    above, below = setter.lay(node.above), setter.lay(node.below)
    side, clear, thick = max(1, setter.em(0.1)), max(2, setter.em(0.14)), setter.line if node.ruled else 0
    inner = max(above.width, below.width) + 2
    top = setter.axis + thick // 2  # upper edge of the rule
    up, down = top + clear + above.descent, thick - top + clear + below.ascent
    pieces = above.moved(side + (inner - above.width) // 2, -up) + below.moved(side + (inner - below.width) // 2, down)
    if node.ruled:
        pieces += (rule(side, -top, inner, thick),)
    return Laid(pieces, inner + 2 * side, up + above.ascent, down + below.descent)


def _lay_root(setter: Setter, node: Root) -> Laid:
    body = setter.lay(node.body)
    digit = setter.signs("0", "rm")
    ascent, descent = max(body.ascent, digit.ascent), max(body.descent, 0)
    clear, thick = max(2, setter.em(0.12)), setter.line
    top = ascent + clear + thick
    foot, hook = max(3, setter.em(0.22)), max(4, setter.em(0.34))
    index = setter.small.lay(node.index) if node.index is not None else None
    start = max(0, index.width - foot + 1) if index else 0
    middle = descent - (top + descent) * 0.42
    edge = start + foot + hook
    lines = [[(start, middle), (start + foot * 0.6, middle - 1), (start + foot, descent), (edge, thick / 2 - top)]]
    pieces = (marks.curve("√", lines, thick), rule(edge, -top, body.width + 2, thick), *body.moved(edge + 1))
    height = top
    if index:
        up = round(-middle) + 2 + index.descent
        pieces += index.moved(max(0, start + foot - index.width - 1), -up)
        height = max(height, up + index.ascent)
    return Laid(pieces, edge + body.width + 3, height, descent)


def _lay_marked(setter: Setter, node: Marked) -> Laid:
    return marks.mark(setter, setter.lay(node.body), node.mark)


def _lay_fenced(setter: Setter, node: Fenced) -> Laid:
    body = setter.lay(node.body)
    axis = setter.axis
    half = max(body.ascent - axis, body.descent + axis, round(setter.size * node.height / 2))
    left, right = marks.fence(setter, node.left, half), marks.fence(setter, node.right, half)
    parts = [(0, left), (left.width, body), (left.width + body.width, right)]
    return beside(parts, left.width + body.width + right.width)


def _lay_hidden(setter: Setter, node: Hidden) -> Laid:
    body = setter.lay(node.body)
    return Laid((), body.width, body.ascent, body.descent)


def _lay_table(setter: Setter, node: Table) -> Laid:
    return lay_table(setter, node, setter.lay)


_LAYERS = {
    Sign: _lay_sign,
    Space: _lay_space,
    Row: _lay_row,
    Scripts: _lay_scripts,
    Fraction: _lay_fraction,
    Root: _lay_root,
    Marked: _lay_marked,
    Fenced: _lay_fenced,
    Hidden: _lay_hidden,
    Table: _lay_table,
}
