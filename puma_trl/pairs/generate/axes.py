"""A coordinate system with a grid, for graphs and charts."""

import math
from collections.abc import Sequence

from .drawing import INK, Canvas, Colour, NoRoom, Point


def nice_step(span: float, most: float) -> int:
    """Returns the smallest of 1, 2, 5, 10, 20, 50, … that divides a span into at most `most` parts."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if span / (factor * power) <= most:
                return factor * power
        power *= 10


def _whole_steps(limits: tuple[float, float], step: int) -> tuple[int, int]:
    return (math.floor(limits[0] / step) * step, math.ceil(limits[1] / step) * step)


class Axes:
    """
    Draws a grid with numbers at the left and below, and the axes; then maps coordinates to the picture.

    Args:
        canvas ([`Canvas`]):
            Where to draw; nothing is on it yet.
        x_range (`tuple[float, float]`):
            Smallest and largest x.
        y_range (`tuple[float, float]`):
            Smallest and largest y. Both ranges grow to full squares of the grid.
        step (`int`, *optional*):
            Distance of the grid lines; both axes get the same scale, so that squares are squares. By default each axis
            has its own scale, and as many lines as there is room for numbers.
        names (`Sequence[str]`, *optional*):
            Names in place of numbers below: a chart with one column for each, `x_range` then is (0, number of names).
        title (`str`, *optional*):
            Line above the grid.

    Raises:
        NoRoom: if the numbers leave no room for the grid.
    """

    def __init__(
        self,
        canvas: Canvas,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        step: int | None = None,
        names: Sequence[str] | None = None,
        title: str | None = None,
    ):
        self.canvas = canvas
        font = canvas.font_size
        self.top, self.bottom = (2.9 if title else 1.5) * font, canvas.height - canvas.margin - 1.7 * font
        self._check_room(self.top, self.bottom)
        y_step = step or nice_step(y_range[1] - y_range[0], (self.bottom - self.top) / (1.5 * font))
        self.low_y, self.high_y = _whole_steps(y_range, y_step)
        # the numbers stand left of the grid
        numbers = max(canvas.width_of(str(self.low_y)), canvas.width_of(str(self.high_y)))
        self.left, self.right = canvas.margin + numbers + 0.6 * font, canvas.width - 1.2 * font
        self._check_room(self.left, self.right)
        x_step = step or nice_step(x_range[1] - x_range[0], (self.right - self.left) / (2.4 * font))
        self.low_x, self.high_x = x_range if names else _whole_steps(x_range, x_step)
        self.unit_x = (self.right - self.left) / (self.high_x - self.low_x)
        self.unit_y = (self.bottom - self.top) / (self.high_y - self.low_y)
        if step and not names:
            self._make_square()
        self._draw_grid((x_step, y_step), names)
        if title:
            canvas.label(title, ((self.left + self.right) / 2, canvas.margin), [(0, 1)])

    def at(self, x: float, y: float) -> Point:
        """Returns the pixel of a point."""
        return (self.left + (x - self.low_x) * self.unit_x, self.bottom - (y - self.low_y) * self.unit_y)

    def line(self, slope: float, intercept: float, fill: Colour = INK) -> tuple[Point, Point]:
        """Draws the line y = slope·x + intercept across the grid, and returns its ends as pixels."""
        ends = [self.low_x, self.high_x]
        if slope:
            at_edges = sorted((edge - intercept) / slope for edge in (self.low_y, self.high_y))
            ends = [max(ends[0], at_edges[0]), min(ends[1], at_edges[1])]
        start, end = (self.at(x, slope * x + intercept) for x in ends)
        self.canvas.line(start, end, width=1.4, fill=fill)
        return start, end

    def _check_room(self, start: float, end: float) -> None:
        if end <= start:
            width, height = self.canvas.width, self.canvas.height
            raise NoRoom(f"The grid and its numbers have no room in a picture of {width}x{height} pixels.")

    def _make_square(self) -> None:
        unit = min(self.unit_x, self.unit_y)
        spare_x = self.right - self.left - unit * (self.high_x - self.low_x)
        spare_y = self.bottom - self.top - unit * (self.high_y - self.low_y)
        self.left, self.right = self.left + spare_x / 2, self.right - spare_x / 2
        self.top, self.bottom = self.top + spare_y / 2, self.bottom - spare_y / 2
        self.unit_x = self.unit_y = unit

    def _draw_grid(self, steps: tuple[int, int], names: Sequence[str] | None) -> None:
        canvas, font = self.canvas, self.canvas.font_size
        xs = [] if names else range(self.low_x, self.high_x + 1, steps[0])
        ys = range(self.low_y, self.high_y + 1, steps[1])
        for x in xs:
            canvas.hairline(self.at(x, self.low_y), self.at(x, self.high_y))
        for y in ys:
            canvas.hairline(self.at(self.low_x, y), self.at(self.high_x, y))
        zero_x, zero_y = (
            max(low, min(0, high)) for low, high in ((self.low_x, self.high_x), (self.low_y, self.high_y))
        )
        x_axis = (self.at(self.low_x, zero_y), self.at(self.high_x, zero_y))
        y_axis = (self.at(zero_x, self.low_y), self.at(zero_x, self.high_y))
        canvas.line(*x_axis)
        canvas.line(*y_axis)
        if names:
            for index, name in enumerate(names):
                canvas.label(name, self.at(index + 0.5, self.low_y), [(0, 1)])
        else:
            canvas.arrow(*x_axis)
            canvas.arrow(*y_axis)
            canvas.label("x", x_axis[1], [(1, 0)])
            canvas.label("y", y_axis[1], [(0, -1)])
            every = math.ceil(1.5 * max(map(canvas.width_of, map(str, xs))) / (steps[0] * self.unit_x))
            for x in [x for x in xs if x // steps[0] % every == 0]:
                left, bottom = self.at(x, self.low_y)
                canvas.label(str(x), (left, bottom + 0.4 * font), [(0, 1)])  # clear of the lowest number at the left
        every = math.ceil(1.1 * font / (steps[1] * self.unit_y))
        for y in [y for y in ys if y // steps[1] % every == 0]:
            canvas.label(str(y), self.at(self.low_x, y), [(-1, 0)])
