"""Plane geometry, lengths and areas: right-angled and similar triangles, quadrilaterals and circles."""

import math
import random
from fractions import Fraction

from .drawing import COLOURS, WHITE, Canvas, Point, between, center_of, polar
from .problems import Problem, pi_text, root_parts, root_text


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


TRIPLES = [
    (a, b, math.isqrt(a * a + b * b))
    for a in range(3, 221)
    for b in range(a + 1, min(4 * a, 300))
    if _is_square(a * a + b * b)
]

# legs whose hypotenuse is a root that can be simplified
ROOTS = [
    (a, b)
    for a in range(2, 41)
    for b in range(a, min(4 * a, 61))
    if root_parts(a * a + b * b)[0] > 1 and not _is_square(a * a + b * b)
]


def _turn(canvas: Canvas, limit: float = 180) -> float:
    return math.radians(canvas.rng.uniform(-limit, limit))


def _flipped(canvas: Canvas, points: list[Point]) -> list[Point]:
    return [(-x, y) for x, y in points] if canvas.rng.random() < 0.5 else points


def _right_triangle(canvas: Canvas, legs: tuple[int, int], texts: tuple[str | None, ...]) -> None:
    """Draws triangle ABC with its right angle at C; the texts, if any, belong to AC, BC and AB."""
    points = _flipped(canvas, [(legs[0], 0), (0, legs[1]), (0, 0)])
    a, b, c = canvas.fit(points, room=1.4, side_room=3, turn=_turn(canvas))
    canvas.polygon([a, b, c])
    canvas.right_angle(c, a, b)
    for text, start, end in zip(texts, (a, b, a), (c, c, b), strict=True):
        if text:
            canvas.side(text, start, end, center_of([a, b, c]))
    canvas.corners("ABC", [a, b, c])


def right_triangle(rng: random.Random, level: int) -> Problem:
    """Pythagoras: the hypotenuse in whole numbers; a leg; the hypotenuse as a root."""
    a, b, c = rng.choice(TRIPLES)
    if level == 3:
        a, b = rng.choice(ROOTS)
    square = a * a + b * b
    if level == 2:
        facts, find, answer = f"AB is {c} cm long and AC is {a} cm long.", "BC", str(b)
        steps = f"BC^2 = {c}^2 - {a}^2 = {c * c - a * a}. BC = √{b * b} = {b}."
        texts = (f"{a} cm", "?", f"{c} cm")
    else:
        answer = root_text(*root_parts(square))
        facts, find = f"AC is {a} cm long and BC is {b} cm long.", "AB"
        steps = f"AB^2 = {a}^2 + {b}^2 = {square}. AB = √{square}{'' if answer == f'√{square}' else f' = {answer}'}."
        texts = (f"{a} cm", f"{b} cm", "?")
    return Problem(
        facts=facts,
        question=f"Triangle ABC has a right angle at C. Find the exact length of {find} in cm.",
        steps=steps,
        answer=answer,
        key=(level == 2, a, b),
        draw=lambda canvas: _right_triangle(canvas, (a, b), texts),
    )


def similar_triangles(rng: random.Random, level: int) -> Problem:
    """Similar triangles: a whole factor; a fraction as factor; a line parallel to a side."""
    if level == 3:
        return _parallel_in_triangle(rng)
    low, high = (1, 2) if level == 1 else rng.choice([(2, 3), (3, 4), (3, 5), (4, 5), (4, 7), (5, 8)])
    first = rng.randint(5, 40 // low)
    second = rng.choice([value for value in range(5, 60 // low) if 0.6 < value / first < 1.7 and value != first])
    ab, bc, de, ef = low * first, low * second, high * first, high * second

    def draw(canvas: Canvas) -> None:
        size = canvas.rng.uniform(55, 105)
        small = [polar(size, ab), (0, 0), (bc, 0)]
        apart = max(small[0][0], bc) + 0.45 * (de + ef) / 2 - min(0, polar(size, de)[0])
        large = [(apart + x * high / low, y * high / low) for x, y in small]
        a, b, c, d, e, f = canvas.fit(small + large, room=1.4, side_room=3, turn=_turn(canvas, 10))
        for corners in ([a, b, c], [d, e, f]):
            canvas.polygon(corners)
        for text, start, end, far in ((ab, a, b, c), (bc, b, c, a), (de, d, e, f)):
            canvas.side(f"{text} cm", start, end, far)
        canvas.side("?", e, f, d)
        canvas.corners("ABC", [a, b, c])
        canvas.corners("DEF", [d, e, f])

    ratio = Fraction(high, low)
    return Problem(
        facts=f"AB is {ab} cm, BC is {bc} cm and DE is {de} cm long.",
        question="The triangles ABC and DEF are similar, with their corners in this order. Find the length of EF in "
        "cm.",
        steps=f"The factor is DE / AB = {de} / {ab} = {ratio}. EF = {bc} * {ratio} = {ef}.",
        answer=str(ef),
        key=(level, ab, bc, de),
        draw=draw,
    )


def _parallel_in_triangle(rng: random.Random) -> Problem:
    upper = rng.randint(3, 30)
    lower = rng.randint(math.ceil(upper / 3), 2 * upper)
    whole, base = upper + lower, rng.randint(6, 40)
    answer = Fraction(base * upper, whole)
    share = upper / whole

    def draw(canvas: Canvas) -> None:
        length = max(0.6, min(1.6, whole / base))
        points = _flipped(canvas, [polar(canvas.rng.uniform(50, 90), length), (0, 0), (1, 0)])
        a, b, c = canvas.fit(points, room=1.4, side_room=3, turn=_turn(canvas, 20))
        d, e = between(a, b, share), between(a, c, share)
        canvas.polygon([a, b, c])
        canvas.line(d, e)
        canvas.arrow(d, e, 0.6)
        canvas.arrow(b, c, 0.6)
        canvas.side(f"{upper} cm", a, d, c)
        canvas.side(f"{lower} cm", d, b, c)
        canvas.side(f"{base} cm", b, c, a)
        canvas.side("?", d, e, b)
        canvas.corners("ABC", [a, b, c])
        canvas.corner("D", d, c)
        canvas.corner("E", e, b)

    return Problem(
        facts=f"D on AB has a distance of {upper} cm from A and {lower} cm from B. BC is {base} cm long.",
        question="In triangle ABC the segment DE from AB to AC is parallel to BC. Find the exact length of DE in cm.",
        steps=f"AB = {upper} + {lower} = {whole}. DE / BC = AD / AB, so DE = {base} * {upper} / {whole} = {answer}.",
        answer=str(answer),
        key=(upper, lower, base),
        draw=draw,
    )


def triangle_area(rng: random.Random, level: int) -> Problem:
    """Area of a triangle: base and height; hypotenuse and leg; three sides of an isosceles triangle."""
    question = "Find the exact area of triangle ABC in square centimetres."
    if level == 1:
        base = rng.randint(6, 70)
        height = rng.randint(base // 2, 3 * base // 2)
        base += base * height % 2
        return Problem(
            facts=f"Side AB is {base} cm long and the height from C to AB is {height} cm.",
            question=question,
            steps=f"{base} * {height} = {base * height}. {base * height} / 2 = {base * height // 2}.",
            answer=str(base * height // 2),
            key=(1, base, height),
            draw=lambda canvas: _triangle_with_height(canvas, base, height),
        )
    if level == 2:
        a, b, c = rng.choice(TRIPLES)
        return Problem(
            facts=f"The angle at C is a right angle. AB is {c} cm long and AC is {a} cm long.",
            question=question,
            steps=f"BC^2 = {c}^2 - {a}^2 = {b * b}. BC = √{b * b} = {b}. {a} * {b} / 2 = {a * b // 2}.",
            answer=str(a * b // 2),
            key=(2, a, b),
            draw=lambda canvas: _right_triangle(canvas, (a, b), (f"{a} cm", None, f"{c} cm")),
        )
    half = rng.randint(2, 24)
    side = rng.randint(half + max(1, half // 5), 3 * half)
    factor, rest = root_parts(side * side - half * half)
    area, height = root_text(half * factor, rest), root_text(factor, rest)
    return Problem(
        facts=f"AC and BC are {side} cm long each and AB is {2 * half} cm long.",
        question=question,
        steps=f"Half of AB is {half} cm. h^2 = {side}^2 - {half}^2 = {side**2 - half**2}. h = √{side**2 - half**2}"
        f"{'' if factor == 1 else f' = {height}'}. {2 * half} * {height} / 2 = {area}.",
        answer=area,
        key=(3, side, half),
        draw=lambda canvas: _isosceles(canvas, side, half),
    )


def _triangle_with_height(canvas: Canvas, base: int, height: int) -> None:
    tall = max(0.5, min(1.5, height / base))
    foot = canvas.rng.choice([canvas.rng.uniform(0.2, 0.4), canvas.rng.uniform(0.6, 0.8)])
    a, b, c, d = canvas.fit([(0, 0), (1, 0), (foot, tall), (foot, 0)], room=1.4, side_room=3, turn=_turn(canvas))
    canvas.polygon([a, b, c])
    canvas.dashed(c, d)
    canvas.right_angle(d, c, b)
    canvas.side(f"{base} cm", a, b, c)
    canvas.along(f"{height} cm", c, d)
    canvas.corners("ABC", [a, b, c])


def _isosceles(canvas: Canvas, side: int, half: int) -> None:
    height = math.sqrt(side**2 - half**2)
    a, b, c = canvas.fit([(-half, 0), (half, 0), (0, height)], room=1.4, side_room=3, turn=_turn(canvas))
    canvas.polygon([a, b, c])
    canvas.equal_sides((a, c), (b, c))
    for text, start, end in ((2 * half, a, b), (side, a, c), (side, b, c)):
        canvas.side(f"{text} cm", start, end, center_of([a, b, c]))
    canvas.corners("ABC", [a, b, c])


def parallelogram_area(rng: random.Random, level: int) -> Problem:
    """Parallelogram: its area; the height by the area; one height by the other."""
    base = rng.randint(6, 60)
    height = rng.randint(round(0.45 * base), base)
    side = None
    if level == 1:
        facts = f"AB is {base} cm long and the height on AB is {height} cm."
        find, answer = "area of parallelogram ABCD in square centimetres", Fraction(base * height)
        steps = f"{base} * {height} = {answer}."
    elif level == 2:
        facts = f"The area is {base * height} square centimetres and AB is {base} cm long."
        find, answer = "height of parallelogram ABCD on AB in cm", Fraction(height)
        steps = f"{base * height} / {base} = {height}."
    else:
        while not (side and _feet_inside(base, side, height)):
            base, height = rng.randint(6, 50), rng.randint(4, 30)
            side = rng.randint(height + 1, 3 * height)
        facts = f"AB is {base} cm and BC is {side} cm long. The height on AB is {height} cm."
        find, answer = "exact height of parallelogram ABCD on BC in cm", Fraction(base * height, side)
        steps = f"Area: {base} * {height} = {base * height}. Height on BC: {base * height} / {side} = {answer}."
    return Problem(
        facts=facts,
        question=f"Find the {find}.",
        steps=steps,
        answer=str(answer),
        key=(level, base, height, side),
        draw=lambda canvas: _draw_parallelogram(canvas, level, base, height, side),
    )


def _feet_inside(base: int, side: int, height: int) -> bool:
    over = math.sqrt(side**2 - height**2)
    return 0.55 * base < over < 0.85 * base and 0.4 * side < base * over / side < 0.75 * side


def _draw_parallelogram(canvas: Canvas, level: int, base: int, height: int, side: int | None) -> None:
    if side is None:
        base_drawn, tall = 1.0, height / base
        over = canvas.rng.uniform(0.2, 0.4)
    else:
        base_drawn, tall, over = base, height, math.sqrt(side**2 - height**2)
    points = [(0, 0), (base_drawn, 0), (base_drawn + over, tall), (over, tall), (over, 0)]
    a, b, c, d, foot = canvas.fit(_flipped(canvas, points), room=1.4, side_room=3, turn=_turn(canvas, 25))
    canvas.polygon([a, b, c, d])
    canvas.dashed(d, foot)
    canvas.right_angle(foot, d, b)
    canvas.side(f"{base} cm", a, b, c)
    if side is not None:
        second = between(c, b, base * over / side / side)
        canvas.dashed(d, second)
        canvas.right_angle(second, d, b)
        canvas.side(f"{side} cm", b, c, a)
        canvas.side("?", d, second, foot)
        canvas.side(f"{height} cm", d, foot, second)
    if level == 2:
        canvas.label(f"{base * height} cm²", center_of([foot, b, c, d]), [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)])
    if side is None:
        canvas.along("?" if level == 2 else f"{height} cm", d, foot)
    canvas.corners("ABCD", [a, b, c, d])


def trapezoid_area(rng: random.Random, level: int) -> Problem:
    """Trapezoid: its area; a parallel side by the area; the area by the legs of an isosceles one."""
    if level == 3:
        *legs, leg = rng.choice(TRIPLES[:60])
        over, height = rng.sample(legs, 2)
        short = rng.randint(max(3, over // 2), 2 * over + 9)
        long = short + 2 * over
    else:
        short = rng.randint(5, 40)
        long = short + rng.randint(3, short)
        height = rng.randint(round(0.4 * long), round(0.8 * long))
        long += (short + long) * height % 2
        over, leg = 0, 0
    total = short + long
    area = total * height // 2
    facts = f"AB is {long} cm and CD is {short} cm long. "
    find = "its area in square centimetres"
    steps = f"{long} + {short} = {total}. {total} * {height} / 2 = {area}."
    answer = area
    if level == 1:
        facts += f"The height is {height} cm."
    elif level == 2:
        facts = f"The area is {area} square centimetres, AB is {long} cm long and the height is {height} cm."
        find, answer = "the length of CD in cm", short
        steps = f"2 * {area} / {height} = {total}. {total} - {long} = {short}."
    else:
        facts += f"The other two sides are {leg} cm long each."
        steps = f"({long} - {short}) / 2 = {over}. h^2 = {leg}^2 - {over}^2 = {height**2}. h = {height}. {steps}"
    texts = (f"{long} cm", "?" if level == 2 else f"{short} cm", f"{area} cm²" if level == 2 else "")
    return Problem(
        facts=facts,
        question=f"ABCD is a trapezoid with AB parallel to CD. Find {find}.",
        steps=steps,
        answer=str(answer),
        key=(level, short, long, height),
        draw=lambda canvas: _draw_trapezoid(canvas, (long, short, height), texts, over, leg),
    )


def _draw_trapezoid(
    canvas: Canvas, lengths: tuple[int, int, int], texts: tuple[str, str, str], over: int, leg: int
) -> None:
    long, short, height = lengths
    if leg:
        points = [(0, 0), (long, 0), (long - over, height), (over, height)]
    else:
        left, top, tall = canvas.rng.uniform(0.05, 0.25), short / long, height / long
        points = [(0, 0), (1, 0), (left + top, tall), (left, tall)]
    points.append((points[3][0], 0))
    a, b, c, d, foot = canvas.fit(_flipped(canvas, points), room=1.4, side_room=3, turn=_turn(canvas, 20))
    canvas.polygon([a, b, c, d])
    if leg:
        canvas.side(f"{leg} cm", b, c, a)
        canvas.side(f"{leg} cm", a, d, b)
    else:
        canvas.dashed(d, foot)
        canvas.right_angle(foot, d, b)
    canvas.side(texts[0], a, b, c)
    canvas.side(texts[1], c, d, a)
    if texts[2]:
        canvas.label(texts[2], center_of([foot, b, c, d]), [(0, 0), (1, 0), (0, 1), (0, -1)])
    if not leg:
        canvas.along(f"{height} cm", d, foot)
    canvas.corners("ABCD", [a, b, c, d])


def circle_area(rng: random.Random, level: int) -> Problem:
    """Circle: its area by radius or diameter; a sector; a ring by a chord that touches the inner circle."""
    angle = 0
    if level == 1 and rng.random() < 0.5:
        size, facts, shape = (radius := rng.randint(2, 99)), f"The radius of the circle is {radius} cm.", "circle"
        area = Fraction(radius**2)
        steps = f"Area: {radius}^2 * π = {pi_text(area)}."
    elif level == 1:
        size, shape = 2 * rng.randint(2, 99), "circle"
        facts, area = f"The diameter of the circle is {size} cm.", Fraction(size**2, 4)
        steps = f"Radius: {size} / 2 = {size // 2}. Area: {size // 2}^2 * π = {pi_text(area)}."
    elif level == 2:
        size, angle, shape = rng.randint(2, 60), 5 * rng.randint(8, 35), "shaded sector"
        area = Fraction(angle * size**2, 360)
        facts = f"A shaded sector of a circle has a radius of {size} cm and an angle of {angle} degrees."
        steps = f"Area of the circle: {size}^2 * π = {size**2}π. Area of the sector: {size**2}π * {angle} / 360 = "
        steps += f"{pi_text(area)}."
    else:
        size, shape = rng.randint(3, 200), "shaded ring"
        area = Fraction(size**2, 4)
        facts = "Two circles with the same centre enclose a shaded ring. "
        facts += f"A chord of the larger circle that touches the smaller one is {size} cm long."
        steps = f"Half of the chord: {size} / 2 = {Fraction(size, 2)}. By Pythagoras R^2 - r^2 is the square of it. "
        steps += f"Area: ({Fraction(size, 2)})^2 * π = {pi_text(area)}."
    diameter = level == 1 and "diameter" in facts
    return Problem(
        facts=facts,
        question=f"Find the exact area of the {shape} in square centimetres, in terms of π.",
        steps=steps,
        answer=pi_text(area),
        key=(level, diameter, size, angle),
        draw=lambda canvas: _draw_circle_area(canvas, level, diameter, size, angle),
    )


def _draw_circle_area(canvas: Canvas, level: int, diameter: bool, size: int, angle: int) -> None:
    center, low, high = canvas.fit([(0, 0), (-1, -1), (1, 1)], room=0.5)
    radius = (high[0] - low[0]) / 2
    turn = canvas.rng.uniform(0, 360)
    colour = canvas.rng.choice(COLOURS)
    start, end = polar(turn, radius, center), polar(turn - angle, radius, center)
    if level == 1:
        canvas.circle(center, radius)
        opposite = polar(turn + 180, radius, center) if diameter else center
        canvas.line(start, opposite)
        canvas.dot(center)
        canvas.side(f"{size} cm", opposite, start, polar(turn + 90, radius, center))
    elif level == 2:
        arc = [polar(turn - angle * step / 30, radius, center) for step in range(31)]
        canvas.shade([center, *arc], colour)
        canvas.circle(center, radius)
        canvas.path([start, center, end])
        canvas.angles((center, start, end, f"{angle}°"))
        canvas.side(f"{size} cm", center, start, end)
    else:
        inner = canvas.rng.uniform(0.45, 0.65)
        for share, fill in ((1, colour), (inner, WHITE)):
            canvas.shade([polar(6 * step, share * radius, center) for step in range(60)], fill)
            canvas.circle(center, share * radius)
        half = math.degrees(math.acos(inner))
        ends = [polar(turn + side * half, radius, center) for side in (1, -1)]
        canvas.line(*ends)
        canvas.dot(center)
        canvas.side(f"{size} cm", *ends, polar(turn, radius, center))
