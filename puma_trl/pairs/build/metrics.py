"""Letters of formulas in a typeface and a size: their measures, and their pieces."""

from dataclasses import dataclass

from . import fonts
from .pieces import Laid, Piece, measure


@dataclass(frozen=True)
class Metrics:
    """
    A typeface in a size.

    Args:
        book ([`FontBook`]):
            Where characters find their fonts.
        typeface (`str`):
            Key of `fonts.TYPEFACES`.
        size (`int`):
            Size of the letters in pixels.
    """

    book: fonts.FontBook
    typeface: str
    size: int

    def em(self, share: float) -> int:
        """Returns pixels of a share of the size of the letters."""
        return round(share * self.size)

    @property
    def axis(self) -> int:
        """Height of the middle of a minus above the baseline: fractions and delimiters are centred there."""
        extent = measure("−", fonts.face_path(self.typeface, "rm"), self.size)
        return (extent.ascent - extent.descent) // 2

    @property
    def line(self) -> int:
        """Thickness of rules."""
        return max(1, round(self.size / 18))

    def signs(self, text: str, face: str, size: int | None = None) -> Laid:
        """
        Lays characters out, in the fonts that have them.

        Raises:
            DataError: if a character is in no font.
        """
        size = size or self.size
        pieces: list[Piece] = []
        x = ascent = descent = 0
        for run, path in self.book.runs(self.typeface, text, face):
            extent = measure(run, path, size)
            pieces.append(Piece(run, x, 0, size, path))
            x, ascent, descent = x + extent.width, max(ascent, extent.ascent), max(descent, extent.descent)
        return Laid(tuple(pieces), x, ascent, descent)

    def centred(self, laid: Laid) -> Laid:
        """Moves something so that its middle is on the axis."""
        shift = (laid.ascent - laid.descent) // 2 - self.axis
        return Laid(laid.moved(0, shift), laid.width, laid.ascent - shift, laid.descent + shift)
