"""The words that each level of modality leaves of a problem; the figure, the same at all levels, bears everything."""

import random
import re
from collections.abc import Callable

from ...evaluation.modality import MODALITIES
from ..prompts import VISION_ONLY_PROMPTS
from .descriptions import describe
from .problems import Problem, listed


TEXT_DOMINANT, TEXT_LITE, VISION_INTENSIVE, VISION_DOMINANT, VISION_ONLY = MODALITIES

_PARALLELS = (
    (r"(Two parallel lines are cut by a third line|The rays AC and BD are parallel)\. ", ""),
    (r"P lies between the rays AC and BD, which point the same way\. ", ""),
    (r"; both open towards P|(?<=Find the other angle) at the parallel lines|(?<=Find x) at the parallel lines", ""),
    (r" (corresponding|alternate|co-interior) angles", " angles"),
)
_DASHED = (
    (r"the height (?:on AB|from C to AB) is (\d+) cm", r"the dashed line is \1 cm long"),
    (r"the height is (\d+) cm", r"the dashed line is \1 cm long"),
    (r"The height is (\d+) cm", r"The dashed line is \1 cm long"),
)

# Kind → pattern → replacement: what takes out of the words the property that the figure shows without a number. A kind
# has patterns for all its difficulties.
PROPERTIES: dict[str, tuple[tuple[str, str], ...]] = {
    "triangle_angles": ((" of (a|the) triangle", ""),),
    "straight_angles": (("On a straight line two", "Two"), (" on the line", "")),
    "rectangle_perimeter": (("rectangle", "figure"),),
    "segment_total": (
        (r"A segment has parts of (\d+) and (\d+) cm", r"Two segments are \1 and \2 cm long"),
        ("length of the whole segment", "distance of their outer ends"),
    ),
    "segment_part": (
        (r"A segment of (\d+) cm has a part of (\d+) cm", r"Two segments are \1 and \2 cm long"),
        ("other part of the segment", "length of the segment with the question mark"),
    ),
    "parallel_angles": _PARALLELS,
    "isosceles_angle": (
        # the stroke across AC stands on a part of it
        (
            r"In triangle ABC the sides AB and AC are equal\. (?=BD bisects)",
            "Two sides of triangle ABC are equal, as marked. ",
        ),
        (r"In triangle ABC the sides AB and AC are equal\. ", ""),
    ),
    "exterior_angle": (
        (r"In triangle ABC, BC is extended beyond C to D( and beyond B to E)?\. ", ""),
        (r"(E, )?B, C and D lie on a line\. ", ""),
    ),
    "polygon_angles": (
        (r"(Three|Four) angles of a \w+ are", "Some angles of a figure are"),
        (r"The other (two angles are|angle is) x degrees( each)?", "The rest are x degrees each"),
        (r"Find x in the \w+", "Find x"),
    ),
    "circle_angles": ((r"O is the centre of the circle through A, B and C, and inside triangle ABC\. ", ""),),
    "right_triangle": ((r"Triangle ABC has a right angle at C\. ", ""),),
    "similar_triangles": (
        ("The triangles ABC and DEF are similar, with their corners in this order", "The two triangles are similar"),
        (r"In triangle ABC the segment DE from AB to AC is parallel to BC\. ", ""),
    ),
    "triangle_area": (
        *_DASHED,
        (r"The angle at C is a right angle\. ", ""),
        (r"AC and BC are (\d+) cm long each and", r"AC is \1 cm long and"),
    ),
    "parallelogram_area": (
        *_DASHED,
        (r"The height on AB is (\d+) cm", r"One dashed line is \1 cm long"),
        ("height of parallelogram ABCD on AB", "length of the dashed line in parallelogram ABCD"),
        ("height of parallelogram ABCD on BC", "length of the other dashed line in parallelogram ABCD"),
    ),
    "trapezoid_area": (*_DASHED, (r"The other two sides are (\d+) cm long each", r"BC is \1 cm long")),
    "circle_area": (
        (r"The (?:radius|diameter) of the circle is (\d+) cm", r"The line in the circle is \1 cm long"),
        (
            r"A shaded sector of a circle has a radius of (\d+) cm and an angle of (\d+) degrees",
            r"The radius of a circle is \1 cm and the marked angle is \2 degrees",
        ),
        (
            r"Two circles with the same centre enclose a shaded ring\. A chord of the larger circle that touches the "
            r"smaller one is (\d+) cm long",
            r"The line in the figure is \1 cm long",
        ),
        ("shaded (sector|ring)", "shaded part"),
    ),
    "cuboid_volume": (("cuboid", "solid"), ("The diagonal of its front is", "A diagonal of it is")),
    "cuboid_surface": (("cuboid", "solid"), ("box", "container")),
    "prism": (
        ("is a right-angled triangle", "is a triangle"),
        ("the legs are", "two sides are"),
        (r"the hypotenuse is (\d+) cm and a leg is (\d+) cm long", r"two sides are \1 cm and \2 cm long"),
    ),
    "pyramid": ((r"(its height|the height of each side face) is", "a marked line from its tip is"),),
    "cylinder": (("cylinder|tube", "solid"),),
    "cone": (("cone", "solid"), (r"a slant height of (\d+) cm", r"a marked line of \1 cm")),
    "function_value": ((r"P lies on its graph at x = -?\d+\. ", ""),),
    "parabola_vertex": (("the vertex S of the parabola", "S"),),
    "parabola_zeros": ((r"The parabola meets the x-axis at P and Q, with P left of Q\. ", ""),),
    # without such a property, a condition that the answer needs is in the figure alone
    "line_slope": ((r"points (A\(.+?\)) and B\(.+?\)", r"point \1"),),
    "line_intersection": (
        (r"Two lines have the equations (.+?) and .+?\. ", r"One of two lines has the equation \1. "),
    ),
    "scatter_count": ((r"(A line has the equation|Two lines have the equations) .+?\. (?=The points)", ""),),
}


def _named(problem: Problem, pattern: str) -> str:
    """Returns the first name in a question."""
    return re.search(pattern, problem.question)[0]


def _omit(problem: Problem, item: str, left_out: str | None) -> str:
    """Returns the facts without those items of their list in which a text stands; `None`: without the last one."""
    found = list(re.finditer(item, problem.facts))
    kept = [match[0] for match in found if left_out not in match[0]] if left_out else [m[0] for m in found[:-1]]
    return f"{problem.facts[: found[0].start()]}{listed(kept)}{problem.facts[found[-1].end() :]}"


def _omit_bar(problem: Problem) -> str:
    name = _named(problem, r"\b[ABC]\b")
    return _omit(problem, r"[ABC] is \d+", f"{name} is")


def _omit_month(problem: Problem) -> str:
    """Leaves out the month that is asked for, the one after the largest rise, or the last one."""
    item = r"([A-Z][a-z]{2}) is (\d+)"
    if "of all values" in problem.question:
        return _omit(problem, item, None)
    if "rise" not in problem.question:
        return _omit(problem, item, _named(problem, r"(?<=of )[A-Z][a-z]{2}\b"))
    values = [(name, int(value)) for name, value in re.findall(item, problem.facts)]
    steps = zip(values, values[1:], strict=False)
    month = max(steps, key=lambda step: step[1][1] - step[0][1])[1][0]
    return _omit(problem, item, month)


def _omit_sector(problem: Problem) -> str:
    """Leaves out the total, where there is one: the other percentages would tell that of the sector."""
    if "stands for a total" in problem.facts:
        return re.sub(r"A pie chart stands for a total of \d+\. ", "", problem.facts)
    is_percentage = "percentage" in problem.question
    named = None if is_percentage else f"{_named(problem, '(?<=sector )[A-E]')} has"
    return _omit(problem, r"[A-E] has \d+ percent" if is_percentage else r"[A-E] has \d+", named)


def _omit_row(problem: Problem) -> str:
    """Leaves out the row that is asked for, or the last one, which every column needs."""
    row = re.search(r"(?<=row )[A-D]", problem.question)
    return re.sub(rf" Row {row[0] if row else 'D'}: .+?\.", "", problem.facts)


def _omit_corner(problem: Problem) -> str:
    return _omit(problem, r"\(\d+, \d+\)", None).replace("has the corners", "has among others the corners")


def _omit_shape(problem: Problem) -> str:
    asked = "circles" if "fraction" in problem.question else _named(problem, "circles|triangles|squares")
    facts = _omit(problem, r"\d+ dark and \d+ white \w+|\d+ \w+", asked)
    return facts.replace("shows", "shows among others")


# Kind → the facts without one of them
OMISSIONS: dict[str, Callable[[Problem], str]] = {
    "bar_difference": _omit_bar,
    "bar_total": _omit_bar,
    "line_chart": _omit_month,
    "pie_chart": _omit_sector,
    "table": _omit_row,
    "grid_area": _omit_corner,
    "shape_count": _omit_shape,
}


def word(problem: Problem, kind: str, level: int, modality: str, seed: str) -> str:
    """
    Returns the prompt of a problem at a level of modality.

    Args:
        problem ([`Problem`]):
            The problem.
        kind (`str`):
            Its kind.
        level (`int`):
            Its difficulty.
        modality (`str`):
            One of `MODALITIES`. `"text_dominant"`: the figure described, and all conditions. `"text_lite"`: all
            conditions. `"vision_intensive"`: without the property that the figure shows, such as a right angle, or, in
            charts and the like, without one of the conditions. `"vision_dominant"`: without all that has a number.
            `"vision_only"`: a prompt that says nothing of the problem.
        seed (`str`):
            Chooses the prompt of `"vision_only"`.
    """
    if modality == VISION_ONLY:
        return random.Random(f"{seed}/prompt").choice(VISION_ONLY_PROMPTS)
    if modality == VISION_DOMINANT:
        return problem.question
    text = f"{problem.facts} {problem.question}"
    if modality == TEXT_DOMINANT:
        return f"{describe(kind, level)} {text}"
    if modality == VISION_INTENSIVE and kind in OMISSIONS:
        return f"{OMISSIONS[kind](problem)} {problem.question}"
    if modality == VISION_INTENSIVE:
        for pattern, replacement in PROPERTIES[kind]:
            text = re.sub(pattern, replacement, text)
    return text
