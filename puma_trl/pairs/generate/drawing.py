"""A canvas for problem figures: lines, curves, marks of plane geometry, and labels that never overlap anything."""

import math
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont


Point = tuple[float, float]
Colour = tuple[int, int, int]

SUPERSAMPLING = 2  # Pillow draws lines without anti-aliasing, so everything is drawn twice as large and reduced
INK = (20, 20, 20)
PALE = (205, 205, 205)
WHITE = (255, 255, 255)
COLOURS = [(150, 180, 215), (225, 180, 130), (165, 205, 155), (205, 165, 200), (235, 215, 130)]
LABEL_STEPS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # distances from a point that are tried, in heights of a label


class NoRoom(ValueError):
    """A label found no free place; the figure is to be drawn again with other random choices."""


@lru_cache(maxsize=64)
def load_font(size: int, all_symbols: bool = False) -> ImageFont.FreeTypeFont:
    """Returns Pillow's bundled font, or, as that has no ², ³ and π, matplotlib's: the same on every machine."""
    if all_symbols:
        return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
    return ImageFont.load_default(size=size)


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Returns the font that has all letters of a text."""
    return load_font(size, all_symbols=any(letter in text for letter in "²³π"))


def label_size(width: int, height: int) -> int:
    """Returns the size of letters that stays legible in a picture: 15 pixels, or 1/18 of the shorter side."""
    return max(15, min(width, height) // 18)


@lru_cache(maxsize=4096)
def _text_box(text: str, size: int) -> tuple[float, float, float, float]:
    return font_for(text, size).getbbox(text, anchor="mm")


def middle(start: Point, end: Point) -> Point:
    """Returns the point halfway between two."""
    return between(start, end, 0.5)


def between(start: Point, end: Point, share: float) -> Point:
    """Returns the point at a share of the way from one point to another."""
    return (start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1]))


def polar(angle: float, radius: float = 1.0, center: Point = (0.0, 0.0)) -> Point:
    """Returns the point at an angle in degrees, counter-clockwise from the x axis with y upwards."""
    return (center[0] + radius * math.cos(math.radians(angle)), center[1] + radius * math.sin(math.radians(angle)))


def center_of(points: Sequence[Point]) -> Point:
    """Returns the mean of points, which lies inside a convex polygon."""
    return (sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points))


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
            Size of the labels in pixels. Defaults to [`label_size`].
        label_grid (`int`, *optional*, defaults to `1`):
            Distance in pixels of the lines that labels stand on. With the patch size of a vision tower, a digit looks
            the same wherever it stands, which a small tower learns to read much sooner.
    """

    def __init__(self, width: int, height: int, rng: random.Random, font_size: int | None = None, label_grid: int = 1):
        self.label_grid = label_grid
        self.width = width
        self.height = height
        self.rng = rng
        self.font_size = font_size or label_size(width, height)
        self.margin = max(1.0, min(width, height) / 100)
        self.stroke = max(1.0, min(width, height) / 200)
        # grey until a colour comes: three times as fast to draw, reduce and encode
        self._image = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING), WHITE[0])
        self._draw = ImageDraw.Draw(self._image)
        self._segments: list[tuple[Point, Point]] = []
        self._boxes: list[tuple[float, float, float, float]] = []
        self._has_grid = False

    def finish(self) -> Image.Image:
        """Returns the finished picture, in the mode `L` if it has no colours, else `RGB`."""
        return self._image.reduce(SUPERSAMPLING)

    def fit(
        self, points: Sequence[Point], room: float = 1.5, turn: float = 0.0, side_room: float | None = None
    ) -> list[Point]:
        """
        Turns a figure, and scales and moves it into the picture with room for labels around it.

        Args:
            points (`Sequence[Point]`):
                Corners in any unit, y upwards.
            room (`float`, *optional*, defaults to `1.5`):
                Free border in heights of a label.
            turn (`float`, *optional*, defaults to `0.0`):
                Angle in radians, counter-clockwise.
            side_room (`float`, *optional*):
                Free border at the left and right. Defaults to `room`.
        """
        cos, sin = math.cos(turn), math.sin(turn)
        turned = [(x * cos - y * sin, -(x * sin + y * cos)) for x, y in points]
        left, top = min(x for x, _ in turned), min(y for _, y in turned)
        extent_x = max(x for x, _ in turned) - left or 1e-9
        extent_y = max(y for _, y in turned) - top or 1e-9
        border_x = (room if side_room is None else side_room) * self.font_size + self.margin
        border_y = room * self.font_size + self.margin
        space_x, space_y = self.width - 2 * border_x, self.height - 2 * border_y
        scale = min(space_x / extent_x, space_y / extent_y) * self.rng.uniform(0.85, 1.0)
        shift_x = border_x + self.rng.random() * (space_x - scale * extent_x)
        shift_y = border_y + self.rng.random() * (space_y - scale * extent_y)
        return [(shift_x + scale * (x - left), shift_y + scale * (y - top)) for x, y in turned]

    def line(self, start: Point, end: Point, width: float = 1.0, fill: Colour = INK) -> None:
        """Draws a line that labels keep clear of; `width` counts in strokes of the picture."""
        self._segments.append((start, end))
        self._stroke((start, end), fill, width)

    def _paint(self, colour: Colour) -> int | Colour:
        """
        Returns a colour as the picture's mode has it, and changes the mode where the colour is not a grey. `_draw` is
        to be read after it.
        """
        if self._image.mode == "L" and len(set(colour)) == 1:
            return colour[0]
        if self._image.mode == "L":
            self._image = self._image.convert("RGB")
            self._draw = ImageDraw.Draw(self._image)
        return colour

    def _stroke(self, points: Sequence[Point], fill: Colour, width: float) -> None:
        scaled = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points]
        colour = self._paint(fill)
        self._draw.line(scaled, fill=colour, width=max(1, round(width * self.stroke * SUPERSAMPLING)))

    def polygon(self, points: Sequence[Point]) -> None:
        """Draws the outline of a polygon."""
        for start, end in zip(points, [*points[1:], points[0]], strict=True):
            self.line(start, end)

    def rectangle(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        """Draws a filled rectangle, such as a bar of a chart."""
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        colour = self._paint(fill)
        self._draw.rectangle([v * SUPERSAMPLING for v in (left, top, right, bottom)], fill=colour)
        self.polygon(corners)

    def arc(self, center: Point, radius: float, start: float, end: float) -> None:
        """Draws an arc from angle `start` to `end`, in radians counter-clockwise from the x axis."""
        steps = max(4, round(abs(end - start) * 8))
        angles = [start + (end - start) * step / steps for step in range(steps + 1)]
        points = [(center[0] + radius * math.cos(a), center[1] - radius * math.sin(a)) for a in angles]
        for first, second in zip(points, points[1:], strict=False):
            self.line(first, second)

    def path(self, points: Sequence[Point], dashed: bool = False, fill: Colour = INK, width: float = 1.0) -> None:
        """Draws a curve through points that lie close together; dashed, every other piece of it."""
        for index, (start, end) in enumerate(zip(points, points[1:], strict=False)):
            if dashed and index % 2:
                self._segments.append((start, end))
            else:
                self.line(start, end, width, fill)

    def dashed(self, start: Point, end: Point) -> None:
        """Draws a dashed line."""
        pieces = 2 * max(1, round(math.dist(start, end) / self.font_size)) + 1
        self._segments.append((start, end))
        for piece in range(0, pieces, 2):
            ends = [between(start, end, share / pieces) for share in (piece, piece + 1)]
            self._stroke(ends, INK, 1.0)

    def hairline(self, start: Point, end: Point) -> None:
        """Draws a pale line of a grid, which labels may cover; all of them come before the first label."""
        self._has_grid = True
        self._stroke([start, end], PALE, 0.7)

    def ellipse(self, center: Point, radius_x: float, radius_y: float, hidden: bool = False) -> None:
        """Draws an ellipse; `hidden`: its upper half, the far side of a lying circle, is dashed."""
        for start, dashed in ((180, False), (0, hidden)):
            turns = [start + 180 * step / 24 for step in range(25)]
            waves = [polar(turn) for turn in turns]
            self.path([(center[0] + radius_x * x, center[1] - radius_y * y) for x, y in waves], dashed)

    def circle(self, center: Point, radius: float) -> None:
        """Draws a circle."""
        self.ellipse(center, radius, radius)

    def dot(self, point: Point, size: float = 2.0, fill: Colour = INK) -> None:
        """Draws a point that labels keep clear of; `size` is its radius in strokes of the picture."""
        radius = size * self.stroke
        box = (point[0] - radius, point[1] - radius, point[0] + radius, point[1] + radius)
        self._segments += [((box[0], box[1]), (box[2], box[3])), ((box[0], box[3]), (box[2], box[1]))]
        colour = self._paint(fill)
        self._draw.ellipse([value * SUPERSAMPLING for value in box], fill=colour)

    def shade(self, points: Sequence[Point], fill: Colour) -> None:
        """Fills a polygon without an outline."""
        colour = self._paint(fill)
        self._draw.polygon([(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points], fill=colour)

    def right_angle(self, corner: Point, first: Point, second: Point) -> None:
        """Marks a right angle at `corner` between the directions of two other points."""
        arms = [between(corner, end, 0.5 * self.font_size / math.dist(corner, end)) for end in (first, second)]
        tip = (arms[0][0] + arms[1][0] - corner[0], arms[0][1] + arms[1][1] - corner[1])
        self.path([arms[0], tip, arms[1]])

    def equal_sides(self, *sides: tuple[Point, Point]) -> None:
        """Marks sides as equally long, by a short stroke across the middle of each."""
        for start, end in sides:
            share = 0.25 * self.font_size / math.dist(start, end)
            (x, y), dx, dy = middle(start, end), share * (end[0] - start[0]), share * (end[1] - start[1])
            self.line((x - dy, y + dx), (x + dy, y - dx), width=1.3)

    def arrow(self, start: Point, end: Point, share: float = 1.0) -> None:
        """Draws the tip of an arrow at a share of the way from `start` to `end`."""
        tip = between(start, end, share)
        turn = math.degrees(math.atan2(end[1] - start[1], end[0] - start[0]))
        for side in (155, -155):
            self.line(tip, polar(turn + side, 0.5 * self.font_size, tip))

    def angles(self, *marks: tuple[Point, Point, Point, str]) -> None:
        """
        Marks angles by an arc and writes their size into them.

        Args:
            marks (`tuple[tuple, tuple, tuple, str]`):
                Vertex, a point on each arm, and the text. The angle below 180 degrees is meant. All lines of the
                figure come before.

        Raises:
            NoRoom: if a text has no room between the arms.
        """
        places = []
        for vertex, first, second, text in marks:
            start, end = (math.atan2(vertex[1] - y, x - vertex[0]) for x, y in (first, second))
            turn = (end - start + math.pi) % (2 * math.pi) - math.pi
            radius = self.font_size * (1.0 if abs(turn) > 0.8 else 1.7)
            self.arc(vertex, radius, start, start + turn)
            longest = 0.9 * min(math.dist(vertex, first), math.dist(vertex, second))
            places.append((text, vertex, [start + share * turn for share in (0.5, 0.4, 0.6)], radius, longest))
        for text, vertex, turns, radius, longest in places:
            steps = range(round(max(0.0, longest - radius) / (0.2 * self.font_size)))
            spots = ((radius + 0.2 * step * self.font_size, turn) for step in steps for turn in turns)
            if not any(self._write(text, *polar(-math.degrees(turn), reach, vertex)) for reach, turn in spots):
                raise NoRoom(f"The angle '{text}' has no room in a picture of {self.width}x{self.height} pixels.")

    def side(self, text: str, start: Point, end: Point, inside: Point) -> None:
        """Writes a label beside a side, near its middle, on the other side of it than the point `inside`."""
        turned = (end[0] - start[0]) * (inside[1] - start[1]) - (end[1] - start[1]) * (inside[0] - start[0])
        self._beside(text, start, end, (1,) if turned > 0 else (-1,))

    def along(self, text: str, start: Point, end: Point) -> None:
        """Writes a label close to a line inside a figure, on whichever side there is room."""
        self._beside(text, start, end, (1, -1))

    def _beside(self, text: str, start: Point, end: Point, sides: Sequence[int]) -> None:
        length = math.dist(start, end)
        across = ((end[1] - start[1]) / length, (start[0] - end[0]) / length)
        left, top, right, bottom = self._box(text)
        # the distance at which the box of the text just leaves the line
        leave = max(-left, right) * abs(across[0]) + max(-top, bottom) * abs(across[1]) + self.stroke + 2.0
        for gap in (0.1, 0.4):
            for share in (0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74):
                for side in sides:
                    away = side * (leave + gap * self.font_size)
                    x, y = between(start, end, share)
                    if self._write(text, x + away * across[0], y + away * across[1]):
                        return
        raise NoRoom(f"The label '{text}' has no room in a picture of {self.width}x{self.height} pixels.")

    def corner(self, name: str, point: Point, inside: Point) -> None:
        """Writes the name of a corner, away from the point `inside`."""
        turn = math.degrees(math.atan2(point[1] - inside[1], point[0] - inside[0]))
        self.label(name, point, [polar(turn + change) for change in (0, 25, -25, 50, -50, 80, -80)], reach=1.0)

    def corners(self, names: str, points: Sequence[Point]) -> None:
        """Writes the names of corners, one letter each, away from their middle."""
        for name, point in zip(names, points, strict=True):
            self.corner(name, point, center_of(points))

    def label(
        self, text: str, point: Point, directions: Sequence[Point], fill: Colour = INK, reach: float = 2.0
    ) -> None:
        """
        Writes a label beside a point, where it overlaps neither a line nor another label nor the border.

        Args:
            text (`str`):
                What to write.
            point (`Point`):
                What the label belongs to.
            directions (`Sequence[Point]`):
                Directions to go from the point, the best first; any length. The nearest free place is taken.
            fill (`tuple[int, int, int]`, *optional*, defaults to black):
                Colour.
            reach (`float`, *optional*, defaults to `2.0`):
                How far the place may be, in heights of a label.

        Raises:
            NoRoom: if no place is free.
        """
        box = self._box(text)
        half = (max(-box[0], box[2]), max(-box[1], box[3]))
        for step in LABEL_STEPS:
            if step > reach:
                break
            for dx, dy in directions:
                length = math.hypot(dx, dy) or 1.0
                dx, dy = dx / length, dy / length
                # the distance at which the box of the text just leaves the point
                leave = min(half[0] / abs(dx) if dx else math.inf, half[1] / abs(dy) if dy else math.inf)
                away = (0.0 if math.isinf(leave) else leave) + 2 * self.stroke + 1.0 + step * self.font_size
                x = self._snap(point[0] + dx * away + box[0], 3.0) - box[0]
                y = self._snap(point[1] + dy * away, self.label_grid / 2 - 1)
                if self._write(text, x, y, fill):
                    return
        raise NoRoom(f"The label '{text}' found no free place in a picture of {self.width}x{self.height} pixels.")

    def width_of(self, text: str) -> float:
        """Returns the width of a label in pixels."""
        left, _, right, _ = self._box(text)
        return right - left

    def _box(self, text: str) -> list[float]:
        return [value / SUPERSAMPLING for value in _text_box(text, self.font_size * SUPERSAMPLING)]

    def _write(self, text: str, x: float, y: float, fill: Colour = INK) -> bool:
        """Writes a text around a point if its place is free, and tells whether it was."""
        box = self._box(text)
        place = (x + box[0] - 1, y + box[1] - 1, x + box[2] + 1, y + box[3] + 1)
        if not self._is_free(place):
            return False
        self._boxes.append(place)
        colour, white = self._paint(fill), self._paint(WHITE)
        if self._has_grid:
            self._draw.rectangle([value * SUPERSAMPLING for value in place], fill=white)
        position = (x * SUPERSAMPLING, y * SUPERSAMPLING)
        font = font_for(text, self.font_size * SUPERSAMPLING)
        self._draw.text(position, text, fill=colour, font=font, anchor="mm")
        return True

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
        if start[axis] < box[axis] > end[axis] or start[axis] > box[axis + 2] < end[axis]:
            return False  # most segments are on one side of the box
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
