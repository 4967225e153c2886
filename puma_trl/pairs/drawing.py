"""A canvas for problem figures: lines, polygons, circles, bars, and labels that never overlap anything."""

import math
import random
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont


Point = tuple[float, float]

SUPERSAMPLING = 2  # Pillow draws lines without anti-aliasing, so everything is drawn twice as large and reduced
INK = (20, 20, 20)


class DoesNotFit(ValueError):
    """A label found no free place; the figure is to be drawn again with other random choices."""


@lru_cache(maxsize=64)
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Returns Pillow's bundled font, the only one that is the same on every machine."""
    return ImageFont.load_default(size=size)


@lru_cache(maxsize=4096)
def _text_box(text: str, size: int) -> tuple[float, float, float, float]:
    return load_font(size).getbbox(text, anchor="mm")


class Canvas:
    """
    A white picture to draw one figure on. Coordinates are pixels of the finished picture, y downwards.

    Args:
        width (`int`):
            Width in pixels.
        height (`int`):
            Height in pixels.
        rng (`random.Random`):
            Source of the small variations between two drawings of the same figure.
        font_size (`int`, *optional*):
            Size of the labels in pixels. Defaults to a size that stays legible: 15, or 1/18 of the shorter side.
        label_grid (`int`, *optional*, defaults to `1`):
            Distance in pixels of the lines that labels stand on. With the patch size of a vision tower, a digit looks
            the same wherever it stands, which a small tower learns to read much sooner.
    """

    def __init__(self, width: int, height: int, rng: random.Random, font_size: int | None = None, label_grid: int = 1):
        self.label_grid = label_grid
        self.width = width
        self.height = height
        self.rng = rng
        self.font_size = font_size or max(15, min(width, height) // 18)
        self.margin = max(1.0, min(width, height) / 100)
        self.stroke = max(1.0, min(width, height) / 200)
        self._image = Image.new("RGB", (width * SUPERSAMPLING, height * SUPERSAMPLING), "white")
        self._draw = ImageDraw.Draw(self._image)
        self._segments: list[tuple[Point, Point]] = []
        self._boxes: list[tuple[float, float, float, float]] = []

    def finish(self) -> Image.Image:
        """Returns the finished picture."""
        return self._image.reduce(SUPERSAMPLING)

    def fit(self, points: Sequence[Point], room: float = 1.5, turn: float = 0.0) -> list[Point]:
        """
        Turns a figure, and scales and moves it into the picture with room for labels around it.

        Args:
            points (`Sequence[Point]`):
                Corners in any unit, y upwards.
            room (`float`, *optional*, defaults to `1.5`):
                Free border in heights of a label.
            turn (`float`, *optional*, defaults to `0.0`):
                Angle in radians, counter-clockwise.
        """
        cos, sin = math.cos(turn), math.sin(turn)
        turned = [(x * cos - y * sin, -(x * sin + y * cos)) for x, y in points]
        left, top = min(x for x, _ in turned), min(y for _, y in turned)
        extent_x = max(x for x, _ in turned) - left or 1e-9
        extent_y = max(y for _, y in turned) - top or 1e-9
        border = room * self.font_size + self.margin
        space_x, space_y = self.width - 2 * border, self.height - 2 * border
        scale = min(space_x / extent_x, space_y / extent_y) * self.rng.uniform(0.85, 1.0)
        shift_x = border + self.rng.random() * (space_x - scale * extent_x)
        shift_y = border + self.rng.random() * (space_y - scale * extent_y)
        return [(shift_x + scale * (x - left), shift_y + scale * (y - top)) for x, y in turned]

    def line(self, start: Point, end: Point, width: float = 1.0, fill: tuple[int, int, int] = INK) -> None:
        """Draws a line that labels keep clear of; `width` counts in strokes of the picture."""
        self._segments.append((start, end))
        points = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in (start, end)]
        self._draw.line(points, fill=fill, width=max(1, round(width * self.stroke * SUPERSAMPLING)))

    def polygon(self, points: Sequence[Point]) -> None:
        """Draws the outline of a polygon."""
        for start, end in zip(points, [*points[1:], points[0]], strict=True):
            self.line(start, end)

    def rectangle(self, left: float, top: float, right: float, bottom: float, fill: tuple[int, int, int]) -> None:
        """Draws a filled rectangle, such as a bar of a chart."""
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        self._draw.rectangle([v * SUPERSAMPLING for v in (left, top, right, bottom)], fill=fill)
        self.polygon(corners)

    def arc(self, center: Point, radius: float, start: float, end: float) -> None:
        """Draws an arc from angle `start` to `end`, in radians counter-clockwise from the x axis."""
        steps = max(4, round(abs(end - start) * 8))
        angles = [start + (end - start) * step / steps for step in range(steps + 1)]
        points = [(center[0] + radius * math.cos(a), center[1] - radius * math.sin(a)) for a in angles]
        for first, second in zip(points, points[1:], strict=False):
            self.line(first, second)

    def label(self, text: str, point: Point, directions: Sequence[Point]) -> None:
        """
        Writes a label beside a point, where it overlaps neither a line nor another label nor the border.

        Args:
            text (`str`):
                What to write.
            point (`Point`):
                What the label belongs to.
            directions (`Sequence[Point]`):
                Directions to go from the point, the best first; any length. In each, the nearest free place is taken
                within two heights of a label.

        Raises:
            DoesNotFit: if no place is free.
        """
        size = self.font_size * SUPERSAMPLING
        box = [value / SUPERSAMPLING for value in _text_box(text, size)]
        half = (max(-box[0], box[2]), max(-box[1], box[3]))
        for reach in (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0):
            for dx, dy in directions:
                length = math.hypot(dx, dy) or 1.0
                dx, dy = dx / length, dy / length
                # the distance at which the box of the text just leaves the point
                leave = min(half[0] / abs(dx) if dx else math.inf, half[1] / abs(dy) if dy else math.inf)
                away = (0.0 if math.isinf(leave) else leave) + 2 * self.stroke + 1.0 + reach * self.font_size
                x = self._snap(point[0] + dx * away + box[0], 3.0) - box[0]
                y = self._snap(point[1] + dy * away, self.label_grid / 2 - 1)
                place = (x + box[0] - 1, y + box[1] - 1, x + box[2] + 1, y + box[3] + 1)
                if self._is_free(place):
                    self._boxes.append(place)
                    position = (x * SUPERSAMPLING, y * SUPERSAMPLING)
                    self._draw.text(position, text, fill=INK, font=load_font(size), anchor="mm")
                    return
        raise DoesNotFit(f"The label '{text}' found no free place in a picture of {self.width}x{self.height} pixels.")

    def _snap(self, value: float, offset: float) -> float:
        return round((value - offset) / self.label_grid) * self.label_grid + offset if self.label_grid > 1 else value

    def _is_free(self, box: tuple[float, float, float, float]) -> bool:
        left, top, right, bottom = box
        if left < self.margin or top < self.margin:
            return False
        if right > self.width - self.margin or bottom > self.height - self.margin:
            return False
        for other in self._boxes:
            if left < other[2] and other[0] < right and top < other[3] and other[1] < bottom:
                return False
        return not any(_crosses(start, end, box) for start, end in self._segments)


def _crosses(start: Point, end: Point, box: tuple[float, float, float, float]) -> bool:
    """Tells whether a segment meets a box (Liang-Barsky clipping)."""
    low, high = 0.0, 1.0
    for axis in (0, 1):
        step = end[axis] - start[axis]
        below, above = box[axis] - start[axis], box[axis + 2] - start[axis]
        if step == 0:
            if below > 0 or above < 0:
                return False
            continue
        enter, leave = sorted((below / step, above / step))
        low, high = max(low, enter), min(high, leave)
        if low > high:
            return False
    return True
