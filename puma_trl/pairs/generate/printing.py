"""The question printed above a figure, for `vision_only`."""

import math

from PIL import Image, ImageDraw, ImageFont

from .drawing import INK, SUPERSAMPLING, WHITE, NoRoom, font_for, label_size


LEADING = 1.3  # distance of two lines, in sizes of the letters


def print_above(text: str, figure: Image.Image, label_grid: int) -> Image.Image:
    """
    Prints a question above a figure; the picture becomes higher.

    Args:
        text (`str`):
            The question.
        figure (`PIL.Image.Image`):
            The figure.
        label_grid (`int`):
            That of the figure (see [`Canvas`]), which keeps its place on it, also where 2 x 2 patches become one.

    Raises:
        NoRoom: if a word is wider than the figure.
    """
    size = label_size(*figure.size)
    font = font_for(text, size * SUPERSAMPLING)
    margin = max(1, size // 5)
    lines = _wrap(text, font, (figure.width - 2 * margin) * SUPERSAMPLING)
    height = round(LEADING * size * len(lines)) + margin
    if label_grid > 1:
        height = 2 * label_grid * math.ceil(height / (2 * label_grid))
    strip = Image.new("L", (figure.width * SUPERSAMPLING, height * SUPERSAMPLING), WHITE[0])
    draw = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        middle = margin + (number + 0.5) * LEADING * size
        draw.text((margin * SUPERSAMPLING, middle * SUPERSAMPLING), line, fill=INK[0], font=font, anchor="lm")
    page = Image.new(figure.mode, (figure.width, figure.height + height))
    page.paste(strip.reduce(SUPERSAMPLING).convert(figure.mode), (0, 0))
    page.paste(figure, (0, height))
    return page


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    lines: list[str] = []
    for each in text.split():
        if font.getlength(each) > width:
            raise NoRoom(f"The word '{each}' is wider than the picture.")
        longer = f"{lines[-1]} {each}" if lines else each
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(each)
    return lines
