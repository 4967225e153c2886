"""Charts and counting: line and pie charts, tables, points and polygons on a grid, shapes."""

import math
import random
from collections.abc import Sequence
from fractions import Fraction

from .axes import Axes
from .drawing import COLOURS, WHITE, Canvas, Point, polar
from .problems import Problem, listed, sum_text


MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun")
DAYS = ("Mon", "Tue", "Wed")
BLUE = (30, 70, 160)
DARK = (70, 70, 70)


def line_chart(rng: random.Random, level: int) -> Problem:
    """Line chart: difference of two months; mean of all; largest rise from one month to the next."""
    step = rng.choice([1, 2, 5, 10, 20, 50])
    while True:
        values = [step * rng.randint(1, 10) for _ in MONTHS]
        rises = [after - before for before, after in zip(values, values[1:], strict=False)]
        first, second = sorted(rng.sample(range(len(MONTHS)), 2))
        if values[first] != values[second] and sorted(rises)[-2] < max(rises) > 0:
            break
    if level == 1:
        low, high = sorted((first, second), key=values.__getitem__)
        question = f"By how much is the value of {MONTHS[high]} larger than that of {MONTHS[low]} in the line chart?"
        answer = Fraction(values[high] - values[low])
        steps = f"{values[high]} - {values[low]} = {answer}."
    elif level == 2:
        question, answer = "Find the exact mean of all values in the line chart.", Fraction(sum(values), len(values))
        steps = f"{' + '.join(map(str, values))} = {sum(values)}. {sum(values)} / {len(values)} = {answer}."
    else:
        question = "Find the largest rise from one month to the next in the line chart."
        best = rises.index(max(rises))
        answer = Fraction(rises[best])
        steps = " ".join(
            f"{after} - {before} = {after - before}." for before, after in zip(values, values[1:], strict=False)
        )
        steps += f" The largest rise is that from {MONTHS[best]} to {MONTHS[best + 1]}."

    def draw(canvas: Canvas) -> None:
        axes = Axes(canvas, (0, len(values)), (0, 10 * step), step=step, names=MONTHS)
        points = [axes.at(index + 0.5, value) for index, value in enumerate(values)]
        canvas.path(points, fill=BLUE, width=1.4)
        for point in points:
            canvas.dot(point, 2.5, BLUE)

    facts = [f"{month} is {value}" for month, value in zip(MONTHS, values, strict=True)]
    return Problem(
        facts=f"In a line chart {listed(facts)}.",
        question=question,
        steps=steps,
        answer=str(answer),
        key=(level, question, *values),
        draw=draw,
    )


def _shares(rng: random.Random, total: int, count: int, smallest: int) -> list[int]:
    """Returns positive whole numbers with a given sum, none smaller than `smallest`."""
    spare = total - count * smallest
    cuts = sorted(rng.randint(0, spare) for _ in range(count - 1))
    return [smallest + high - low for low, high in zip([0, *cuts], [*cuts, spare], strict=True)]


def pie_chart(rng: random.Random, level: int) -> Problem:
    """Pie chart: the missing percentage; the amount by a percentage; the angle of a sector by the amounts."""
    names = "ABCDE"[: level + 2]
    asked = rng.randrange(len(names))
    title = ""
    if level < 3:
        sizes = _shares(rng, 100, len(names), 11)
        texts = [f"{name}: {size}%" for name, size in zip(names, sizes, strict=True)]
        facts = [f"{name} has {size} percent" for name, size in zip(names, sizes, strict=True)]
    if level == 1:
        texts[asked] = f"{names[asked]}: ?"
        known = [size for index, size in enumerate(sizes) if index != asked]
        del facts[asked]
        intro = f"The sectors of a pie chart are {listed(names)}. "
        question, answer = f"Find the percentage of sector {names[asked]} in the pie chart.", Fraction(sizes[asked])
        steps = f"{' + '.join(map(str, known))} = {sum(known)}. 100 - {sum(known)} = {answer}."
    elif level == 2:
        total = 100 * rng.randint(2, 9) // rng.choice([1, 2])
        title, intro = f"Total: {total}", f"A pie chart stands for a total of {total}. "
        question, answer = f"Find the exact amount of sector {names[asked]}.", Fraction(total * sizes[asked], 100)
        steps = f"{total} * {sizes[asked]} / 100 = {answer}."
    else:
        total = rng.choice([36, 40, 45, 60, 72, 80, 90, 100, 120, 150, 180, 200, 240])
        sizes = _shares(rng, total, len(names), math.ceil(0.12 * total))
        texts = [f"{name}: {size}" for name, size in zip(names, sizes, strict=True)]
        facts = [f"{name} has {size}" for name, size in zip(names, sizes, strict=True)]
        intro = "A pie chart shows amounts: "
        question = f"Find the exact angle in degrees of sector {names[asked]} in the pie chart."
        answer = Fraction(360 * sizes[asked], total)
        steps = f"{' + '.join(map(str, sizes))} = {total}. 360 * {sizes[asked]} / {total} = {answer}."
    return Problem(
        facts=f"{intro}{listed(facts)}.",
        question=question,
        steps=steps,
        answer=str(answer),
        key=(level, asked, title, *sizes),
        draw=lambda canvas: _draw_pie(canvas, sizes, texts, title),
    )


def _draw_pie(canvas: Canvas, sizes: Sequence[int], texts: Sequence[str], title: str) -> None:
    space = 1.6 * canvas.font_size if title else 0
    center = (canvas.width / 2, (canvas.height + space) / 2)
    radius = (min(canvas.width, canvas.height) - space) / 2 - 2 * canvas.margin
    turn = canvas.rng.uniform(0, 360)
    middles, edges = [], []
    colours = canvas.rng.sample(COLOURS, len(sizes))
    for size, colour in zip(sizes, colours, strict=True):
        angle = 360 * size / sum(sizes)
        arc = [polar(turn + angle * step / 24, radius, center) for step in range(25)]
        canvas.shade([center, *arc], colour)
        edges.append(arc[0])
        middles.append(polar(turn + angle / 2, 0.64 * radius, center))
        turn += angle
    canvas.circle(center, radius)
    for edge in edges:
        canvas.line(center, edge)
    if title:
        canvas.label(title, (canvas.width / 2, canvas.margin), [(0, 1)])
    for text, spot in zip(texts, middles, strict=True):
        canvas.label(text, spot, [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)], reach=1.0)


def table(rng: random.Random, level: int) -> Problem:
    """Table: the sum of a column; a missing value by the sum of its row; the mean of a row or column."""
    names, days = "ABCD", [*DAYS, "Sum"] if level == 2 else list(DAYS)
    rows = [[rng.randint(2, 99) for _ in DAYS] for _ in names]
    row, column = rng.randrange(len(names)), rng.randrange(len(DAYS))
    cells = [[str(value) for value in values] for values in rows]
    if level == 1:
        values = [line[column] for line in rows]
        question, answer = f"Find the sum of the column {DAYS[column]} in the table.", Fraction(sum(values))
        steps = f"{' + '.join(map(str, values))} = {answer}."
    elif level == 2:
        cells = [[*texts, str(sum(values))] for texts, values in zip(cells, rows, strict=True)]
        answer, total = Fraction(rows[row][column]), sum(rows[row])
        cells[row][column] = "?"
        known = [value for index, value in enumerate(rows[row]) if index != column]
        question = f"Find the missing value of {DAYS[column]} in row {names[row]} of the table."
        steps = f"{known[0]} + {known[1]} = {sum(known)}. {total} - {sum(known)} = {answer}."
    else:
        by_row = rng.random() < 0.5
        values = rows[row] if by_row else [line[column] for line in rows]
        what = f"row {names[row]}" if by_row else f"the column {DAYS[column]}"
        question, answer = f"Find the exact mean of {what} in the table.", Fraction(sum(values), len(values))
        steps = f"{' + '.join(map(str, values))} = {sum(values)}. {sum(values)} / {len(values)} = {answer}."
    facts = [f"Row {name}: {', '.join(texts)}." for name, texts in zip(names, cells, strict=True)]
    return Problem(
        facts=f"A table has the columns {listed(days)}. {' '.join(facts)}",
        question=question,
        steps=steps,
        answer=str(answer),
        key=(level, question, *(value for values in rows for value in values)),
        draw=lambda canvas: _draw_table(canvas, [["", *days], *([n, *c] for n, c in zip(names, cells, strict=True))]),
    )


def _draw_table(canvas: Canvas, cells: Sequence[Sequence[str]]) -> None:
    rows, columns = len(cells), len(cells[0])
    wide = canvas.rng.uniform(0.75, 0.95) * canvas.width / columns
    high = canvas.rng.uniform(0.5, 0.9) * canvas.height / rows
    left = canvas.rng.uniform(0.2, 0.8) * (canvas.width - columns * wide)
    top = canvas.rng.uniform(0.2, 0.8) * (canvas.height - rows * high)
    colour = canvas.rng.choice(COLOURS)
    canvas.rectangle(left, top, left + columns * wide, top + high, colour)
    canvas.rectangle(left, top, left + wide, top + rows * high, colour)
    for row in range(rows + 1):
        canvas.line((left, top + row * high), (left + columns * wide, top + row * high))
    for column in range(columns + 1):
        canvas.line((left + column * wide, top), (left + column * wide, top + rows * high))
    for row, texts in enumerate(cells):
        for column, text in enumerate(texts):
            if text:
                canvas.label(text, (left + (column + 0.5) * wide, top + (row + 0.5) * high), [(0, 0)])


def scatter_count(rng: random.Random, level: int) -> Problem:
    """Points and lines on a grid: how many lie above a level line; above a sloping one; above two."""
    slopes = {1: [0], 2: [rng.choice([-1, 1])], 3: [1, -1]}[level]
    lines = [(slope, rng.randint(*{0: (2, 6), 1: (-3, 2), -1: (6, 11)}[slope])) for slope in slopes]
    spots = [(x, y) for x in range(1, 11) for y in range(1, 9) if all(y != m * x + b for m, b in lines)]
    while True:
        points = sorted(rng.sample(spots, rng.randint(3 + 2 * level, 5 + 2 * level)))
        above = [(x, y) for x, y in points if all(y > m * x + b for m, b in lines)]
        if 0 < len(above) < len(points):
            break
    equations = [f"y = {sum_text((m, 'x'), (b, ''))}" for m, b in lines]
    if len(lines) == 1:
        facts, question = f"A line has the equation {equations[0]}. ", "How many of the points lie above the line?"
    else:
        facts = f"Two lines have the equations {listed(equations)}. "
        question = "How many of the points lie above both lines?"

    def draw(canvas: Canvas) -> None:
        axes = Axes(canvas, (0, 11), (0, 9), step=1)
        for slope, intercept in lines:
            axes.line(slope, intercept, BLUE)
        for x, y in points:
            canvas.dot(axes.at(x, y), 3)

    return Problem(
        facts=f"{facts}The points are {listed([str(point) for point in points])}.",
        question=question,
        steps=f"Above are {listed([str(point) for point in above])}.",
        answer=str(len(above)),
        key=(level, *lines, *points),
        draw=draw,
    )


def _twice_the_area(corners: Sequence[Point]) -> float:
    around = zip(corners, [*corners[1:], corners[0]], strict=True)
    return sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in around)


def _hull(points: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns the corners of the convex hull, counter-clockwise (Andrew's monotone chain)."""
    halves = []
    for ordered in (sorted(points), sorted(points, reverse=True)):
        half: list[tuple[int, int]] = []
        for point in ordered:
            while len(half) > 1 and _twice_the_area([*half[-2:], point]) <= 0:
                half.pop()
            half.append(point)
        halves += half[:-1]
    return halves


def grid_area(rng: random.Random, level: int) -> Problem:
    """Area on a grid: an L-shape; a triangle; a polygon with four or five corners."""
    if level == 1:
        wide, high = rng.randint(4, 10), rng.randint(4, 8)
        cut_x, cut_y = rng.randint(2, wide - 2), rng.randint(2, high - 2)
        corners = [
            (0, 0),
            (wide, 0),
            (wide, high - cut_y),
            (wide - cut_x, high - cut_y),
            (wide - cut_x, high),
            (0, high),
        ]
        left, low = rng.randint(1, 11 - wide), rng.randint(1, 9 - high)
        corners = [(x + left, y + low) for x, y in corners]
        area = Fraction(wide * high - cut_x * cut_y)
        steps = f"{wide} * {high} = {wide * high}. {cut_x} * {cut_y} = {cut_x * cut_y}. "
        steps += f"{wide * high} - {cut_x * cut_y} = {area}."
    else:
        corners = []
        while len(corners) not in {2: (3,), 3: (4, 5)}[level] or _twice_the_area(corners) < 12 * level:
            corners = _hull([(rng.randint(1, 11), rng.randint(1, 9)) for _ in range(3 if level == 2 else 6)])
        doubled = int(_twice_the_area(corners))
        area = Fraction(doubled, 2)
        around = zip(corners, [*corners[1:], corners[0]], strict=True)
        products = [f"({x1} * {y2} - {x2} * {y1})" for (x1, y1), (x2, y2) in around]
        steps = f"{' + '.join(products)} = {doubled}. {doubled} / 2 = {area}."

    def draw(canvas: Canvas) -> None:
        axes = Axes(canvas, (0, 12), (0, 10), step=1)
        points = [axes.at(*corner) for corner in corners]
        canvas.path([*points, points[0]], fill=BLUE, width=1.6)
        for point in points:
            canvas.dot(point, 2.2, BLUE)

    return Problem(
        facts=f"On a grid a polygon has the corners {listed([str(corner) for corner in corners])}, in this order.",
        question="The squares of the grid have sides of one centimetre. Find the exact area of the polygon in square "
        "centimetres.",
        steps=steps,
        answer=str(area),
        key=(level, *corners),
        draw=draw,
    )


def shape_count(rng: random.Random, level: int) -> Problem:
    """Counting shapes: two sorts together; how many more of one sort; the share of the dark ones."""
    names = ["circles", "triangles", "squares"]
    first, second = rng.sample(names, 2)
    totals = {first: 0, second: 0}
    while totals[first] == totals[second]:
        counts = {name: (rng.randint(1, 7), rng.randint(1, 7)) for name in names}
        totals = {name: sum(pair) for name, pair in counts.items()}
    if level == 2:
        first, second = sorted((first, second), key=lambda name: -totals[name])
    if level < 3:
        facts = listed([f"{totals[name]} {name}" for name in names])
        sign, question = ("+", f"How many {first} and {second} are there together?")
        if level == 2:
            sign, question = ("-", f"How many more {first} than {second} are there?")
        answer = Fraction(totals[first] + totals[second] * (1 if level == 1 else -1))
        steps = f"{totals[first]} {sign} {totals[second]} = {answer}."
    else:
        facts = listed([f"{dark} dark and {white} white {name}" for name, (dark, white) in counts.items()])
        darks, total = [dark for dark, _ in counts.values()], sum(totals.values())
        question, answer = "Which fraction of all the shapes is dark?", Fraction(sum(darks), total)
        steps = f"Dark: {' + '.join(map(str, darks))} = {sum(darks)}. "
        steps += f"All: {' + '.join(map(str, totals.values()))} = {total}. {sum(darks)} / {total} = {answer}."
    shapes = [(name, index < counts[name][0]) for name in names for index in range(totals[name])]
    return Problem(
        facts=f"A picture shows {facts}.",
        question=f"{question} Count the shapes in the picture.",
        steps=steps,
        answer=str(answer),
        key=(level, question, *(counts.values() if level == 3 else totals.values())),
        draw=lambda canvas: _draw_shapes(canvas, shapes),
        question_alone=question,
    )


def _draw_shapes(canvas: Canvas, shapes: Sequence[tuple[str, bool]]) -> None:
    columns = round(math.sqrt(1.6 * len(shapes) * canvas.width / canvas.height))
    rows = math.ceil(1.2 * len(shapes) / columns)
    wide, high = (canvas.width - 2 * canvas.margin) / columns, (canvas.height - 2 * canvas.margin) / rows
    cells = canvas.rng.sample([(x, y) for x in range(columns) for y in range(rows)], len(shapes))
    for (name, dark), (column, row) in zip(shapes, cells, strict=True):
        radius = min(wide, high) * canvas.rng.uniform(0.3, 0.4)
        x = canvas.margin + (column + 0.5) * wide + canvas.rng.uniform(-0.5, 0.5) * (wide - 2.2 * radius)
        y = canvas.margin + (row + 0.5) * high + canvas.rng.uniform(-0.5, 0.5) * (high - 2.2 * radius)
        corners, start = {"circles": (32, 0), "triangles": (3, 90), "squares": (4, 45)}[name]
        points = [polar(-start - 360 * corner / corners, radius, (x, y)) for corner in range(corners)]
        canvas.shade(points, DARK if dark else WHITE)
        canvas.polygon(points)
