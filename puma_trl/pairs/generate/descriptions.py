"""What anyone sees in the figures of a kind: the words that `text_dominant` has and the other levels leave out."""

_BARS = "The figure shows a bar chart with three bars named A, B and C, each with its value above it."
_ANGLES = "The figure shows two lines with arrows, a third line that crosses both, and an angle at each crossing."
_GRAPH = "The figure shows a grid with both axes and the curve of a function with its equation above it."
_LINES = "The figure shows a grid with both axes and two lines, each with its equation beside it."
_CUBOID = "The figure shows a cuboid in oblique projection with lengths at its edges."

# Kind → the words, or difficulty → the words where the figures differ. None has a number, and none says what only the
# conditions say.
DESCRIPTIONS: dict[str, str | dict[int, str]] = {
    "triangle_angles": "The figure shows a triangle. Two of its corners have the sizes of their angles, and the third "
    "has a question mark.",
    "straight_angles": "The figure shows a straight line and two rays that start at one of its points. Two of the "
    "angles between them have their sizes, and the last one has a question mark.",
    "rectangle_perimeter": "The figure shows a rectangle with its width below it and its height beside it.",
    "segment_total": "The figure shows a segment that a short stroke divides into two parts, each with its length.",
    "segment_part": "The figure shows a segment with its length below it. A short stroke divides it into two parts, "
    "one with its length and one with a question mark.",
    "bar_difference": _BARS,
    "bar_total": _BARS,
    "parallel_angles": {
        1: _ANGLES,
        2: "The figure shows the points A and B with a ray each, and the point P with lines to A and to B.",
        3: _ANGLES,
    },
    "isosceles_angle": {
        1: "The figure shows triangle ABC with a short stroke across two of its sides and two marked angles.",
        2: "The figure shows triangle ABC with a short stroke across two of its sides, a line from C to D, and two "
        "marked angles.",
        3: "The figure shows triangle ABC with a short stroke across two of its sides, a line from B to D, and two "
        "marked angles.",
    },
    "exterior_angle": {
        1: "The figure shows triangle ABC, a line from C to D, and three marked angles.",
        2: "The figure shows triangle ABC, a line from C to D, and three marked angles.",
        3: "The figure shows triangle ABC, lines from C to D and from B to E, and three marked angles.",
    },
    "polygon_angles": {
        1: "The figure shows a quadrilateral with a marked angle at each corner.",
        2: "The figure shows a pentagon with a marked angle at each corner.",
        3: "The figure shows a hexagon with a marked angle at each corner.",
    },
    "circle_angles": "The figure shows a circle with the points A, B and C on it, the point O inside of it, lines "
    "between these points, and marked angles.",
    "right_triangle": "The figure shows triangle ABC with a small square at C, the lengths of two sides, and a "
    "question mark at the third.",
    "similar_triangles": {
        1: "The figure shows triangle ABC and beside it the larger triangle DEF, with a question mark at EF.",
        2: "The figure shows triangle ABC and beside it the larger triangle DEF, with a question mark at EF.",
        3: "The figure shows triangle ABC and inside of it a line from D to E with a question mark.",
    },
    "triangle_area": {
        1: "The figure shows triangle ABC with a dashed line from C to AB and a small square at its foot.",
        2: "The figure shows triangle ABC with a small square at C and the lengths of two sides.",
        3: "The figure shows triangle ABC with a short stroke across two of its sides and the lengths of all three.",
    },
    "parallelogram_area": {
        1: "The figure shows a parallelogram with a dashed line from D and a small square at its foot.",
        2: "The figure shows a parallelogram with its area inside, a dashed line from D and a small square at its "
        "foot.",
        3: "The figure shows a parallelogram with two dashed lines from D and a small square at the foot of each.",
    },
    "trapezoid_area": {
        1: "The figure shows a trapezoid with a dashed line from D and a small square at its foot.",
        2: "The figure shows a trapezoid with its area inside, a dashed line from D, a small square at its foot, and "
        "a question mark at CD.",
        3: "The figure shows a trapezoid with the lengths of all four sides.",
    },
    "circle_area": {
        1: "The figure shows a circle, its centre as a dot, and a line through or from the centre with its length.",
        2: "The figure shows a circle with a shaded part between two lines from its centre.",
        3: "The figure shows two circles, the part between them shaded, their centre as a dot, and a line with its "
        "length.",
    },
    "cuboid_volume": {
        1: _CUBOID,
        2: "The figure shows a cuboid in oblique projection with lengths at two edges and its volume above it.",
        3: "The figure shows a cuboid in oblique projection with lengths at two edges and on a line across its front.",
    },
    "cuboid_surface": {
        1: _CUBOID,
        2: _CUBOID.replace("cuboid", "box"),
        3: "The figure shows a cuboid in oblique projection with lengths at two edges and its surface above it.",
    },
    "prism": "The figure shows a lying prism with a triangle in front, a small square at one corner of it, and three "
    "lengths.",
    "pyramid": "The figure shows a pyramid with a dashed line from its tip, a small square at the foot of that line, "
    "and two lengths.",
    "cylinder": {
        1: "The figure shows a standing cylinder with lengths above and beside it.",
        2: "The figure shows a standing cylinder with lengths above and beside it.",
        3: "The figure shows a standing tube with lengths above and beside it.",
    },
    "cone": "The figure shows a standing cone with two lengths.",
    "line_slope": "The figure shows a grid with both axes, a straight line, and two points on it named A and B.",
    "line_intersection": _LINES,
    "function_value": f"{_GRAPH} A dashed line leads from the point P on it to the x-axis.",
    "parabola_vertex": f"{_GRAPH} A point on it is named S.",
    "parabola_zeros": f"{_GRAPH} Two points on it are named P and Q.",
    "line_chart": "The figure shows a line chart with six months below and a scale at the left.",
    "pie_chart": {
        1: "The figure shows a pie chart with three sectors of different colours. One has a question mark in place of "
        "its percentage.",
        2: "The figure shows a pie chart with four sectors of different colours, and the total above it.",
        3: "The figure shows a pie chart with five sectors of different colours.",
    },
    "table": "The figure shows a table with the names of its columns above and those of its rows at the left.",
    "scatter_count": {
        1: "The figure shows a grid with both axes, a line across it, and dots.",
        2: "The figure shows a grid with both axes, a line across it, and dots.",
        3: "The figure shows a grid with both axes, two lines across it, and dots.",
    },
    "grid_area": "The figure shows a grid with both axes and a polygon with a dot at each corner.",
    "shape_count": "The figure shows circles, triangles and squares in two colours, scattered over the picture.",
}


def describe(kind: str, level: int) -> str:
    """Returns the description of a kind's figures at a difficulty."""
    words = DESCRIPTIONS[kind]
    return words if isinstance(words, str) else words[level]
