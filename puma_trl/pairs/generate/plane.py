"""Plane geometry, angles: at parallel lines, in triangles and polygons, and in circles."""

import math
import random
from fractions import Fraction

from .drawing import Canvas, Point, center_of, middle, polar
from .problems import Problem, decimal_text, sum_text


def triangle_corners(angle_a: float, angle_b: float) -> list[Point]:
    """Returns the corners of a triangle by two of its angles in degrees: A and B lie on the x axis, one apart."""
    reach = math.sin(math.radians(angle_b)) / math.sin(math.radians(angle_a + angle_b))
    return [(0.0, 0.0), (1.0, 0.0), polar(angle_a, reach)]


def _draw_parallels(canvas: Canvas, relation: str, angle: int, texts: tuple[str, str]) -> None:
    """Draws two parallel lines, a transversal and two related angles, the first of which has `angle` degrees."""
    # at each crossing there are four sectors, between the rays to the right, up, to the left and down
    slope = angle if relation == "corresponding" else 180 - angle
    low = polar(slope, -1 / math.sin(math.radians(slope)))
    points = [(0, 0), low, (-1.4, 0), (1.4, 0), (low[0] - 1.4, -1), (low[0] + 1.4, -1)]
    points += [(-0.9 * low[0], 0.9), (1.4 * low[0], -1.4)]
    turn = math.radians(canvas.rng.choice([0, 180]) + canvas.rng.uniform(-25, 25))
    top, bottom, top_left, top_right, low_left, low_right, up, down = canvas.fit(points, room=0.5, turn=turn)
    canvas.line(up, down)
    for start, end in ((top_left, top_right), (low_left, low_right)):
        canvas.line(start, end)
        canvas.arrow(start, end, 0.94)
    first = (top, top_right, up if relation == "corresponding" else bottom)
    second = (bottom, low_left if relation == "alternate" else low_right, up)
    canvas.angles((*first, texts[0]), (*second, texts[1]))


def parallel_angles(rng: random.Random, level: int) -> Problem:
    """Parallel lines: a related angle; the angle at a bend between them; an equation of two angles."""
    if level == 2:
        return _bend_between_parallels(rng)
    relation = rng.choice(["corresponding", "alternate", "co-interior"])
    acute = rng.randint(40, 84) if level == 1 else rng.randint(55, 84)
    angle = rng.choice([acute, 180 - acute])
    if level == 3:
        return _equation_at_parallels(rng, relation, angle)
    other = 180 - angle if relation == "co-interior" else angle
    steps = f"At parallel lines {relation} angles are equal, so the other angle is {angle} degrees too."
    if relation == "co-interior":
        steps = f"Co-interior angles add up to 180 degrees: 180 - {angle} = {other}."
    return Problem(
        facts=f"Two parallel lines are cut by a third line. One of two {relation} angles is {angle} degrees.",
        question="Find the other angle at the parallel lines.",
        steps=steps,
        answer=str(other),
        key=(1, relation, angle),
        draw=lambda canvas: _draw_parallels(canvas, relation, angle, (f"{angle}°", "?")),
    )


def _equation_at_parallels(rng: random.Random, relation: str, angle: int) -> Problem:
    sizes = (angle, 180 - angle if relation == "co-interior" else angle)
    factors = rng.choice([(2, 4), (2, 5), (3, 5), (3, 6), (4, 2), (5, 2), (5, 3), (6, 3)])
    x = rng.randint(4, (min(sizes) + 20) // max(factors))
    rests = [size - factor * x for size, factor in zip(sizes, factors, strict=True)]
    texts = tuple(sum_text((factor, "x"), (rest, "")) for factor, rest in zip(factors, rests, strict=True))
    if relation == "co-interior":
        steps = f"Co-interior angles add up to 180 degrees: {texts[0]} + {texts[1]} = 180. "
        total, value = sum(factors), 180 - sum(rests)
    else:
        steps = f"At parallel lines {relation} angles are equal: {texts[0]} = {texts[1]}. "
        total, value = abs(factors[0] - factors[1]), abs(rests[0] - rests[1])
    return Problem(
        facts=f"Two parallel lines are cut by a third line. Two {relation} angles are {texts[0]} degrees and "
        f"{texts[1]} degrees.",
        question="Find x at the parallel lines.",
        steps=f"{steps}{total}x = {value}. x = {value} / {total} = {x}.",
        answer=str(x),
        key=(3, relation, angle, x, factors),
        draw=lambda canvas: _draw_parallels(canvas, relation, angle, tuple(f"({text})°" for text in texts)),
    )


def _bend_between_parallels(rng: random.Random) -> Problem:
    first, second = sorted((rng.randint(25, 75), rng.randint(25, 75)))

    def draw(canvas: Canvas) -> None:
        upper = polar(180 - first, 1 / math.sin(math.radians(first)))
        lower = polar(180 + second, 1 / math.sin(math.radians(second)))
        points = [(0, 0), upper, (0.9, upper[1]), lower, (0.9, lower[1])]
        turn = math.radians(canvas.rng.choice([0, 180]) + canvas.rng.uniform(-15, 15))
        bend, a, c, b, d = canvas.fit(points, room=1.3, turn=turn)
        canvas.path([c, a, bend, b, d])
        canvas.arrow(a, c)
        canvas.arrow(b, d)
        canvas.angles((a, c, bend, f"{first}°"), (b, d, bend, f"{second}°"), (bend, a, b, "?"))
        canvas.corners("ACDB", [a, c, d, b])
        canvas.corner("P", bend, middle(a, b))

    return Problem(
        facts=f"P lies between the rays AC and BD, which point the same way. Angle CAP is {first} degrees and angle "
        f"DBP is {second} degrees; both open towards P.",
        question="The rays AC and BD are parallel. Find angle APB.",
        steps=f"A parallel to the rays through P divides angle APB into {first} and {second} degrees. "
        f"{first} + {second} = {first + second}.",
        answer=str(first + second),
        key=(2, first, second),
        draw=draw,
    )


def isosceles_angle(rng: random.Random, level: int) -> Problem:
    """Isosceles triangle: apex or base angle; apex by an exterior angle; an angle at the bisector of a base angle."""
    apex = rng.randint(28, 130)
    base = Fraction(180 - apex, 2)
    if level == 1 and rng.random() < 0.5:
        base = rng.randint(26, 76)
        facts, find, answer = f"Angle ABC is {base} degrees.", "BAC", Fraction(180 - 2 * base)
        steps = f"Angle ACB is {base} degrees too. {base} + {base} = {2 * base}. 180 - {2 * base} = {answer}."
    elif level == 1:
        facts, find, answer = f"Angle BAC is {apex} degrees.", "ABC", base
        steps = f"180 - {apex} = {180 - apex}. {180 - apex} / 2 = {decimal_text(base)}."
    elif level == 2 and rng.random() < 0.5:
        facts, find, answer = f"Angle BAC is {apex} degrees.", "ACD", 180 - base
        steps = f"Angle ACB: (180 - {apex}) / 2 = {decimal_text(base)}. 180 - {decimal_text(base)} = "
        steps += f"{decimal_text(answer)}."
    elif level == 2:
        outer = Fraction(rng.randint(208, 308), 2)
        base, outer_text = 180 - outer, decimal_text(outer)
        facts, find, answer = f"Angle ACD is {outer_text} degrees.", "BAC", 180 - 2 * base
        steps = (
            f"Angle ACB: 180 - {outer_text} = {decimal_text(base)}. Angle ABC is {decimal_text(base)} degrees too. "
        )
        steps += f"180 - 2 * {decimal_text(base)} = {answer}."
    else:
        facts, find = f"Angle BAC is {apex} degrees.", "BDC"
        half, answer = base / 2, 180 - base * Fraction(3, 2)
        base_text, half_text = decimal_text(base), decimal_text(half)
        steps = f"Angles ABC and ACB: (180 - {apex}) / 2 = {base_text}. Angle DBC: {base_text} / 2 = {half_text}. "
        steps += f"Angle BDC: 180 - {base_text} - {half_text} = {decimal_text(answer)}."
    given = facts.split(" degrees")[0].split()[-1] + "°"
    more = {2: " D lies on BC extended beyond C.", 3: " BD bisects angle ABC, with D on AC."}.get(level, "")
    return Problem(
        facts=facts,
        question=f"In triangle ABC the sides AB and AC are equal.{more} Find angle {find}.",
        steps=steps,
        answer=decimal_text(answer),
        key=(level, facts),
        draw=lambda canvas: _draw_isosceles(canvas, level, float(base), given, find),
    )


def _draw_isosceles(canvas: Canvas, level: int, base: float, given: str, find: str) -> None:
    b, c, a = triangle_corners(base, base)
    # the foot of the bisector divides AC as AB : BC
    foot = 1 / (1 + math.dist(a, b))
    extra = {1: b, 2: (1.6, 0.0), 3: (c[0] + foot * (a[0] - c[0]), foot * a[1])}[level]
    a, b, c, d = canvas.fit([a, b, c, extra], room=1.2, turn=math.radians(canvas.rng.uniform(-180, 180)))
    canvas.polygon([a, b, c])
    # D on AC would hide a stroke in the middle of AC where the triangle is nearly equilateral
    whole = max((a, d), (d, c), key=lambda part: math.dist(*part)) if level == 3 else (a, c)
    canvas.equal_sides((a, b), whole)
    if level > 1:
        canvas.line(c if level == 2 else b, d)
    points = {"A": a, "B": b, "C": c, "D": d}
    shown = {"ABC": "BAC", "BAC": "ACD" if level == 2 else "ABC", "ACD": "BAC", "BDC": "BAC"}[find]
    marks = [(points[name[1]], points[name[0]], points[name[2]], text) for name, text in ((shown, given), (find, "?"))]
    canvas.angles(*marks)
    canvas.corners("ABC", [a, b, c])
    if level > 1:
        canvas.corner("D", d, b if level == 3 else center_of([a, b, c]))


def exterior_angle(rng: random.Random, level: int) -> Problem:
    """Exterior angles of a triangle: from two inner angles; an inner one; an inner one from two exterior ones."""
    a, b = rng.randint(30, 75), rng.randint(30, 75)
    c = 180 - a - b
    sizes = {"BAC": a, "ABC": b, "ACD": 180 - c, "ABE": 180 - b}
    first, second, find = {1: ("BAC", "ABC", "ACD"), 2: ("BAC", "ACD", "ABC"), 3: ("ABE", "ACD", "BAC")}[level]
    extended = "BC is extended beyond C to D" + (" and beyond B to E." if level == 3 else ".")
    if level == 3:
        steps = (
            f"Angle ABC: 180 - {180 - b} = {b}. Angle ACB: 180 - {180 - c} = {c}. Angle BAC: 180 - {b} - {c} = {a}."
        )
    else:
        sign = {1: "+", 2: "-"}[level]
        values = (a, b) if level == 1 else (180 - c, a)
        steps = "The exterior angle ACD is the sum of the angles BAC and ABC. "
        steps += f"Angle {find}: {values[0]} {sign} {values[1]} = {sizes[find]}."

    def draw(canvas: Canvas) -> None:
        corners = triangle_corners(b, c)
        turn = math.radians(canvas.rng.uniform(-180, 180))
        ends = [(1.55, 0.0), (-0.55 if level == 3 else 0.0, 0.0)]
        points = dict(zip("BCADE", canvas.fit([*corners, *ends], room=1.2, turn=turn), strict=True))
        canvas.polygon([points[name] for name in "ABC"])
        canvas.line(points["E"], points["D"])
        texts = {first: f"{sizes[first]}°", second: f"{sizes[second]}°", find: "?"}
        canvas.angles(*((*(points[name[i]] for i in (1, 0, 2)), text) for name, text in texts.items()))
        canvas.corners("ABC", [points[name] for name in "ABC"])
        for name in "DE" if level == 3 else "D":
            canvas.corner(name, points[name], points["A"])

    return Problem(
        facts=f"In triangle ABC, {extended} Angle {first} is {sizes[first]} degrees and angle {second} is "
        f"{sizes[second]} degrees.",
        question=f"E, B, C and D lie on a line. Find angle {find}."
        if level == 3
        else f"B, C and D lie on a line. Find angle {find}.",
        steps=steps,
        answer=str(sizes[find]),
        key=(level, a, b),
        draw=draw,
    )


def polygon_angles(rng: random.Random, level: int) -> Problem:
    """The last angle of a quadrilateral or pentagon; two equal angles of a hexagon."""
    sides = level + 3
    equal = 2 if level == 3 else 1
    total = 180 * (sides - 2)
    while True:
        known = sorted(rng.randint(75, 150) for _ in range(sides - equal))
        rest = total - sum(known)
        if rest % equal == 0 and 75 <= rest // equal <= 150:
            break
    answer = rest // equal
    name = {1: "quadrilateral", 2: "pentagon", 3: "hexagon"}[level]
    facts = f"{ {3: 'Three', 4: 'Four'}[len(known)] } angles of a {name} are "
    facts += f"{', '.join(map(str, known[:-1]))} and {known[-1]} degrees."
    steps = f"Sum of all angles: ({sides} - 2) * 180 = {total}. {' + '.join(map(str, known))} = {sum(known)}. "
    steps += f"{total} - {sum(known)} = {rest}."

    def draw(canvas: Canvas) -> None:
        marks = [(size, f"{size}°") for size in known] + [(answer, "x")] * equal
        canvas.rng.shuffle(marks)
        # sides that touch a circle close for all angles
        turn, corners = canvas.rng.uniform(0, 360), []
        for size, _ in marks:
            half = (180 - size) / 2
            corners.append(polar(turn + half, 1 / math.cos(math.radians(half))))
            turn += 2 * half
        corners = canvas.fit(corners, room=0.3)
        canvas.polygon(corners)
        around = zip(corners, corners[-1:] + corners[:-1], corners[1:] + corners[:1], marks, strict=True)
        canvas.angles(*((corner, before, after, text) for corner, before, after, (_, text) in around))

    return Problem(
        facts=facts
        + (" The other two angles are x degrees each." if equal == 2 else " The other angle is x degrees."),
        question=f"Find x in the {name}.",
        steps=steps + (f" {rest} / 2 = {answer}." if equal == 2 else ""),
        answer=str(answer),
        key=(level, *known),
        draw=draw,
    )


def circle_angles(rng: random.Random, level: int) -> Problem:
    """Inscribed and central angles: one by the other; over an isosceles triangle; over two of them."""
    if level == 1 and rng.random() < 0.5:
        central = rng.randint(60, 160)
        facts, find, answer = f"Angle AOB is {central} degrees.", "ACB", Fraction(central, 2)
        steps = f"The inscribed angle is half the central angle: {central} / 2 = {decimal_text(answer)}."
        known = {"AOB": central}
    elif level == 1:
        inscribed = rng.randint(30, 80)
        facts, find, answer = f"Angle ACB is {inscribed} degrees.", "AOB", Fraction(2 * inscribed)
        steps = f"The central angle is twice the inscribed angle: 2 * {inscribed} = {answer}."
        known, central = {"ACB": inscribed}, int(answer)
    elif level == 2:
        base = Fraction(rng.randint(44, 120), 2)
        central, inscribed = int(180 - 2 * base), 90 - base
        given, find = rng.choice([("OAB", "ACB"), ("ACB", "OAB")])
        size, answer = (base, inscribed) if given == "OAB" else (inscribed, base)
        facts, known = f"Angle {given} is {decimal_text(size)} degrees.", {given: size}
        if given == "OAB":
            steps = f"OA and OB are equal. Angle AOB: 180 - 2 * {decimal_text(base)} = {central}. "
            steps += f"Half of it is angle ACB: {central} / 2 = {decimal_text(answer)}."
        else:
            steps = f"Angle AOB is twice angle ACB: 2 * {decimal_text(inscribed)} = {central}. "
            steps += f"OA and OB are equal, so angle OAB: (180 - {central}) / 2 = {decimal_text(answer)}."
    else:
        base = rng.randint(22, 38)
        other = rng.randint(base, 80 - base)
        central = 2 * (base + other)
        facts, find = f"Angle OAC is {base} degrees and angle OBC is {other} degrees.", "AOB"
        answer = Fraction(central)
        steps = f"OA, OB and OC are equal, so angle ACB is {base} + {other} = {base + other}. "
        steps += f"The central angle is twice the inscribed angle: 2 * {base + other} = {central}."
        known = {"OAC": base, "OBC": other}
    return Problem(
        facts=facts,
        question=f"O is the centre of the circle through A, B and C, and inside triangle ABC. Find angle {find}.",
        steps=steps,
        answer=decimal_text(answer),
        key=(level, *known.items()),
        draw=lambda canvas: _draw_circle_angles(canvas, central, known, find),
    )


def _draw_circle_angles(canvas: Canvas, central: int, known: dict[str, Fraction | int], find: str) -> None:
    # C lies at 180 degrees, between the points opposite to A and B, so that the centre is inside ABC
    to_a = 2 * known["OAC"] if "OAC" in known else central * canvas.rng.uniform(0.35, 0.65)
    turn = canvas.rng.uniform(0, 360)
    points = [(0, 0), polar(turn + to_a), polar(turn + to_a - central), polar(turn + 180), (-1, -1), (1, 1)]
    *spots, low, high = canvas.fit(points, room=1.2)
    o, a, b, c = spots
    canvas.circle(o, (high[0] - low[0]) / 2)
    canvas.dot(o, 1.6)
    canvas.path([o, a, c, b, o])
    if "OAB" in (*known, find):
        canvas.line(a, b)
    points = dict(zip("OABC", spots, strict=True))
    texts = {name: f"{decimal_text(size)}°" for name, size in known.items()} | {find: "?"}
    canvas.angles(*((*(points[name[i]] for i in (1, 0, 2)), text) for name, text in texts.items()))
    for name in "ABC":
        canvas.corner(name, points[name], o)
    canvas.corner("O", o, middle(a, b))
