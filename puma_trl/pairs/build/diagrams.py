"""Diagrams as they come → diagrams that can be read on a canvas: large enough, not too large, and with contrast."""

import numpy as np
from PIL import Image

from .typeset import DoesNotFit


MAX_HEIGHT = 2048  # of a canvas
TINY = 160  # pixels; a diagram whose longer side has fewer is enlarged
FAINT = 96  # grey levels between the darkest and the lightest below which a diagram is hard to see
NOTICED = 0.0005  # share of pixels that make a level count
DRAWN = 0.6  # share of pixels of the background from which on a diagram is a drawing
THINNEST = 12  # pixels that the shorter side must keep


def without_colour(diagram: Image.Image) -> Image.Image:
    """Returns a diagram without colours as one channel, which takes a third of the time and of the disk."""
    red, *others = diagram.split()
    return red if all(channel.tobytes() == red.tobytes() for channel in others) else diagram


def legible(diagram: Image.Image) -> Image.Image:
    """Stretches the contrast of a faint diagram, such as grey on black, and enlarges a tiny one."""
    counts = np.array(diagram.convert("L").histogram())
    levels = np.flatnonzero(counts >= max(1, NOTICED * counts.sum()))
    low, high = (int(levels[0]), int(levels[-1])) if len(levels) else (0, 255)
    if 0 < high - low < FAINT:
        slope = 255 / (high - low)
        table = [min(255, max(0, round((level - low) * slope))) for level in range(256)]
        diagram = diagram.point(table * len(diagram.getbands()))
    longest = max(diagram.size)
    if longest < TINY:
        times = -(-TINY // longest)
        diagram = diagram.resize((diagram.width * times, diagram.height * times), Image.Resampling.BICUBIC)
    return diagram


def scale(diagram: Image.Image, column: int, last: bool) -> Image.Image:
    """
    Scales a diagram down that is too large; one that is too wide waits for the largest canvas.

    Raises:
        DoesNotFit: if it is too wide for this canvas, or so narrow that nothing of it could be seen.
    """
    if diagram.width > column and not last:
        raise DoesNotFit(f"too wide: the diagram has {diagram.width} pixels, the column {column}")
    share = min(1.0, column / diagram.width, MAX_HEIGHT / 2 / diagram.height)
    if share == 1.0:
        return diagram
    size = (max(1, int(diagram.width * share)), max(1, int(diagram.height * share)))
    if min(size) < min(THINNEST, *diagram.size):
        raise DoesNotFit(
            f"too wide: the diagram has {diagram.width} x {diagram.height} pixels, of which {size[0]} x {size[1]} "
            "would be left on the canvas"
        )
    return _keep_lines(diagram, int(1 / share)).resize(size, Image.Resampling.LANCZOS)


def _keep_lines(diagram: Image.Image, times: int) -> Image.Image:
    """Makes a drawing smaller by a whole number so that its thin lines stay dark: darker than the mean of a block."""
    pixels = np.asarray(diagram)
    grey = pixels if pixels.ndim == 2 else pixels.mean(2)
    background = np.median(grey)
    if times < 2 or (np.abs(grey - background) < 16).mean() < DRAWN:
        return diagram
    height, width = (side // times * times for side in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // times, times, width // times, times, -1).astype(np.float32)
    edge = blocks.min((1, 3)) if background > 127 else blocks.max((1, 3))
    mixed = ((edge + blocks.mean((1, 3))) / 2).round().astype(np.uint8)
    return Image.fromarray(mixed[:, :, 0] if pixels.ndim == 2 else mixed)
