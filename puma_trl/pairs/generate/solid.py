"""Solid geometry: volumes and surfaces of cuboids, prisms, pyramids, cylinders and cones."""

import math
import random
from collections.abc import Sequence
from fractions import Fraction

from .areas import TRIPLES
from .drawing import Canvas, Point, center_of, middle, polar
from .problems import Problem, pi_text


VOLUME, SURFACE = "volume", "total surface area"
UNITS = {VOLUME: "cubic centimetres", SURFACE: "square centimetres"}
SMALL_TRIPLES = [triple for triple in TRIPLES if triple[2] < 100]


def _bounded(value: float, low: float, high: float) -> float:
    """Returns a proportion of a figure, kept within what can be drawn legibly."""
    return max(low, min(high, value))


def _box(canvas: Canvas, edges: Sequence[float], diagonal: bool, room: float) -> list[Point]:
    """Draws a cuboid in oblique projection and returns its corners: front from bottom left, then back."""
    width, depth, height = (edge / max(edges) for edge in edges)
    width, depth, height = _bounded(width, 0.4, 1), 0.5 * _bounded(depth, 0.4, 1), _bounded(height, 0.4, 1)
    over = polar(canvas.rng.uniform(32, 48), depth)
    front = [(0, 0), (width, 0), (width, height), (0, height)]
    corners = canvas.fit(front + [(x + over[0], y + over[1]) for x, y in front], room=room, side_room=3)
    canvas.polygon(corners[:4])
    canvas.path([corners[i] for i in (1, 5, 6, 7, 3)])
    canvas.line(corners[2], corners[6])
    if diagonal:
        canvas.line(corners[0], corners[2])
    else:
        for end in (0, 5, 7):
            canvas.dashed(corners[4], corners[end])
    return corners


def _draw_cuboid(canvas: Canvas, edges: Sequence[int], texts: Sequence[str], note: str, diagonal: str = "") -> None:
    corners = _box(canvas, edges, bool(diagonal), room=2.2 if note else 1.4)
    inside = center_of(corners)
    for text, (first, second) in zip(texts, ((0, 1), (1, 5), (0, 3)), strict=True):
        if text:
            canvas.side(text, corners[first], corners[second], inside)
    if diagonal:
        canvas.along(diagonal, corners[0], corners[2])
    if note:
        canvas.label(note, (canvas.width / 2, canvas.margin), [(0, 1)])


def _edges(rng: random.Random) -> list[int]:
    """Returns three edges of which none is so short that the cuboid could not be drawn to scale."""
    smallest = rng.randint(3, 14)
    return [rng.randint(smallest, round(2.3 * smallest)) for _ in range(3)]


def cuboid_volume(rng: random.Random, level: int) -> Problem:
    """Cuboid: its volume; an edge by the volume; the volume by the diagonal of the base."""
    a, b, c = _edges(rng)
    given, answer, note, diagonal = [a, b, c], a * b * c, "", ""
    facts = f"A cuboid is {a} cm wide, {b} cm deep and {c} cm high."
    steps = f"{a} * {b} * {c} = {answer}."
    if level == 2:
        facts = f"A cuboid is {a} cm wide and {b} cm deep. Its volume is {a * b * c} cubic centimetres."
        steps = f"Base: {a} * {b} = {a * b}. Height: {a * b * c} / {a * b} = {c}."
        answer, note, given = c, f"V = {a * b * c} cm³", [a, b, None]
    elif level == 3:
        a, c, long = rng.choice([(a, b, c) for a, b, c in SMALL_TRIPLES if b < 2.2 * a])
        b = rng.randint(max(3, a // 2), 2 * a)
        given, answer, diagonal = [a, b, None], a * b * c, f"{long} cm"
        facts = f"A cuboid is {a} cm wide and {b} cm deep. The diagonal of its front is {long} cm."
        steps = f"h^2 = {long}^2 - {a}^2 = {c * c}. h = √{c * c} = {c}. {a} * {b} * {c} = {answer}."
    texts = [f"{edge} cm" if edge else "" for edge in given]
    return Problem(
        facts=facts,
        question="V is the volume of the cuboid. Find its height in cm."
        if level == 2
        else f"Find the {VOLUME} of the cuboid in {UNITS[VOLUME]}.",
        steps=steps,
        answer=str(answer),
        key=(level, a, b, c),
        draw=lambda canvas: _draw_cuboid(canvas, (a, b, c), texts, note, diagonal),
    )


def cuboid_surface(rng: random.Random, level: int) -> Problem:
    """Cuboid: its surface; that of a box without a lid; an edge by the surface."""
    a, b, c = _edges(rng)
    faces = (a * b, b * c, a * c)
    total = 2 * sum(faces)
    given, note, question, answer = [a, b, c], "", f"Find the {SURFACE} of the cuboid in {UNITS[SURFACE]}.", total
    facts = f"A cuboid is {a} cm wide, {b} cm deep and {c} cm high."
    steps = f"{a} * {b} = {faces[0]}. {b} * {c} = {faces[1]}. {a} * {c} = {faces[2]}. "
    if level == 1:
        steps += f"2 * ({faces[0]} + {faces[1]} + {faces[2]}) = {total}."
    elif level == 2:
        answer = total - faces[0]
        facts = f"A box is {a} cm wide, {b} cm deep and {c} cm high."
        question = "The box has no lid. Find its outer surface area in square centimetres."
        steps += f"{faces[0]} + 2 * {faces[1]} + 2 * {faces[2]} = {answer}."
    else:
        facts = f"A cuboid is {a} cm wide and {b} cm deep. Its {SURFACE} is "
        facts += f"{total} square centimetres."
        given, note, answer = [a, b, None], f"S = {total} cm²", c
        question = "S is the total surface area of the cuboid. Find its height in cm."
        steps = f"Bottom and top: 2 * {a} * {b} = {2 * faces[0]}. Sides: {total} - {2 * faces[0]} = "
        steps += f"{total - 2 * faces[0]}. Perimeter of the base: 2 * ({a} + {b}) = {2 * (a + b)}. "
        steps += f"{total - 2 * faces[0]} / {2 * (a + b)} = {c}."
    texts = [f"{edge} cm" if edge else "" for edge in given]
    return Problem(
        facts=facts,
        question=question,
        steps=steps,
        answer=str(answer),
        key=(level, a, b, c),
        draw=lambda canvas: _draw_cuboid(canvas, (a, b, c), texts, note),
    )


def prism(rng: random.Random, level: int) -> Problem:
    """Prism over a right-angled triangle: its volume; the volume by the hypotenuse; its surface."""
    a, b, c = rng.choice(SMALL_TRIPLES)
    if level == 1:
        a, b = sorted((rng.randint(3, 30), rng.randint(3, 30)))
        b += a * b % 2
    length = rng.randint(max(5, b // 3), 2 * b)
    base, find, known = a * b // 2, VOLUME, f"the legs are {a} cm and {b} cm long"
    answer = base * length
    steps = f"Base: {a} * {b} / 2 = {base}. Volume: {base} * {length} = {answer}."
    if level == 2:
        known = f"the hypotenuse is {c} cm and a leg is {a} cm long"
        steps = f"b^2 = {c}^2 - {a}^2 = {b * b}. b = √{b * b} = {b}. {steps}"
    elif level == 3:
        find, answer = SURFACE, 2 * base + (a + b + c) * length
        steps = f"c^2 = {a}^2 + {b}^2 = {c * c}. c = √{c * c} = {c}. Base: {a} * {b} / 2 = {base}. "
        steps += f"2 * {base} + ({a} + {b} + {c}) * {length} = {answer}."

    def draw(canvas: Canvas) -> None:
        size = max(a, b)
        deep = polar(canvas.rng.uniform(15, 30), _bounded(length / size, 0.5, 1.1))
        front = [(0, 0), (_bounded(b / size, 0.45, 1), 0), (0, _bounded(a / size, 0.45, 1))]
        points = canvas.fit(front + [(x + deep[0], y + deep[1]) for x, y in front], room=1.4, side_room=3)
        canvas.polygon(points[:3])
        canvas.path([points[i] for i in (1, 4, 5, 2)])
        canvas.dashed(points[3], points[0])
        canvas.dashed(points[3], points[4])
        canvas.dashed(points[3], points[5])
        canvas.right_angle(points[0], points[1], points[2])
        canvas.side(f"{a} cm", points[0], points[2], points[1])
        if level == 2:
            canvas.side(f"{c} cm", points[2], points[1], points[0])
        else:
            canvas.side(f"{b} cm", points[0], points[1], points[2])
        canvas.side(f"{length} cm", points[1], points[4], points[2])

    return Problem(
        facts=f"A prism is {length} cm long. In its base, {known}.",
        question=f"The base of the prism is a right-angled triangle. Find the {find} of the prism in {UNITS[find]}.",
        steps=steps,
        answer=str(answer),
        key=(level, a, b, length),
        draw=draw,
    )


def pyramid(rng: random.Random, level: int) -> Problem:
    """Pyramid over a square: its volume by the height; its surface by the slant height; each by the other."""
    half, height, slant = rng.choice([(a, b, c) for a, b, c in SMALL_TRIPLES if b > 1.1 * a])
    base = 2 * half
    if level < 3:
        base = rng.randint(4, 40)
        height = slant = rng.randint(round(0.7 * base), round(1.4 * base))
    find = {1: VOLUME, 2: SURFACE}.get(level) or rng.choice([VOLUME, SURFACE])
    by_height = (find == VOLUME) == (level < 3)
    if find == VOLUME:
        answer = Fraction(base * base * height, 3)
        steps = f"{base}^2 * {height} / 3 = {answer}."
        other = f"h^2 = {slant}^2 - ({base} / 2)^2 = {height**2}. h = √{height**2} = {height}. "
    else:
        answer = Fraction(base * base + 2 * base * slant)
        steps = f"Base: {base}^2 = {base * base}. Four sides: 4 * {base} * {slant} / 2 = {2 * base * slant}. "
        steps += f"{base * base} + {2 * base * slant} = {answer}."
        other = f"s^2 = {height}^2 + ({base} / 2)^2 = {slant**2}. s = √{slant**2} = {slant}. "
    known = f"its height is {height} cm" if by_height else f"the height of each side face is {slant} cm"
    return Problem(
        facts=f"The base edges of a pyramid are {base} cm long and {known}.",
        question=f"The pyramid is upright and its base is a square. Find the exact {find} of the pyramid in "
        f"{UNITS[find]}.",
        steps=other + steps if level == 3 else steps,
        answer=str(answer),
        key=(level, base, height, find),
        draw=lambda canvas: _draw_pyramid(canvas, base, height, 0 if by_height else slant),
    )


def _draw_pyramid(canvas: Canvas, base: int, height: int, slant: int) -> None:
    """Draws a pyramid with its slant height or, if that is 0, its height."""
    tall = math.sqrt(slant**2 - base**2 / 4) if slant else height
    tall = _bounded(tall / base, 0.8, 1.4)
    over = polar(canvas.rng.uniform(35, 45), 0.5)
    corners = [(0, 0), (1, 0), (1 + over[0], over[1]), over]
    foot = center_of(corners)
    a, b, c, d, foot, tip = canvas.fit([*corners, foot, (foot[0], foot[1] + tall)], room=1.4, side_room=0.5)
    canvas.path([c, b, a, tip, c])
    canvas.line(b, tip)
    # the fourth edge to the tip would leave no room for the number at the height
    for start, end in ((a, d), (d, c), (d, tip))[: 3 if slant else 2]:
        canvas.dashed(start, end)
    end = middle(a, b) if slant else foot
    canvas.dashed(tip, end)
    canvas.right_angle(end, tip, b)
    canvas.along(f"{slant or height} cm", tip, end)
    canvas.side(f"{base} cm", a, b, tip)


def _round(canvas: Canvas, radius: float, height: float) -> tuple[Point, Point, float, float]:
    """Places a cylinder or cone; returns the centres of base and top, and the radii of the base as it is seen."""
    height = _bounded(height / radius, 0.9, 2.6)
    base, top, low, high = canvas.fit([(0, 0), (0, height), (-1, -0.28), (1, height + 0.28)], room=1.4, side_room=4)
    wide = (high[0] - low[0]) / 2
    return base, top, wide, 0.28 * wide


def cylinder(rng: random.Random, level: int) -> Problem:
    """Cylinder: its volume; its surface; the volume of a tube."""
    radius = rng.randint(2, 30)
    height = rng.randint(radius, 3 * radius)
    inner = radius if level == 3 else 0
    radius += rng.randint(1, radius) if level == 3 else 0
    facts = f"A cylinder has a radius of {radius} cm and a height of {height} cm."
    find, name = VOLUME, "cylinder"
    size = radius**2 * height
    steps = f"{radius}^2 * {height} * π = {pi_text(size)}."
    if level == 2:
        find, size = SURFACE, 2 * radius * (radius + height)
        steps = f"Base and top: 2 * {radius}^2 * π = {2 * radius**2}π. Side: 2 * {radius} * {height} * π = "
        steps += f"{2 * radius * height}π. {2 * radius**2}π + {2 * radius * height}π = {pi_text(size)}."
    elif level == 3:
        facts = (
            f"A tube has an outer radius of {radius} cm, an inner radius of {inner} cm and a height of {height} cm."
        )
        name, ring = "tube", radius**2 - inner**2
        size = ring * height
        steps = f"{radius}^2 - {inner}^2 = {ring}. {ring} * {height} * π = {pi_text(size)}."

    return Problem(
        facts=facts,
        question=f"Find the exact {find} of the {name} in {UNITS[find]}, in terms of π.",
        steps=steps,
        answer=pi_text(size),
        key=(level, radius, height, inner),
        draw=lambda canvas: _draw_cylinder(canvas, radius, height, inner),
    )


def _draw_cylinder(canvas: Canvas, radius: int, height: int, inner: int) -> None:
    base, top, wide, flat = _round(canvas, radius, height)
    share = _bounded(inner / radius, 0.45, 0.7) if inner else 0
    canvas.ellipse(top, wide, flat)
    canvas.ellipse(base, wide, flat, hidden=True)
    if inner:
        canvas.ellipse(top, share * wide, share * flat)
    for side in (-1, 1):
        canvas.line((base[0] + side * wide, base[1]), (top[0] + side * wide, top[1]))
        if inner:
            canvas.dashed((base[0] + side * share * wide, base[1]), (top[0] + side * share * wide, top[1]))
    canvas.dot(top, 1.6)
    # the radii are marked above the top, where there is room for their numbers
    marks = [(wide, f"R = {radius} cm"), (-share * wide, f"r = {inner} cm")] if inner else [(wide, f"{radius} cm")]
    above = top[1] - flat - 0.6 * canvas.font_size
    canvas.dashed((top[0], above), top)
    for reach, _ in marks:
        canvas.dashed((top[0] + reach, above), (top[0] + reach, top[1]))
        canvas.line((top[0], above), (top[0] + reach, above))
    for reach, text in marks:
        canvas.label(text, (top[0] + reach / 2, above), [(0, -1), (reach, -60), (reach, -30)])
    canvas.side(f"{height} cm", (top[0] + wide, top[1]), (base[0] + wide, base[1]), base)


def cone(rng: random.Random, level: int) -> Problem:
    """Cone: its volume by the height; by the slant height; its surface."""
    radius, height, slant = rng.choice(TRIPLES)
    if height < 1.4 * radius and rng.random() < 0.5:
        radius, height = height, radius
    if level == 1:
        radius = rng.randint(2, 30)
        height = rng.randint(radius, 3 * radius)
    find, size = VOLUME, Fraction(radius**2 * height, 3)
    named = f"slant height of {slant} cm" if level == 2 else f"height of {height} cm"
    steps = f"{radius}^2 * {height} * π / 3 = {pi_text(size)}."
    if level == 2:
        steps = f"h^2 = {slant}^2 - {radius}^2 = {height**2}. h = √{height**2} = {height}. {steps}"
    elif level == 3:
        find, size = SURFACE, Fraction(radius * (radius + slant))
        steps = f"s^2 = {radius}^2 + {height}^2 = {slant**2}. s = √{slant**2} = {slant}. "
        steps += f"{radius} * ({radius} + {slant}) * π = {pi_text(size)}."

    def draw(canvas: Canvas) -> None:
        base, tip, wide, flat = _round(canvas, radius, height)
        canvas.ellipse(base, wide, flat, hidden=True)
        # the outline touches the ellipse a little above its widest place
        touch = math.asin(flat / (base[1] - tip[1]))
        for side in (-1, 1):
            canvas.line(tip, (base[0] + side * wide * math.cos(touch), base[1] - flat * math.sin(touch)))
        right = (base[0] + wide, base[1])
        canvas.line(base, right)
        canvas.dot(base, 1.6)
        if level == 2:
            canvas.side(f"{slant} cm", tip, right, base)
        else:
            canvas.dashed(tip, base)
            canvas.right_angle(base, tip, right)
            # the height is marked beside the cone, where there is room for its number
            left = base[0] - wide - 0.6 * canvas.font_size
            canvas.dashed((left, tip[1]), tip)
            canvas.dashed((left, base[1]), (base[0] - wide, base[1]))
            canvas.line((left, tip[1]), (left, base[1]))
            canvas.side(f"{height} cm", (left, tip[1]), (left, base[1]), base)
        canvas.label(f"r = {radius} cm", middle(base, right), [(0, 1), (0, -1), (-0.4, 1)])

    return Problem(
        facts=f"A cone has a radius of {radius} cm and a {named}.",
        question=f"Find the exact {find} of the cone in {UNITS[find]}, in terms of π.",
        steps=steps,
        answer=pi_text(size),
        key=(level, radius, height),
        draw=draw,
    )
