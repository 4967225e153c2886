"""What is drawn: pieces of text and strokes with their places, without pixels until they are asked for."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from PIL import Image, ImageChops, ImageDraw

from . import fonts


FINE = 4  # strokes are drawn as many times larger, and reduced


class Piece(NamedTuple):
    """
    Something that is drawn in one go.

    Args:
        text (`str`):
            The characters; of strokes, the sign that they draw, `""` for rules.
        x (`int`), y (`int`):
            Pixels to the right and down, from the start of the baseline.
        size (`int`):
            Size of the letters in pixels.
        path (`str`):
            The font file, `""` for strokes.
        strokes (`tuple`, *optional*):
            Lines through points `(x, y)` from the place of the piece, each with its thickness before them.
    """

    text: str
    x: int
    y: int
    size: int
    path: str
    strokes: tuple[tuple[float, tuple[tuple[float, float], ...]], ...] = ()


class Extent(NamedTuple):
    """Pixels: to the start of what follows, of ink to the left of the start, above and below the baseline."""

    width: int
    left: int
    ascent: int
    descent: int


@dataclass(frozen=True)
class Laid:
    """
    Pieces with the room that they take.

    Args:
        pieces (`tuple[Piece, ...]`):
            What is drawn.
        width (`int`):
            Pixels to the start of what follows.
        ascent (`int`), descent (`int`):
            Pixels above and below the baseline.
    """

    pieces: tuple[Piece, ...]
    width: int
    ascent: int
    descent: int

    def moved(self, x: int, y: int = 0) -> tuple[Piece, ...]:
        """Returns the pieces, moved to the right and down."""
        return tuple(piece._replace(x=piece.x + x, y=piece.y + y) for piece in self.pieces)


@lru_cache(maxsize=16384)
def measure(text: str, path: str, size: int) -> Extent:
    """Returns the extent of characters of a font."""
    font = fonts.load(path, size)
    left, top, _, bottom = font.getbbox(text, anchor="ls")
    return Extent(round(font.getlength(text)), round(left), round(-top), round(bottom))


@lru_cache(maxsize=16384)
def draw_text(text: str, path: str, size: int) -> tuple[Image.Image, int, int]:
    """Returns the ink of characters, 255 where it is full, and where it starts: pixels to the right and up."""
    ink, (left, top) = fonts.load(path, size).getmask2(text, anchor="ls")
    mask = Image.frombytes("L", ink.size, bytes(ink)) if all(ink.size) else Image.new("L", (1, 1))
    return mask, left, -top


@lru_cache(maxsize=4096)
def draw_pieces(pieces: tuple[Piece, ...]) -> tuple[Image.Image, int, int]:
    """Returns the ink of pieces, and where it starts: pixels to the right of the start and above the baseline."""
    if len(pieces) == 1 and pieces[0].path and not pieces[0].x and not pieces[0].y:
        return draw_text(pieces[0].text, pieces[0].path, pieces[0].size)
    drawn = [(piece, *_draw_piece(piece)) for piece in pieces]
    if not drawn:
        return Image.new("L", (1, 1)), 0, 0
    left = min(piece.x + x for piece, _, x, _ in drawn)
    top = min(piece.y - y for piece, _, _, y in drawn)
    right = max(piece.x + x + mask.width for piece, mask, x, _ in drawn)
    bottom = max(piece.y - y + mask.height for piece, mask, _, y in drawn)
    page = Image.new("L", (right - left, bottom - top))
    for piece, mask, x, y in drawn:
        place = (piece.x + x - left, piece.y - y - top)
        area = (*place, place[0] + mask.width, place[1] + mask.height)
        page.paste(ImageChops.lighter(page.crop(area), mask), place)
    return page, left, -top


def _draw_piece(piece: Piece) -> tuple[Image.Image, int, int]:
    return draw_text(piece.text, piece.path, piece.size) if piece.path else _draw_strokes(piece.strokes)


@lru_cache(maxsize=4096)
def _draw_strokes(strokes: tuple) -> tuple[Image.Image, int, int]:
    points = [
        (x + side * thick / 2, y + side * thick / 2) for thick, line in strokes for x, y in line for side in (-1, 1)
    ]
    left, top = (int(min(values)) - 1 for values in zip(*points, strict=True))
    right, bottom = (int(max(values)) + 2 for values in zip(*points, strict=True))
    page = Image.new("L", ((right - left) * FINE, (bottom - top) * FINE))
    pen = ImageDraw.Draw(page)
    for thick, line in strokes:
        fine = [((x - left) * FINE, (y - top) * FINE) for x, y in line]
        level = len(line) == 2 and (line[0][0] == line[1][0] or line[0][1] == line[1][1])
        if level:  # a rule, whose edges are sharp
            (x0, y0), (x1, y1) = sorted(fine)
            half = thick * FINE / 2
            along = (0, half) if y0 == y1 else (half, 0)
            pen.rectangle((x0 - along[0], y0 - along[1], x1 + along[0] - 1, y1 + along[1] - 1), fill=255)
        else:
            pen.line(fine, fill=255, width=round(thick * FINE), joint="curve")
    return page.reduce(FINE), left, -top


def rule(x: float, y: float, width: float, thick: int) -> Piece:
    """Returns a level rule whose upper edge is at `y`."""
    middle = y + thick / 2
    return Piece("", 0, 0, 0, "", ((float(thick), ((float(x), middle), (float(x + width), middle))),))


def upright(x: float, top: float, bottom: float, thick: int) -> Piece:
    """Returns an upright rule whose left edge is at `x`."""
    middle = x + thick / 2
    return Piece("", 0, 0, 0, "", ((float(thick), ((middle, float(top)), (middle, float(bottom)))),))


def curve(text: str, lines: Iterable[Iterable[tuple[float, float]]], thick: float) -> Piece:
    """Returns strokes that draw a sign."""
    return Piece(
        text, 0, 0, 0, "", tuple((float(thick), tuple((float(x), float(y)) for x, y in line)) for line in lines)
    )
