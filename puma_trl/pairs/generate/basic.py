"""Problem kinds that the mini model can learn: two or three whole numbers, one or two steps of arithmetic."""

import math
import random

from .drawing import Canvas, Point
from .problems import Problem


BAR_COLOURS = [(150, 180, 215), (225, 180, 130), (165, 205, 155), (205, 165, 200)]


SMALLEST = 11
LARGEST = {1: 59, 2: 99, 3: 499}  # level → largest length or value


def _middle(start: Point, end: Point) -> Point:
    return ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)


def triangle_angles(rng: random.Random, level: int) -> Problem:
    """Two angles of a triangle → the third."""
    a, b = rng.randint(15, 49 + 10 * level), rng.randint(15, 49 + 10 * level)
    total = a + b

    def draw(canvas: Canvas) -> None:
        height = math.sin(math.radians(a)) * math.sin(math.radians(b)) / math.sin(math.radians(total))
        apex = (height / math.tan(math.radians(a)), height)
        left, right, top = canvas.fit([(0, 0), (1, 0), apex], room=1.2)
        canvas.polygon([left, right, top])
        canvas.label(str(a), left, [(0, 1), (-1, 1), (0.3, 1), (-1, 0)])
        canvas.label(str(b), right, [(0, 1), (1, 1), (-0.3, 1), (1, 0)])
        canvas.label("?", top, [(0, -1), (1, -1), (-1, -1)])

    return Problem(
        facts=f"Two angles of a triangle are {a} and {b} degrees.",
        question="Find the third angle of the triangle.",
        steps=f"{a} + {b} = {total}. 180 - {total} = {180 - total}.",
        answer=str(180 - total),
        key=tuple(sorted((a, b))),
        draw=draw,
    )


def straight_angles(rng: random.Random, level: int) -> Problem:
    """Three angles on a straight line, two known → the third."""
    a, b = rng.randint(30, 49 + 10 * level), rng.randint(30, 49 + 10 * level)
    total = a + b

    def draw(canvas: Canvas) -> None:
        rays = [(math.cos(math.radians(t)), math.sin(math.radians(t))) for t in (180, 180 - a, 180 - total, 0)]
        center, *ends = canvas.fit([(0, 0), *rays], room=0.1)
        canvas.line(ends[0], ends[-1])
        for end in ends[1:-1]:
            canvas.line(center, end)
        radius = math.dist(center, ends[0])
        for text, turn in ((str(a), 180 - a / 2), (str(b), 180 - a - b / 2), ("?", (180 - total) / 2)):
            direction = (math.cos(math.radians(turn)), -math.sin(math.radians(turn)))
            near = (center[0] + 0.3 * radius * direction[0], center[1] + 0.3 * radius * direction[1])
            canvas.label(text, near, [direction, (direction[0], direction[1] - 0.2)])

    return Problem(
        facts=f"On a straight line two of three angles are {a} and {b} degrees.",
        question="Find the last angle on the line.",
        steps=f"{a} + {b} = {total}. 180 - {total} = {180 - total}.",
        answer=str(180 - total),
        key=tuple(sorted((a, b))),
        draw=draw,
    )


def rectangle_perimeter(rng: random.Random, level: int) -> Problem:
    """The sides of a rectangle → its perimeter."""
    a, b = rng.randint(SMALLEST, LARGEST[level]), rng.randint(SMALLEST, LARGEST[level])
    total = a + b

    def draw(canvas: Canvas) -> None:
        aspect = max(0.5, min(2.0, a / b))
        corners = canvas.fit([(0, 0), (aspect, 0), (aspect, 1), (0, 1)], room=1.2)
        canvas.polygon(corners)
        canvas.label(str(a), _middle(corners[0], corners[1]), [(0, 1), (0.3, 1), (-0.3, 1)])
        canvas.label(str(b), _middle(corners[1], corners[2]), [(1, 0), (-1, 0)])

    return Problem(
        facts=f"A rectangle is {a} cm wide and {b} cm high.",
        question="Find the perimeter of the rectangle.",
        steps=f"{a} + {b} = {total}. 2 * {total} = {2 * total}.",
        answer=str(2 * total),
        key=tuple(sorted((a, b))),
        draw=draw,
    )


def segment_total(rng: random.Random, level: int) -> Problem:
    """A segment in two parts → its length."""
    a, b = rng.randint(SMALLEST, LARGEST[level]), rng.randint(SMALLEST, LARGEST[level])
    total = a + b

    def draw(canvas: Canvas) -> None:
        share = max(0.35, min(0.65, a / total))
        turn = canvas.rng.uniform(-0.3, 0.3)
        ends = canvas.fit([(0, 0), (share, 0), (1, 0)], room=0.6, turn=turn)
        canvas.line(ends[0], ends[2])
        height = canvas.font_size * 0.35
        for x, y in ends:
            canvas.line((x, y - height), (x, y + height))
        side = canvas.rng.choice([(0, -1), (0, 1)])
        other = (0, -side[1])
        canvas.label(str(a), _middle(ends[0], ends[1]), [side, other])
        canvas.label(str(b), _middle(ends[1], ends[2]), [side, other])

    return Problem(
        facts=f"A segment has parts of {a} and {b} cm.",
        question="Find the length of the whole segment.",
        steps=f"{a} + {b} = {total}.",
        answer=str(total),
        key=tuple(sorted((a, b))),
        draw=draw,
    )


def segment_part(rng: random.Random, level: int) -> Problem:
    """A segment and one of its two parts → the other part."""
    part, rest = rng.randint(SMALLEST, LARGEST[level] - 10), rng.randint(SMALLEST, LARGEST[level] - 10)
    total = part + rest

    def draw(canvas: Canvas) -> None:
        share = max(0.35, min(0.65, part / total))
        ends = canvas.fit([(0, 0), (share, 0), (1, 0)], room=0.6)
        canvas.line(ends[0], ends[2])
        height = canvas.font_size * 0.35
        for x, y in ends:
            canvas.line((x, y - height), (x, y + height))
        canvas.label(str(total), _middle(ends[0], ends[2]), [(0, 1)])
        canvas.label(str(part), _middle(ends[0], ends[1]), [(0, -1)])
        canvas.label("?", _middle(ends[1], ends[2]), [(0, -1)])

    return Problem(
        facts=f"A segment of {total} cm has a part of {part} cm.",
        question="Find the other part of the segment.",
        steps=f"{total} - {part} = {rest}.",
        answer=str(rest),
        key=(total, part),
        draw=draw,
    )


def _bars(values: list[int], names: list[str], canvas: Canvas) -> None:
    """Draws a bar chart with the value above each bar and its name below."""
    line = canvas.font_size * 1.15
    floor = canvas.height - canvas.margin - line
    room = floor - line - canvas.margin
    width = (canvas.width - 2 * canvas.margin) / len(values)
    canvas.line((canvas.margin, floor), (canvas.width - canvas.margin, floor))
    for index, (value, name) in enumerate(zip(values, names, strict=True)):
        middle = canvas.margin + (index + 0.5) * width
        top = floor - room * value / max(100, *values)
        half = width * canvas.rng.uniform(0.25, 0.4)
        canvas.rectangle(middle - half, top, middle + half, floor, canvas.rng.choice(BAR_COLOURS))
        canvas.label(str(value), (middle, top), [(0, -1), (-0.3, -1), (0.3, -1)])
        canvas.label(name, (middle, floor), [(0, 1)])


def bar_difference(rng: random.Random, level: int) -> Problem:
    """A bar chart with three bars → how much one exceeds another."""
    names = ["A", "B", "C"]
    values = rng.sample(range(SMALLEST, LARGEST[level] + 1), 3)
    high, low = sorted(rng.sample(range(3), 2), key=lambda index: -values[index])
    difference = values[high] - values[low]
    return Problem(
        facts="In a bar chart "
        + ", ".join(f"{name} is {value}" for name, value in zip(names, values, strict=True))
        + ".",
        question=f"By how much does {names[high]} exceed {names[low]} in the chart?",
        steps=f"{values[high]} - {values[low]} = {difference}.",
        answer=str(difference),
        key=(values[high], values[low]),
        draw=lambda canvas: _bars(values, names, canvas),
    )


def bar_total(rng: random.Random, level: int) -> Problem:
    """A bar chart with three bars → the sum of two of them."""
    names = ["A", "B", "C"]
    values = rng.sample(range(SMALLEST, LARGEST[level] + 1), 3)
    first, second = sorted(rng.sample(range(3), 2))
    total = values[first] + values[second]
    return Problem(
        facts="In a bar chart "
        + ", ".join(f"{name} is {value}" for name, value in zip(names, values, strict=True))
        + ".",
        question=f"Find the sum of {names[first]} and {names[second]} in the chart.",
        steps=f"{values[first]} + {values[second]} = {total}.",
        answer=str(total),
        key=tuple(sorted((values[first], values[second]))),
        draw=lambda canvas: _bars(values, names, canvas),
    )
