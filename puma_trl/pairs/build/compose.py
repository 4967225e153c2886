"""A problem as a picture: diagram and typeset question on one canvas."""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...errors import DataError
from . import fonts
from .diagrams import MAX_HEIGHT, legible, scale, without_colour
from .fonts import FontBook
from .pieces import draw_pieces
from .typeset import DoesNotFit, Line, Typesetter, clean, wrap


MIN_DIGIT_HEIGHT = 10  # pixels; smaller digits are lost in patches of 14 pixels
WIDTHS = (512, 768, 1024)  # of the canvas; the next one is taken where a formula or a diagram does not fit
MAX_CHARACTERS = 20_000  # more than the largest canvas holds
GRAIN = 2  # pixels that have the same noise
BORDER = 4  # pixels that stay without ink, also after the turn


@dataclass(frozen=True)
class Style:
    """
    How a problem is printed.

    Args:
        typeface (`str`):
            Key of `fonts.TYPEFACES`.
        size (`int`):
            Size of the letters in pixels.
        margin (`int`):
            Pixels around the text.
        leading (`float`):
            Distance of two lines, in sizes of the letters.
        diagram_first (`bool`):
            Whether the diagram stands above the question.
        turn (`float`):
            Angle in degrees, counter-clockwise.
        noise (`int`):
            Largest change of a pixel's value, of 255.
    """

    typeface: str
    size: int
    margin: int
    leading: float
    diagram_first: bool
    turn: float
    noise: int


@dataclass(frozen=True)
class Composition:
    """A picture, how many formulas it has, and what of it stands as source because it could not be drawn, and why."""

    image: Image.Image
    formulas: int
    failures: tuple[tuple[str, str], ...]


def draw_style(rng: random.Random) -> Style:
    """Draws a style; the smallest letters have digits of `MIN_DIGIT_HEIGHT` pixels."""
    typeface = rng.choice(list(fonts.TYPEFACES))
    smallest = fonts.smallest_size(str(fonts.SHIPPED / fonts.TYPEFACES[typeface]), MIN_DIGIT_HEIGHT)
    return Style(
        typeface=typeface,
        size=smallest + 2 * rng.randrange(5),  # few sizes, so that words and formulas are often there already
        margin=rng.randint(16, 40),
        leading=rng.uniform(1.25, 1.6),
        diagram_first=rng.random() < 0.5,
        turn=rng.choice((0.0, rng.uniform(-1.5, 1.5))),
        noise=rng.choice((0, rng.randint(1, 6))),
    )


def compose(text: str, diagram: Image.Image | None, style: Style, book: FontBook, seed: int) -> Composition:
    """
    Prints a problem.

    Args:
        text (`str`):
            The question, with LaTeX between dollars.
        diagram (`PIL.Image.Image`, *optional*):
            Its diagram, in RGB.
        style ([`Style`]):
            How to print it.
        book ([`FontBook`]):
            Where characters find their fonts.
        seed (`int`):
            Seed of the noise.

    Raises:
        DoesNotFit: if it does not fit on the largest canvas.
        DataError: if a character is in no font, its script is not supported, or nothing of the text can be seen.
    """
    diagram = None if diagram is None else legible(without_colour(diagram))
    typesetter, width, lines, picture = _fit(text, diagram, style, book)
    canvas = _print(lines, picture, style, width)
    return Composition(_roughen(canvas, style, seed), typesetter.formulas, tuple(typesetter.failures))


def _fit(
    text: str, diagram: Image.Image | None, style: Style, book: FontBook
) -> tuple[Typesetter, int, list[Line], Image.Image | None]:
    """Finds the smallest canvas on which a question and its diagram fit; returns its width, and both for it."""
    if len(text) > MAX_CHARACTERS:
        raise DoesNotFit(f"text too long: it has {len(text):,} characters, more than {MAX_CHARACTERS:,}")
    typesetter = Typesetter(book, style.typeface)
    text = clean(text).strip()
    for width in WIDTHS:
        column = width - 2 * style.margin
        try:
            lines = wrap(typesetter.words(text, style.size, column), style.typeface, style.size, column)
            picture = None if diagram is None else scale(diagram, column, last=width == WIDTHS[-1])
            _height(lines, picture, style, width)
        except DoesNotFit:
            if width == WIDTHS[-1]:
                raise
        else:
            return typesetter, width, lines, picture
    raise AssertionError("unreachable: the largest canvas returns or raises")


def _baselines(lines: list[Line], style: Style) -> list[int]:
    """Returns the baseline of each line, in pixels from the top of the text."""
    step = style.size * style.leading
    baselines, y, descent = [], 0.0, 0
    for line in lines:
        # formulas that are higher than a line push it down
        y += max(step, descent + line.ascent + 0.25 * style.size) if baselines else max(style.size, line.ascent)
        baselines.append(round(y))
        descent = line.descent
    return baselines


def _height(lines: list[Line], diagram: Image.Image | None, style: Style, width: int) -> tuple[int, int]:
    """Returns the height of the text, and of the canvas."""
    text = round(_baselines(lines, style)[-1] + max(lines[-1].descent, 0.3 * style.size))
    height = text + 2 * style.margin + (0 if diagram is None else style.size + diagram.height)
    if height > MAX_HEIGHT:
        raise DoesNotFit(
            f"text too long: it needs {height} pixels of height on a canvas of {width}, more than {MAX_HEIGHT}"
        )
    return text, height


def _print(lines: list[Line], diagram: Image.Image | None, style: Style, width: int) -> Image.Image:
    if not any(draw_pieces(box.pieces)[0].getbbox() for line in lines for _, box in line.boxes):
        raise DataError("empty text: nothing of it can be seen")
    text_height, height = _height(lines, diagram, style, width)
    gap, picture_height = (style.size, diagram.height) if diagram is not None else (0, 0)
    mode = "L" if diagram is None else diagram.mode
    canvas = Image.new(mode, (width, height), "white")
    top = style.margin
    if diagram is not None:
        place = top if style.diagram_first else top + text_height + gap
        canvas.paste(diagram, ((width - diagram.width) // 2, place))
        top += picture_height + gap if style.diagram_first else 0
    for line, baseline in zip(lines, _baselines(lines, style), strict=True):
        for position, box in line.boxes:
            mask, left, up = draw_pieces(box.pieces)
            canvas.paste("black", (style.margin + position + left, top + baseline - up), mask)
    return canvas


def _roughen(canvas: Image.Image, style: Style, seed: int) -> Image.Image:
    """Turns the canvas, which grows so that nothing is cut off, and adds noise inside its border."""
    if style.turn:
        canvas = canvas.rotate(style.turn, Image.BILINEAR, expand=True, fillcolor="white")
    if not style.noise:
        return canvas
    pixels = np.asarray(canvas)
    generator = np.random.default_rng(seed)
    # towards grey only, so that nothing overflows; the border stays as it is
    height, width = pixels.shape[:2]
    grain = generator.integers(0, style.noise + 1, (height // GRAIN + 1, width // GRAIN + 1), dtype=np.uint8)
    noise = grain.repeat(GRAIN, 0).repeat(GRAIN, 1)[:height, :width]
    noise[:BORDER] = noise[-BORDER:] = 0
    noise[:, :BORDER] = noise[:, -BORDER:] = 0
    noise = noise if pixels.ndim == 2 else noise[:, :, None]
    return Image.fromarray(np.where(pixels > 127, pixels - noise, pixels + noise).astype(np.uint8))
