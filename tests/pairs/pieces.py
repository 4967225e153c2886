"""What `compose` draws of a question, without drawing it."""

from puma_trl.pairs.build.compose import _baselines, _fit


def list_pieces(text, style, book):
    """Returns the pieces with their places on the canvas, before it is turned, and what is printed as source."""
    typesetter, _, lines, _ = _fit(text, None, style, book)
    pieces = []
    for line, baseline in zip(lines, _baselines(lines, style), strict=True):
        for position, box in line.boxes:
            x, y = style.margin + position, style.margin + baseline
            pieces += [piece._replace(x=piece.x + x, y=piece.y + y) for piece in box.pieces]
    return pieces, tuple(typesetter.failures)
