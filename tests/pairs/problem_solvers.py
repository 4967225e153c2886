"""Solves the generator's problems from their words alone, with sympy: what the tests compare its answers with."""

import re

from sympy import Eq, Point, Polygon, Rational, Symbol, Triangle, diff, pi, simplify, solve, sqrt
from sympy.geometry import Line
from sympy.parsing.sympy_parser import (
    convert_xor,
    implicit_multiplication_application,
    parse_expr,
    rationalize,
    standard_transformations,
)


RULES = (*standard_transformations, convert_xor, implicit_multiplication_application, rationalize)
X, Y = Symbol("x", real=True), Symbol("y", real=True)


def parse(text):
    """Reads an answer or one side of an equation: 5√2, 9π/2, (2, -3), 2x^2 - 1."""
    text = re.sub(r"√(\d+)", r" sqrt(\1)", text).replace("π", " pi")
    return parse_expr(text, local_dict={"x": X, "y": Y}, transformations=RULES)


def numbers(text):
    return [Rational(number) for number in re.findall(r"(?<![\w^])-?\d+(?:\.\d+)?", text)]


def facts_of(row):
    return row["instruction"].removesuffix(row["instruction_2"])


def named(pattern, text):
    return {name: Rational(value) for name, value in re.findall(pattern, text)}


def pairs_of(text):
    return [tuple(map(int, pair)) for pair in re.findall(r"\((-?\d+), (-?\d+)\)", text)]


def positive(equation):
    return max(solve(equation, X))


def parallel_angles(row):
    facts = facts_of(row)
    if row["level"] == 2:
        first, second = numbers(facts)
        # in triangle ABP the angles at A and B are what the co-interior angles leave
        return 180 - (180 - first - second)
    if row["level"] == 1:
        sizes = [numbers(facts)[0], X]
    else:
        sizes = [parse(size) for size in re.search(r"angles are (.+) degrees and (.+) degrees", facts).groups()]
    equation = Eq(sum(sizes), 180) if "co-interior" in facts else Eq(*sizes)
    return solve(equation, X)[0]


def isosceles_angle(row):
    (given,), find = numbers(facts_of(row)), row["instruction_2"].split()[-1].strip(".")
    apex = given if "Angle BAC" in row["instruction"] else solve(2 * given + X - 180, X)[0]
    if "Angle ACD" in row["instruction"]:
        apex = solve(2 * (180 - given) + X - 180, X)[0]
    base = solve(2 * X + apex - 180, X)[0]
    if find == "ACD":
        return 180 - base
    return {"BAC": apex, "ABC": base, "BDC": 180 - base - base / 2}[find]


def exterior_angle(row):
    angles = named(r"[Aa]ngle (\w+) is (\d+)", facts_of(row))
    if row["level"] == 3:
        return solve(X + (180 - angles["ABE"]) + (180 - angles["ACD"]) - 180, X)[0]
    if row["level"] == 2:
        return solve(X + angles["BAC"] + (180 - angles["ACD"]) - 180, X)[0]
    return 180 - (180 - sum(angles.values()))


def polygon_angles(row):
    sides = {"quadrilateral": 4, "pentagon": 5, "hexagon": 6}[row["instruction_2"].split()[-1].strip(".")]
    known = numbers(facts_of(row))
    return solve(sum(known) + (sides - len(known)) * X - (sides - 2) * 180, X)[0]


def circle_angles(row):
    angles = named(r"ngle (\w+) is ([\d.]+\d)", facts_of(row))
    if "OAC" in angles:
        # the radii to A, B and C make three isosceles triangles
        return 360 - (180 - 2 * angles["OAC"]) - (180 - 2 * angles["OBC"])
    if "OAB" in angles:
        angles["AOB"] = 180 - 2 * angles["OAB"]
    central = angles["AOB"] if "AOB" in angles else 2 * angles["ACB"]
    return {"AOB": central, "ACB": central / 2, "OAB": (180 - central) / 2}[row["instruction_2"][-4:-1]]


def right_triangle(row):
    first, second = numbers(facts_of(row))
    return sqrt(first**2 - second**2) if "of BC" in row["instruction_2"] else sqrt(first**2 + second**2)


def similar_triangles(row):
    first, second, third = numbers(facts_of(row))
    if row["level"] == 3:
        return solve(Eq(X / third, first / (first + second)), X)[0]
    return solve(Eq(X / second, third / first), X)[0]


def triangle_area(row):
    first, second = numbers(facts_of(row))
    if row["level"] == 1:
        return first * second / 2
    third = sqrt(first**2 - second**2) if row["level"] == 2 else first
    half = (first + second + third) / 2
    return sqrt(half * (half - first) * (half - second) * (half - third))  # Heron


def parallelogram_area(row):
    first, second, *rest = numbers(facts_of(row))
    if row["level"] == 1:
        return first * second
    return solve(Eq(X * second, first if row["level"] == 2 else first * rest[0]), X)[0]


def trapezoid_area(row):
    first, second, third = numbers(facts_of(row))
    if row["level"] == 1:
        return Rational(1, 2) * (first + second) * third
    if row["level"] == 2:
        return solve(Eq((X + second) * third / 2, first), X)[0]
    height = sqrt(third**2 - ((first - second) / 2) ** 2)
    over = (first - second) / 2
    return abs(Polygon((0, 0), (first, 0), (first - over, height), (over, height)).area)


def circle_area(row):
    size, *angle = numbers(facts_of(row))
    if row["level"] == 2:
        return pi * size**2 * angle[0] / 360
    return pi * size**2 if "radius" in facts_of(row) else pi * (size / 2) ** 2


def cuboid_volume(row):
    first, second, third = numbers(facts_of(row))
    if row["level"] == 3:
        return first * second * positive(X**2 + first**2 - third**2)
    return first * second * third if row["level"] == 1 else solve(first * second * X - third, X)[0]


def cuboid_surface(row):
    first, second, third = numbers(facts_of(row))
    if row["level"] == 3:
        return solve(2 * (first * second + first * X + second * X) - third, X)[0]
    lids = 2 if row["level"] == 1 else 1
    return lids * first * second + 2 * third * (first + second)


def prism(row):
    length, first, second = numbers(facts_of(row))
    if row["level"] == 2:
        return positive(X**2 + second**2 - first**2) * second / 2 * length
    if row["level"] == 1:
        return first * second / 2 * length
    return first * second + (first + second + sqrt(first**2 + second**2)) * length


def pyramid(row):
    base, size = numbers(facts_of(row))
    is_slant = "side face" in row["instruction"]
    if "volume" in row["instruction_2"]:
        return base**2 * (positive(X**2 + (base / 2) ** 2 - size**2) if is_slant else size) / 3
    return base**2 + 4 * base * (size if is_slant else sqrt(size**2 + (base / 2) ** 2)) / 2


def cylinder(row):
    radius, *inner, height = numbers(facts_of(row))
    if row["level"] == 2:
        return 2 * pi * radius**2 + 2 * pi * radius * height
    return pi * radius**2 * height - sum(pi * size**2 * height for size in inner)


def cone(row):
    radius, height = numbers(facts_of(row))
    if row["level"] == 3:
        return pi * radius**2 + pi * radius * sqrt(radius**2 + height**2)
    if row["level"] == 2:
        height = positive(X**2 + radius**2 - height**2)
    return pi * radius**2 * height / 3


def line_slope(row):
    line = Line(*(Point(*pair) for pair in pairs_of(facts_of(row))))
    return line.slope if row["level"] < 3 else line.intersection(Line((0, 0), (0, 1)))[0].y


def line_intersection(row):
    sides = re.search(r"equations (.+) = (.+) and (.+) = (.+)\.", facts_of(row)).groups()
    lines = [Eq(parse(left), parse(right)) for left, right in zip(sides[::2], sides[1::2], strict=True)]
    crossing = solve(lines, (X, Y))
    point = (crossing[X], crossing[Y])
    if row["level"] < 3:
        return point
    return abs(Triangle(point, *((0, solve(line.subs(X, 0), Y)[0]) for line in lines)).area)


def _formula(row):
    return parse(re.search(r"y = (.+?)\.", facts_of(row)).group(1))


def solve_formula(row, x):
    return _formula(row).subs(X, x)


def function_value(row):
    return _formula(row).subs(X, numbers(facts_of(row))[-1])


def parabola_vertex(row):
    formula = _formula(row)
    (turning,) = solve(diff(formula, X), X)
    return turning, formula.subs(X, turning)


def parabola_zeros(row):
    low, high = sorted(solve(_formula(row), X))
    return high - low if row["level"] == 3 else high


def line_chart(row):
    values = named(r"([A-Z]\w\w) is (\d+)", facts_of(row))
    if row["level"] == 1:
        high, low = (values[name] for name in re.findall(r"of ([A-Z]\w\w)", row["instruction_2"]))
        return high - low
    if row["level"] == 2:
        return sum(values.values()) / 6
    months = list(values.values())
    return max(after - before for before, after in zip(months, months[1:], strict=False))


def pie_chart(row):
    values = named(r"([A-E]) has (\d+)", facts_of(row))
    if row["level"] == 1:
        return 100 - sum(values.values())
    asked = values[re.search(r"sector (\w)", row["instruction_2"]).group(1)]
    return asked * numbers(facts_of(row))[0] / 100 if row["level"] == 2 else 360 * asked / sum(values.values())


def table(row):
    cells = {name: texts.split(", ") for name, texts in re.findall(r"Row (\w): (.+?)\.", facts_of(row))}
    line = re.search(r"row (\w)", row["instruction_2"])
    if row["level"] == 2:
        return solve(sum(X if cell == "?" else int(cell) for cell in cells[line[1]][:3]) - int(cells[line[1]][3]), X)[
            0
        ]
    if line:
        return Rational(sum(map(int, cells[line[1]])), 3)
    column = ("Mon", "Tue", "Wed").index(re.search(r"column (\w+)", row["instruction_2"])[1])
    total = sum(int(texts[column]) for texts in cells.values())
    return Rational(total, 4 if row["level"] == 3 else 1)


def scatter_count(row):
    lines, points = facts_of(row).split("The points are")
    formulas = [parse(text) for text in re.findall(r"y = (.+?)(?= and|\.)", lines)]
    return sum(all(y > formula.subs(X, x) for formula in formulas) for x, y in pairs_of(points))


def grid_area(row):
    return abs(Polygon(*pairs_of(facts_of(row))).area)


def shape_count(row):
    facts = facts_of(row)
    if row["level"] == 3:
        return sum(numbers(facts)[::2]) / sum(numbers(facts))
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (\w+)", facts)}
    first, second = (counts[name] for name in re.findall("circles|triangles|squares", row["instruction_2"]))
    return first + second if row["level"] == 1 else first - second


def _bars(row):
    values = named(r"([ABC]) is (\d+)", row["instruction"])
    return [values[name] for name in re.findall(r"\b[ABC]\b", row["instruction_2"])]


SOLVERS = {
    "triangle_angles": lambda row: 180 - sum(numbers(row["instruction"])),
    "straight_angles": lambda row: 180 - sum(numbers(row["instruction"])),
    "rectangle_perimeter": lambda row: 2 * sum(numbers(row["instruction"])),
    "segment_total": lambda row: sum(numbers(row["instruction"])),
    "segment_part": lambda row: numbers(row["instruction"])[0] - numbers(row["instruction"])[1],
    "bar_difference": lambda row: _bars(row)[0] - _bars(row)[1],
    "bar_total": lambda row: sum(_bars(row)),
} | {
    solver.__name__: solver
    for solver in (
        *(parallel_angles, isosceles_angle, exterior_angle, polygon_angles, circle_angles),
        *(right_triangle, similar_triangles, triangle_area, parallelogram_area, trapezoid_area, circle_area),
        *(cuboid_volume, cuboid_surface, prism, pyramid, cylinder, cone),
        *(line_slope, line_intersection, function_value, parabola_vertex, parabola_zeros),
        *(line_chart, pie_chart, table, scatter_count, grid_area, shape_count),
    )
}


def is_equal(first, second):
    """Tells whether two numbers, or two points, are exactly equal."""
    if isinstance(first, tuple):
        return len(first) == len(second) and all(map(is_equal, first, second))
    return first == second or simplify(first - second) == 0
