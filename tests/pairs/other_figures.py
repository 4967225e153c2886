"""What a drawing bears, read from what was drawn, and other figures that the words of `vision_intensive` allow."""

import re
from collections import Counter
from dataclasses import replace

from sympy import pi, sqrt

from puma_trl.pairs.generate import charts, functions
from puma_trl.pairs.generate import pairs as generator
from puma_trl.pairs.generate.axes import Axes
from puma_trl.pairs.generate.drawing import WHITE, Canvas
from puma_trl.pairs.generate.problems import sum_text
from puma_trl.pairs.generate.wording import word

from .problem_solvers import SOLVERS, is_equal, numbers, solve_formula


NUMBER = r"-?\d+(?:\.\d+)?"
# Kind → difficulties → the mark that shows what `vision_intensive` leaves out; of the other kinds it is the shape, the
# place of a label, or a condition
MARKS = {
    "parallel_angles": (("arrow",),) * 3,
    "isosceles_angle": (("equal_sides",),) * 3,
    "right_triangle": (("right_angle",),) * 3,
    "similar_triangles": ((), (), ("arrow",)),
    "triangle_area": (("right_angle", "dashed"), ("right_angle",), ("equal_sides",)),
    "parallelogram_area": (("right_angle", "dashed"),) * 3,
    "trapezoid_area": (("right_angle", "dashed"), ("right_angle", "dashed"), ()),
    "circle_area": (("dot",), ("shade",), ("shade",)),
    "prism": (("right_angle",),) * 3,
    "pyramid": (("right_angle", "dashed"),) * 3,
    "function_value": (("dashed", "dot"),) * 3,
    "parabola_vertex": (("dot",),) * 3,
    "parabola_zeros": (("dot",),) * 3,
}
METHODS = ("arrow", "equal_sides", "right_angle", "dashed", "dot", "shade", "polygon")


class Drawing:
    """Records the last drawing: its labels, its marks, and with axes the points and lines by their coordinates."""

    def __init__(self, monkeypatch):
        drawing = self

        class RecordedCanvas(Canvas):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                drawing.labels, drawing.calls, drawing.axes = [], [], None

            def _write(self, text, *args, **kwargs):
                written = super()._write(text, *args, **kwargs)
                drawing.labels += [text] * written
                return written

        for name in METHODS:

            def record(self, *args, name=name, **kwargs):
                drawing.calls.append((name, args))
                return getattr(Canvas, name)(self, *args, **kwargs)

            setattr(RecordedCanvas, name, record)

        class RecordedAxes(Axes):
            def __init__(self, *args, title=None, **kwargs):
                super().__init__(*args, title=title, **kwargs)
                # without the numbers of the grid
                drawing.axes, drawing.lines, drawing.labels = self, [], [title] if title else []

            def line(self, slope, intercept, *args):
                drawing.lines.append((slope, intercept))
                return super().line(slope, intercept, *args)

        monkeypatch.setattr(generator, "Canvas", RecordedCanvas)
        for module in (charts, functions):
            monkeypatch.setattr(module, "Axes", RecordedAxes)

    def numbers(self, kind):
        """Returns the numbers that can be read in the drawing, as they are written in words."""
        text = " ".join(self.labels).replace("²", "^2")
        if kind == "line_chart":
            text = " ".join(str(y) for _, y in self._points())
        elif kind in ("line_slope", "scatter_count", "grid_area"):
            text = " ".join(map(str, self._points()))
            text += " ".join(sum_text((m, "x"), (b, "")) for m, b in self.lines if kind == "scatter_count")
        elif kind == "shape_count":
            shapes = [(len(args[0]), fill) for name, args, fill in self._shapes()]
            counts = [*Counter(shapes).values(), *Counter(corners for corners, _ in shapes).values()]
            text = " ".join(map(str, counts))
        return Counter(re.findall(NUMBER, text))

    def _points(self):
        axes = self.axes
        for name, args in self.calls:
            if name == "dot":
                (x, y), *_ = args
                yield (
                    round((x - axes.left) / axes.unit_x + axes.low_x - 0.01),
                    round((axes.bottom - y) / axes.unit_y + axes.low_y),
                )

    def _shapes(self):
        fill = None
        for name, args in self.calls:
            if name == "shade":
                fill = args[1] == WHITE
            elif name == "polygon":
                yield name, args, fill


def feed(problem, words, drawn):
    """Returns the facts with each number taken from the words or, where these lack it, from the drawing."""
    given = Counter(re.findall(NUMBER, words))
    drawn = Counter(drawn)

    def take(match):
        for source in (given, drawn):
            if source[match[0]]:
                source[match[0]] -= 1
                return match[0]
        raise AssertionError(f"{match[0]} is in neither: {problem.facts} | {words} | {drawn}")

    return re.sub(NUMBER, take, problem.facts)


def as_row(problem, level, facts=None):
    """Returns what the solvers read."""
    question = problem.question
    return {"instruction": f"{facts or problem.facts} {question}", "instruction_2": question, "level": level}


_RELATIONS = ({"alternate|corresponding": "co-interior"}, {"co-interior": "alternate"})
_ONE_REST, _TWO_RESTS = "other angle is x degrees", "other two angles are x degrees each"
_HEIGHTS = ({"its height": "the height of each side face"}, {"the height of each side face": "its height"})
# Kind → difficulty → what makes of its text another one of the same words: pattern → replacement
OTHER_TEXTS = {
    "parallel_angles": {1: _RELATIONS, 3: _RELATIONS},
    "polygon_angles": {
        1: ({"quadrilateral": "pentagon", _ONE_REST: _TWO_RESTS},),
        2: ({"pentagon": "hexagon", _ONE_REST: _TWO_RESTS},),
        3: ({"hexagon": "pentagon", _TWO_RESTS: _ONE_REST},),
    },
    "circle_area": {1: ({"radius": "diameter"}, {"diameter": "radius"})},
    "pyramid": {1: _HEIGHTS, 2: _HEIGHTS, 3: _HEIGHTS},
    "cylinder": {1: ({"cylinder": "cone"},), 2: ({"cylinder": "cone"},)},
    "cone": {1: ({"cone": "cylinder"},), 3: ({"cone": "cylinder"},)},
}
# Kind and difficulty → those whose solver reads the other text, where these are not the same
OTHER_SOLVERS = {
    ("cylinder", 1): ("cone", 1),
    ("cylinder", 2): ("cone", 3),
    ("cone", 1): ("cylinder", 1),
    ("cone", 3): ("cylinder", 2),
}


def _isosceles(row, given, answer):
    """Angle ACB, or ABC where D is on the line, is 1 degree; where BD bisects ABC, AC and BC are the equal sides."""
    if row["level"] == 1:
        return 179 - given
    if row["level"] == 3:
        return given * 3 / 2
    return 179 if "Angle BAC" in row["instruction"] else given - 1


def _triangle_area(row, first, second, answer):
    """The dashed line meets AB at 30 degrees, or the right angle is at A."""
    return first * second / (4 if row["level"] == 1 else 2)


def _parallelogram_area(row, *sizes):
    """The dashed line meets AB at 30 degrees, or both are the diagonals."""
    *sizes, answer = sizes
    if row["level"] == 3:
        base, side, diagonal = sizes
        return sqrt(2 * base**2 + 2 * side**2 - diagonal**2)
    return answer / 2 if row["level"] == 1 else 2 * answer


def _trapezoid_area(row, first, second, third, answer):
    """The dashed line meets AB at 30 degrees, or BC stands upright on it."""
    if row["level"] == 2:
        return 4 * first / third - second
    return answer / 2 if row["level"] == 1 else (first + second) * third / 2


def _notched(row, first, second, third, answer):
    """A cuboid from whose base a corner of 1 cm x 1 cm is cut, which leaves the perimeter."""
    surface = "surface" in row["instruction_2"]
    if "Find its height" not in row["instruction_2"]:
        height = answer / (first * second) if "diagonal" in row["instruction"] else third
        return answer - (1 if "no lid" in row["instruction_2"] else 2) if surface else answer - height
    base = first * second - 1
    return (third - 2 * base) / (2 * (first + second)) if surface else third / base


def _prism(row, length, first, second, answer):
    """The sides meet at 30 degrees, at a right angle, or at 60 degrees."""
    if row["level"] == 1:
        return answer / 2
    if row["level"] == 2:
        return first * second / 2 * length
    return sqrt(3) / 2 * first * second + (first + second + sqrt(first**2 + second**2 - first * second)) * length


# Kind → the answer of another figure, by the row, the numbers in the words, and the answer of this one
OTHER_FIGURES = {
    "triangle_angles": lambda row, a, b, answer: 360 - a - b,  # around a point
    "straight_angles": lambda row, a, b, answer: 360 - a - b,
    "rectangle_perimeter": lambda row, a, b, answer: 2 * sqrt(a**2 + b**2),  # a rhombus
    "segment_total": lambda row, a, b, answer: sqrt(a**2 + b**2),  # at a right angle
    "segment_part": lambda row, a, b, answer: a + b,  # one behind the other
    "parallel_angles": lambda row, a, b, answer: a + b + 10,  # rays that part by 10 degrees
    "isosceles_angle": _isosceles,
    "exterior_angle": lambda row, a, b, answer: answer + 10,  # the line has a bend of 10 degrees
    "circle_angles": lambda row, *numbers: numbers[-1] + 5,  # O is elsewhere
    "right_triangle": lambda row, a, b, answer: sqrt(a**2 + b**2 - (0 if row["level"] == 2 else a * b)),
    "similar_triangles": lambda row, a, b, c, answer: answer + 1 if row["level"] == 3 else a * c / b,
    "triangle_area": _triangle_area,
    "parallelogram_area": _parallelogram_area,
    "trapezoid_area": _trapezoid_area,
    "circle_area": lambda row, size, *more: (
        pi * size**2 * (360 - more[0]) / 360 if row["level"] == 2 else pi * size**2
    ),
    "cuboid_volume": _notched,
    "cuboid_surface": _notched,
    "prism": _prism,
    "cylinder": lambda row, radius, inner, height, answer: pi * height * (radius**2 - inner**2 / 2),  # half as deep
    "cone": lambda row, radius, line, answer: pi * radius**2 * line,  # a cylinder, and the line upright
    "scatter_count": lambda row, *numbers: 0,  # a line above all points
    "parabola_vertex": lambda row, *numbers: (0, solve_formula(row, 0)),  # S lies on the y-axis
    "parabola_zeros": lambda row, *numbers: numbers[-1] / 2 if row["level"] == 3 else numbers[-1] - 1,
}


def other_answer(problem, kind, level, answer):
    """
    Returns another answer that the words of `vision_intensive` allow: of a problem of which they are the words too, or
    of another figure of which they are true.
    """
    words = word(problem, kind, level, "vision_intensive", "")
    for changes in OTHER_TEXTS.get(kind, {}).get(level, ()):
        texts = {"facts": problem.facts, "question": problem.question}
        for pattern, replacement in changes.items():
            texts = {name: re.sub(pattern, replacement, text) for name, text in texts.items()}
        other = replace(problem, **texts)
        if other != problem:
            solver_kind, solver_level = OTHER_SOLVERS.get((kind, level), (kind, level))
            assert word(other, solver_kind, solver_level, "vision_intensive", "") == words
            return SOLVERS[solver_kind](as_row(other, solver_level))
    for facts in _with_another_number(problem.facts):
        other = replace(problem, facts=facts)
        if word(other, kind, level, "vision_intensive", "") == words:
            try:
                found = SOLVERS[kind](as_row(other, level))
            except (KeyError, TypeError, IndexError):  # two lines that do not meet
                continue
            if not is_equal(found, answer):
                return found
    return OTHER_FIGURES[kind](as_row(problem, level), *numbers(words), answer)


def _with_another_number(facts):
    for match in reversed(list(re.finditer(r"\d+", facts))):
        for change in (1, -1, 3, -3):
            if int(match[0]) + change > 0:
                yield f"{facts[: match.start()]}{int(match[0]) + change}{facts[match.end() :]}"
