"""Functions: lines and parabolas on a grid."""

import math
import random
from collections.abc import Callable, Sequence
from fractions import Fraction

from .axes import Axes
from .drawing import INK, Canvas, Colour, NoRoom, Point
from .problems import Problem, root_parts, root_text, sum_text


LINE_COLOURS = [(30, 70, 160), (170, 40, 30)]


def _bracketed(number: int | Fraction) -> str:
    """Returns a number as a factor or base in a calculation: 3, (-3), (3/4)."""
    return f"({number})" if number < 0 or Fraction(number).denominator > 1 else str(number)


def _name_curve(canvas: Canvas, text: str, points: Sequence[Point], fill: Colour = INK) -> None:
    """Writes a formula close to a curve, at the first of its points where there is room."""
    for point in points:
        try:
            return canvas.label(text, point, [(1, 0), (-1, 0), (1, -0.6), (-1, -0.6), (1, 0.6), (-1, 0.6)], fill, 0.5)
        except NoRoom:
            continue
    raise NoRoom(f"The formula '{text}' has no room in a picture of {canvas.width}x{canvas.height} pixels.")


def line_slope(rng: random.Random, level: int) -> Problem:
    """A line through two points of the grid: its slope; a fraction as slope; where it meets the y-axis."""
    while True:
        x1, y1, x2, y2 = (rng.randint(-6, 6) for _ in range(4))
        if x1 >= x2 or y1 == y2 or abs(y2 - y1) > 10:
            continue
        slope = Fraction(y2 - y1, x2 - x1)
        intercept = y1 - slope * x1
        whole = (slope.denominator == 1, intercept.denominator == 1)
        if (level == 1 and whole[0]) or (level == 2 and not whole[0]) or (level == 3 and not whole[1] and x1 * x2 > 0):
            break
    rise, run = f"{y2} - {_bracketed(y1)}", f"{x2} - {_bracketed(x1)}"
    steps = f"({rise}) / ({run}) = {y2 - y1} / {x2 - x1} = {slope}."
    if level == 3:
        steps = f"Slope: {steps} y-intercept: {y1} - {_bracketed(slope)} * {_bracketed(x1)} = {intercept}."

    def draw(canvas: Canvas) -> None:
        below, above = canvas.rng.randint(1, 3), canvas.rng.randint(1, 3)
        axes = Axes(canvas, (-7, 7), (min(-2, y1, y2) - below, max(2, y1, y2) + above), step=1)
        axes.line(float(slope), float(intercept), LINE_COLOURS[0])
        spots = [axes.at(x1, y1), axes.at(x2, y2)]
        for spot in spots:
            canvas.dot(spot, 2.5)
        up = -1 if slope > 0 else 1
        for name, spot in zip("AB", spots, strict=True):
            canvas.label(name, spot, [(1, -up), (-1, up), (0.3, -up), (-0.3, up), (0, 1), (0, -1)])

    return Problem(
        facts=f"A line goes through the points A({x1}, {y1}) and B({x2}, {y2}).",
        question=f"Find the exact {'y-intercept' if level == 3 else 'slope'} of the line through A and B.",
        steps=steps,
        answer=str(intercept if level == 3 else slope),
        key=(level == 3, x1, y1, x2, y2),
        draw=draw,
    )


def _draw_function(
    canvas: Canvas, formula: str, function: Callable[[float], float], x_range: tuple[float, float]
) -> Axes:
    """Draws the graph of a function with its formula; the y-axis and the x-axis are in the picture."""
    low, high = (
        x + side * canvas.rng.uniform(0, 0.15) * (x_range[1] - x_range[0])
        for x, side in zip(x_range, (-1, 1), strict=True)
    )
    xs = [low + (high - low) * step / 60 for step in range(61)]
    ys = [function(x) for x in xs]
    spare = 0.08 * (max(0, *ys) - min(0, *ys))  # for labels under the axis and under the lowest point
    title = f"y = {formula}".replace("^2", "²")
    axes = Axes(canvas, (min(0, low), max(0, high)), (min(0, *ys) - spare, max(0, *ys) + spare), title=title)
    canvas.path([axes.at(x, y) for x, y in zip(xs, ys, strict=True)], fill=LINE_COLOURS[0], width=1.4)
    return axes


def function_value(rng: random.Random, level: int) -> Problem:
    """The value at a point: of a line; of x^2 + bx + c; of ax^2 + bx + c at a negative x."""
    b, c = rng.choice([-1, 1]) * rng.randint(2, 9), rng.randint(-20, 20)
    x = rng.randint(3, 15)
    a = 0
    if level > 1:
        a, x = 1, rng.randint(2, 8)
    if level == 3:
        a, x = rng.choice([-3, -2, 2, 3]), -rng.randint(2, 7)
    c += a * x * x + b * x + c == 0  # P lies not on the x-axis, where its value would be seen
    value = a * x * x + b * x + c
    formula = sum_text((a, "x^2"), (b, "x"), (c, ""))
    steps = f"{a} * {_bracketed(x)}^2 + " if a else ""
    steps += f"{_bracketed(b)} * {_bracketed(x)} + {_bracketed(c)} = {value}."

    def draw(canvas: Canvas) -> None:
        turning = -b / (2 * a) if a else 0.0
        reach = max(1.5, 0.25 * abs(x - turning))
        x_range = (min(x, turning) - reach, max(x, turning) + reach)
        axes = _draw_function(canvas, formula, lambda t: a * t * t + b * t + c, x_range)
        point, foot = axes.at(x, value), axes.at(x, 0)
        canvas.dashed(point, foot)
        canvas.dot(point, 2.5)
        canvas.label("P", point, [(1, 0), (-1, 0), (0, -1), (0, 1)])
        canvas.label(f"x = {x}", foot, [(0, value), (1, value), (-1, value), (1, 0), (-1, 0)])

    return Problem(
        facts=f"A function is y = {formula}. P lies on its graph at x = {x}.",
        question="Find the y-coordinate of P on the graph of the function.",
        steps=f"y = {steps}",
        answer=str(value),
        key=(level, a, b, c, x),
        draw=draw,
    )


def _draw_parabola(
    canvas: Canvas, formula: str, coefficients: tuple[int, int, int], marks: dict[str, tuple[float, float]]
) -> None:
    """Draws a parabola around its vertex and zeros, and marks named points."""
    a, b, c = coefficients
    turning = -b / (2 * a)
    reach = max([math.sqrt(9 / abs(a))] + [1.35 * abs(x - turning) for x, _ in marks.values()])
    x_range = (turning - reach, turning + reach)
    axes = _draw_function(canvas, formula, lambda t: a * t * t + b * t + c, x_range)
    for x, y in marks.values():
        canvas.dot(axes.at(x, y), 2.5)
    for name, (x, y) in marks.items():
        canvas.label(name, axes.at(x, y), [(0, a), (0.6, a), (-0.6, a), (1, 0), (-1, 0), (0, -a)])


def parabola_vertex(rng: random.Random, level: int) -> Problem:
    """The vertex of a parabola: from (x - h)^2 + k; from x^2 + bx + c; from ax^2 + bx + c in fractions."""
    h, k = Fraction(rng.choice([-1, 1]) * rng.randint(1, 9)), Fraction(rng.randint(-12, 12))
    a, b, c = 1, int(-2 * h), int(h * h + k)
    if level == 3:
        a, b, c = rng.choice([-4, -3, -2, 2, 3, 4]), rng.choice([-1, 1]) * rng.randint(1, 11), rng.randint(-9, 9)
        h = Fraction(-b, 2 * a)
        k = c + b * h / 2
    formula = sum_text((a, "x^2"), (b, "x"), (c, ""))
    steps = f"x = -{_bracketed(b)} / (2 * {_bracketed(a)}) = {h}. "
    steps += f"y = {a} * {_bracketed(h)}^2 + {_bracketed(b)} * {_bracketed(h)} + {_bracketed(c)} = {k}."
    if level == 1:
        square = f"({sum_text((1, 'x'), (int(-h), ''))})^2"
        formula = square + (f" {'-' if k < 0 else '+'} {abs(k)}" if k else "")
        steps = f"The square is smallest for {square[1:-3]} = 0, at x = {h}. There y = 0^2 + {_bracketed(k)} = {k}."
    return Problem(
        facts=f"A parabola has the equation y = {formula}.",
        question="Find the exact coordinates of the vertex S of the parabola, as a pair in parentheses.",
        steps=steps,
        answer=f"({h}, {k})",
        key=(level == 1, a, b, c),
        draw=lambda canvas: _draw_parabola(canvas, formula, (a, b, c), {"S": (float(h), float(k))}),
    )


def parabola_zeros(rng: random.Random, level: int) -> Problem:
    """The larger zero of a parabola; in fractions; the distance of the zeros as a root."""
    while True:
        if level == 3:
            a, b, c = 1, rng.randint(-15, 15), rng.choice([-1, 1]) * rng.randint(1, 30)
        else:
            a = rng.choice([2, 3, 4, 5]) if level == 2 else 1
            low, high = rng.randint(-15, 10), Fraction(rng.randint(-15, 30), a)
            b, c = int(-a * (low + high)), int(a * low * high)
            if high <= low or c == 0 or (level == 2 and high.denominator == 1):
                continue
        square = b * b - 4 * a * c
        if 4 < square <= 1000 and (level < 3 or (math.isqrt(square) ** 2 < square and root_parts(square)[0] > 1)):
            break
    root = root_text(*root_parts(square))
    formula = sum_text((a, "x^2"), (b, "x"), (c, ""))
    zeros = [(-b + sign * math.sqrt(square)) / (2 * a) for sign in (-1, 1)]
    steps = f"Discriminant: {_bracketed(b)}^2 - 4 * {a} * {_bracketed(c)} = {square}. √{square} = {root}. "
    if level == 3:
        find, answer = "distance of P and Q", root
        steps += f"The zeros differ by {root} / {a} = {root}."
    else:
        find, answer = "x-coordinate of Q", str(Fraction(-b + int(root), 2 * a))
        steps += f"Larger zero: ({-b} + {root}) / (2 * {a}) = {answer}."
    return Problem(
        facts=f"A parabola has the equation y = {formula}.",
        question=f"The parabola meets the x-axis at P and Q, with P left of Q. Find the exact {find}.",
        steps=steps,
        answer=answer,
        key=(level == 3, a, b, c),
        draw=lambda canvas: _draw_parabola(
            canvas, formula, (a, b, c), {name: (x, 0.0) for name, x in zip("PQ", zeros, strict=True)}
        ),
    )


def line_intersection(rng: random.Random, level: int) -> Problem:
    """Two lines: their intersection; from equations ax + by = c; the area between them and the y-axis."""
    if level == 2:
        return _intersection_by_elimination(rng)
    while True:
        (m1, m2), x = rng.sample([-3, -2, -1, 1, 2, 3], 2), Fraction(rng.choice([-1, 1]) * rng.randint(1, 6))
        b1 = rng.randint(-8, 8)
        b2 = b1 + rng.choice([-1, 1]) * rng.randint(2, 12)
        x = Fraction(b2 - b1, m1 - m2)
        y = m1 * x + b1
        if abs(x) <= 7 and abs(y) <= 10 and abs(b2) <= 10 and (level == 3 or x.denominator == 1):
            break
    equations = [f"y = {sum_text((m, 'x'), (b, ''))}" for m, b in ((m1, b1), (m2, b2))]
    steps = f"({b2} - {_bracketed(b1)}) / ({m1} - {_bracketed(m2)}) = {x}. "
    if level == 1:
        question, answer = "Find the intersection point of the lines, as a pair in parentheses.", f"({x}, {y})"
        steps = f"x = {steps}y = {_bracketed(m1)} * {_bracketed(x)} + {_bracketed(b1)} = {y}."
    else:
        question = "Find the exact area of the triangle that the lines enclose with the y-axis."
        base = abs(b1 - b2)
        answer = str(Fraction(base) * abs(x) / 2)
        steps = f"The lines meet at x = {steps}On the y-axis their distance is {max(b1, b2)} - "
        steps += f"{_bracketed(min(b1, b2))} = {base}. {base} * {_bracketed(abs(x))} / 2 = {answer}."
    return Problem(
        facts=f"Two lines have the equations {equations[0]} and {equations[1]}.",
        question=question,
        steps=steps,
        answer=answer,
        key=(level, *sorted([(m1, b1), (m2, b2)])),
        draw=lambda canvas: _draw_lines(canvas, [(m1, b1), (m2, b2)], equations, (float(x), float(y)), level == 3),
    )


def _intersection_by_elimination(rng: random.Random) -> Problem:
    while True:
        a1, b1, a2, b2 = (rng.choice([-5, -4, -3, -2, 2, 3, 4, 5]) for _ in range(4))
        x, y = rng.randint(-6, 6), rng.randint(-6, 6)
        c1, c2 = a1 * x + b1 * y, a2 * x + b2 * y
        determinant = a1 * b2 - a2 * b1
        steep = max(abs(a1 / b1), abs(a2 / b2)) > 2
        if a1 > 0 and a2 > 0 and abs(determinant) > 4 and not steep and math.gcd(a1, b1) == math.gcd(a2, b2) == 1:
            break
    equations = [f"{sum_text((a, 'x'), (b, 'y'))} = {c}" for a, b, c in ((a1, b1, c1), (a2, b2, c2))]
    b1s, b2s, c2s = _bracketed(b1), _bracketed(b2), _bracketed(c2)
    steps = f"D = {a1} * {b2s} - {a2} * {b1s} = {determinant}. x = ({c1} * {b2s} - {c2s} * {b1s}) / "
    steps += f"{_bracketed(determinant)} = {x}. y = ({a1} * {c2s} - {a2} * {_bracketed(c1)}) / "
    steps += f"{_bracketed(determinant)} = {y}."
    lines = [(-a1 / b1, c1 / b1), (-a2 / b2, c2 / b2)]
    return Problem(
        facts=f"Two lines have the equations {equations[0]} and {equations[1]}.",
        question="Find the intersection point of the lines, as a pair in parentheses.",
        steps=steps,
        answer=f"({x}, {y})",
        key=(2, *sorted([(a1, b1, c1), (a2, b2, c2)])),
        draw=lambda canvas: _draw_lines(canvas, lines, equations, (x, y), False),
    )


def _draw_lines(
    canvas: Canvas,
    lines: Sequence[tuple[float, float]],
    equations: Sequence[str],
    crossing: tuple[float, float],
    shaded: bool,
) -> None:
    """Draws two lines, their equations in their colours, and the triangle between them and the y-axis."""
    x, y = crossing
    ys = [y, 0, *(b for _, b in lines if shaded)]
    left, right, below, above = (canvas.rng.uniform(2, 6) for _ in range(4))
    axes = Axes(canvas, (min(0, x) - left, max(0, x) + right), (min(ys) - below, max(ys) + above))
    ends = [axes.line(slope, b, colour) for (slope, b), colour in zip(lines, LINE_COLOURS, strict=True)]
    if shaded:
        canvas.dot(axes.at(x, y), 1.5)
    for (start, end), equation, colour in zip(ends, equations, LINE_COLOURS, strict=True):
        points = [
            (start[0] + t * (end[0] - start[0]), start[1] + t * (end[1] - start[1]))
            for t in (0.9, 0.1, 0.8, 0.2, 0.7, 0.3, 0.95, 0.05, 0.6, 0.4)
        ]
        _name_curve(canvas, equation, points, colour)
