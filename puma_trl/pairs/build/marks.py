"""Delimiters of any height, and what stands above, below, around and across a body: drawn as strokes."""

import math
from collections.abc import Callable

from .metrics import Metrics
from .pieces import Laid, Piece, curve, rule, upright


STEPS = 12  # of an arc
# Width and half of the height → lines
Shape = Callable[[float, float], list[list[tuple[float, float]]]]


def _arc(x: float, y: float, across: float, up: float, start: float, end: float) -> list[tuple[float, float]]:
    """Returns points of an ellipse around `(x, y)`, in degrees counter-clockwise from the right."""
    angles = [math.radians(start + (end - start) * step / STEPS) for step in range(STEPS + 1)]
    return [(round(x + across * math.cos(angle), 2), round(y - up * math.sin(angle), 2)) for angle in angles]


def fence(metrics: Metrics, sign: str, half: int) -> Laid:
    """
    Returns a delimiter whose middle is on the axis.

    Args:
        metrics ([`Metrics`]):
            Its size.
        sign (`str`):
            The delimiter, `""` for none.
        half (`int`):
            Half of the height that it must have, in pixels.
    """
    if not sign:
        return Laid((), 0, 0, 0)
    plain = metrics.signs(sign, "rm")
    axis = metrics.axis
    if plain.ascent - axis >= 0.9 * half or sign not in _SHAPES:
        return plain
    half = max(half, plain.ascent - axis)
    width = max(plain.width, metrics.em(0.42))
    lines = _SHAPES[sign](float(width), float(half))
    lines = [[(x, y - axis) for x, y in line] for line in lines]
    thick = max(1.0, metrics.size / 14)
    return Laid((curve(sign, lines, thick),), width, half + axis + 1, half - axis + 1)


def _bracket(width: float, half: float, top: bool = True, bottom: bool = True) -> list[list[tuple[float, float]]]:
    left, right = width * 0.35, width * 0.85
    line = [(left, -half), (left, half)]
    line = [(right, -half), *line] if top else line
    return [[*line, (right, half)] if bottom else line]


def _brace(width: float, half: float) -> list[list[tuple[float, float]]]:
    middle, bend = width * 0.5, min(half / 2, width * 0.45)
    line = _arc(middle + bend, -half + bend, bend, bend, 90, 180)
    line += _arc(middle - bend, -bend, bend, bend, 0, -90) + _arc(middle - bend, bend, bend, bend, 90, 0)
    return [line + _arc(middle + bend, half - bend, bend, bend, 180, 270)]


def _mirrored(shape: Shape) -> Shape:
    return lambda width, half: [[(width - x, y) for x, y in line] for line in shape(width, half)]


def _parenthesis(width: float, half: float) -> list[list[tuple[float, float]]]:
    return [_arc(width * 0.9, 0, width * 0.65, half, 100, 260)]


_SHAPES = {
    "(": _parenthesis,
    ")": _mirrored(_parenthesis),
    "[": _bracket,
    "]": _mirrored(_bracket),
    "⌊": lambda width, half: _bracket(width, half, top=False),
    "⌋": _mirrored(lambda width, half: _bracket(width, half, top=False)),
    "⌈": lambda width, half: _bracket(width, half, bottom=False),
    "⌉": _mirrored(lambda width, half: _bracket(width, half, bottom=False)),
    "{": _brace,
    "}": _mirrored(_brace),
    "|": lambda width, half: [[(width / 2, -half), (width / 2, half)]],
    "‖": lambda width, half: [[(width * share, -half), (width * share, half)] for share in (0.3, 0.7)],
    "⟨": lambda width, half: [[(width * 0.85, -half), (width * 0.25, 0.0), (width * 0.85, half)]],
    "⟩": lambda width, half: [[(width * 0.15, -half), (width * 0.75, 0.0), (width * 0.15, half)]],
    "/": lambda width, half: [[(width * 0.9, -half), (width * 0.1, half)]],
}


def mark(metrics: Metrics, body: Laid, name: str) -> Laid:
    """
    Marks a body.

    Args:
        metrics ([`Metrics`]):
            Its size.
        body ([`Laid`]):
            What is marked.
        name (`str`):
            A sign and a place, such as `"arrow above"`.
    """
    sign, place = name.rsplit(" ", 1)
    digit = metrics.signs("0", "rm")
    body = Laid(body.pieces, body.width, max(body.ascent, digit.ascent if place != "above" else 1), body.descent)
    if place == "around":
        return _around(metrics, body, sign)
    width, thick = max(body.width, metrics.em(0.4)), metrics.line
    body = Laid(body.moved((width - body.width) // 2), width, body.ascent, body.descent)
    if place == "across":
        strike = curve("/", [[(0.0, body.descent), (width, -body.ascent)]], thick)
        return Laid((*body.pieces, strike), width, body.ascent, body.descent)
    clear, height = max(2, metrics.em(0.12)), max(3, metrics.em(0.2))
    if place == "below":
        y = body.descent + clear
        piece = _draw(sign, width, height, thick, y, flipped=True)
        return Laid((*body.pieces, piece), width, body.ascent, y + (thick if sign == "line" else height + 1))
    top = body.ascent + clear + (thick if sign == "line" else height)
    return Laid((*body.pieces, _draw(sign, width, height, thick, -top)), width, top, body.descent)


def _draw(sign: str, width: int, height: int, thick: int, y: int, flipped: bool = False) -> Piece:
    """Draws a mark as wide as its body into the room below `y`."""
    if sign == "line":
        return rule(0, y, width, thick)
    middle, low, tip = y + height / 2, y + height, min(height * 0.8, width / 2)
    centre, reach = width / 2, width / 2 if sign.startswith("wide ") else min(width / 2, height * 1.2)
    sign = sign.removeprefix("wide ")
    if sign.endswith("arrow"):
        lines = [[(0.0, middle), (float(width), middle)]]
        if sign != "left arrow":
            lines.append([(width - tip, y), (width, middle), (width - tip, low)])
        if sign != "arrow":
            lines.append([(tip, y), (0.0, middle), (tip, low)])
        return curve({"arrow": "→", "left arrow": "←", "both arrow": "↔"}[sign], lines, thick)
    if sign == "arc":
        return curve("⌢", [_arc(centre, low, width / 2, height, 0, 180)], thick)
    if sign == "brace":
        shape = [[(width / 2 + y_of, x_of) for x_of, y_of in line] for line in _brace(float(height), width / 2)]
        shape = [[(x, (y + height - z) if flipped else (y + z)) for x, z in line] for line in shape]
        return curve("⏟" if flipped else "⏞", shape, thick)
    if sign in ("dot", "dots"):
        places = [centre] if sign == "dot" else [centre - height / 2, centre + height / 2]
        lines = [[(x - thick / 2, middle), (x + thick / 2, middle)] for x in places]
        return curve("˙" * len(places), lines, thick + 1)
    left, right, half = centre - reach / 2, centre + reach / 2, height / 2
    shapes = {
        "hat": [[(centre - reach, low), (centre, y), (centre + reach, low)]],
        "check": [[(centre - reach, y), (centre, low), (centre + reach, y)]],
        "tilde": [
            _arc(left, middle, reach / 2, half, 180, 0) + _arc(right, middle, reach / 2, half, 180, 360),
        ],
        "breve": [_arc(centre, y, reach, height, 180, 360)],
        "ring": [_arc(centre, middle, half, half, 0, 360)],
    }
    return curve({"hat": "^", "check": "ˇ", "tilde": "~", "breve": "˘", "ring": "˚"}[sign], shapes[sign], thick)


def _around(metrics: Metrics, body: Laid, sign: str) -> Laid:
    side, thick = max(3, metrics.em(0.25)), metrics.line
    width, top, bottom = body.width + 2 * side, body.ascent + side, body.descent + side
    if sign == "frame":
        pieces = (rule(0, -top, width, thick), rule(0, bottom - thick, width, thick))
        pieces += (upright(0, -top, bottom, thick), upright(width - thick, -top, bottom, thick))
    else:
        centre, across, up = (bottom - top) / 2, width / 2 + 1, (top + bottom) / 2
        pieces = (curve("◯", [_arc(width / 2, centre, across, up, 0, 360)], thick),)
    return Laid((*body.moved(side), *pieces), width, top, bottom)
