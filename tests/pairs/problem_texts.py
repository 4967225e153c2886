"""Problems in the style of public files, each with the signs that its picture must show, in the order of reading."""

import random
from collections.abc import Callable


NAMES = ["Ann", "Bob", "Carla", "小明", "小红"]
LETTERS = "ABCDEFGHKMNPQR"


def number(rng: random.Random) -> tuple[str, str]:
    value = rng.choice([str(rng.randrange(2, 99)), f"{rng.randrange(2, 40)}.5", str(rng.randrange(2, 9))])
    return value, value


def variable(rng: random.Random) -> tuple[str, str]:
    letter = rng.choice("abxyn")
    return letter, letter


def formula(rng: random.Random, depth: int = 2) -> tuple[str, str]:
    """Returns LaTeX, and its signs."""
    if depth == 0 or rng.random() < 0.2:
        return rng.choice((number, variable))(rng)
    (a, signs_a), (b, signs_b) = formula(rng, depth - 1), formula(rng, depth - 1)
    word = rng.choice(["km", "甲", "总数"])
    choices: list[tuple[str, str]] = [
        (f"\\frac{{{a}}}{{{b}}}", signs_a + signs_b),
        (f"\\sqrt{{{a}}}", "√" + signs_a),
        (f"{a}+{b}", f"{signs_a}+{signs_b}"),
        (f"{a} - {b}", f"{signs_a}−{signs_b}"),
        (f"{a} \\times {b}", f"{signs_a}×{signs_b}"),
        (f"x^{{{a}}}", "x" + signs_a),
        (f"a_{{{a}}}", "a" + signs_a),
        (f"\\left({a}\\right)^2", f"({signs_a})2"),
        (f"\\left|{a}\\right| \\le {b}", f"|{signs_a}|≤{signs_b}"),
        (f"\\dfrac{{{a}}}{{\\text{{{word}}}}}", signs_a + word),
    ]
    return rng.choice(choices)


def angle(rng: random.Random) -> tuple[str, str]:
    name, degrees = "".join(rng.sample(LETTERS, 3)), rng.randrange(10, 170)
    kinds = [
        (f"\\angle {name} = {degrees}^{{\\circ}}", f"∠{name}={degrees}°"),
        (f"∠{name}={degrees}°", f"∠{name}={degrees}°"),
        (f"$\\angle {name}={degrees}^\\circ$", f"∠{name}={degrees}°"),
    ]
    return rng.choice(kinds)


def geoqa(rng: random.Random) -> tuple[str, str]:
    text, signs = angle(rng)
    a, b = rng.randrange(2, 30), rng.randrange(2, 9)
    options = [
        (f"\\frac{{{a}}}{{{b}}}", f"{a}{b}"),
        (f"{a}√{{{b}}}", f"{a}√{b}"),
        (f"{a}πcm^{{2}}", f"{a}πcm2"),
        (f"{a}°", f"{a}°"),
        (f"{a}-\\sqrt{{{b}}}", f"{a}−√{b}"),
        (f"{b}^{{{a}}}cm", f"{b}{a}cm"),
    ]
    rng.shuffle(options)
    lines = [f"{letter}:{option}" for letter, (option, _) in zip("ABCD", options, strict=False)]
    told = [f"{letter}:{option}" for letter, (_, option) in zip("ABCD", options, strict=False)]
    question = f"As shown in the figure, AB is parallel to CD, if {text}, then the degree of angle 2 is ()\nChoices:\n"
    shown = f"As shown in the figure, AB is parallel to CD, if {signs}, then the degree of angle 2 is ()Choices:"
    return question + "\n".join(lines), shown + "".join(told)


def chinese(rng: random.Random) -> tuple[str, str]:
    (a, signs_a), (b, signs_b) = formula(rng), formula(rng, 1)
    kinds = [
        (f"已知${a}={b}$，则$x$的值为($\\qquad$)\\\\", f"已知{signs_a}={signs_b}，则x的值为()"),
        (
            f"用$${a}$$、$${b}$$组成数，其中$\\text{{若}}x>{b}$，求$S_{{甲}}$。",
            f"用{signs_a}、{signs_b}组成数，其中若x>{signs_b}，求S甲。",
        ),
        (
            f"解方程组$\\begin{{cases}}{a}=1,\\\\{b}=2\\end{{cases}}$，得\\underline{{\\qquad}}．",
            f"解方程组{{{signs_a}=1,{signs_b}=2，得．",
        ),
        (f"小明有{rng.randrange(9)}个苹果，吃了2个，还剩多少个？", None),
    ]
    text, signs = rng.choice(kinds)
    return text, text if signs is None else signs


def prices(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randrange(1, 99), rng.randrange(1, 99)
    name = rng.choice(NAMES[:3])
    kinds = [
        f"{name} pays ${a} for pens and ${b}.50 for a book. How much is it in all ($)?",
        f"A ticket costs US${a}. {name} buys {b} tickets. What does {name} pay in US$?",
        f"From $ {a} to $ {b}, by how much does the price rise?",
        f"一支笔${a}，一本书${b}，共多少？",
    ]
    text = rng.choice(kinds)
    if rng.random() < 0.5:
        latex, signs = formula(rng, 1)
        return f"{text} Let ${latex}$ be it.", f"{text} Let {signs} be it."
    return text, text


def tables(rng: random.Random) -> tuple[str, str]:
    rows = [[rng.choice((formula, number, variable))(rng) for _ in range(3)] for _ in range(rng.randrange(1, 4))]
    signs = "".join(part for row in rows for _, part in row)
    cells = [" & ".join(text for text, _ in row) for row in rows]
    in_text = [" & ".join(f"${text}$" for text, _ in row) for row in rows]
    kinds = [
        (
            "See\n\\begin{tabular}{|c|c|c|}\\hline\n"
            + " \\\\ \\hline\n".join(in_text)
            + " \\\\ \\hline\\end{tabular}\nnow",
            f"See{signs}now",
        ),
        ("So $A=\\begin{pmatrix}" + "\\\\".join(cells) + "\\end{pmatrix}$ is", f"SoA=({signs})is"),
        ("So $\\begin{bmatrix}" + "\\\\".join(cells) + "\\end{bmatrix}^{T}$", f"So[{signs}]T"),
        ("\\begin{align*}" + "\\\\".join(cells) + "\\end{align*}", signs),
        ("\\left\\{\\begin{array}{lcr}" + "\\\\".join(cells) + "\\end{array}\\right. holds", f"{{{signs}holds"),
    ]
    plain = [[number(rng)[0] for _ in range(3)] for _ in range(3)]
    bars = "\n".join(" | ".join(row) for row in plain)
    ruled = "| Day | Sales (\\$) | $x^2$ |\n|---|:-:|--:|\n" + "\n".join(f"| {' | '.join(row)} |" for row in plain)
    told = "".join("".join(row) for row in plain)
    kinds += [(f"See\nDay | Pens | Cost\n{bars}\nnow", f"SeeDayPensCost{told}now")]
    kinds += [(f"See\n\n{ruled}\n\nnow", f"SeeDaySales($)x2{told}now")]
    return rng.choice(kinds)


def english(rng: random.Random) -> tuple[str, str]:
    (a, signs_a), (b, signs_b) = formula(rng), formula(rng)
    opening, closing = rng.choice((("$", "$"), ("\\(", "\\)"), ("$ ", " $"), ("$$", "$$"), ("\\[", "\\]")))
    name = rng.choice(NAMES[:3])
    text = f"Let {opening}{a} = {b}{closing}. \\textbf{{{name}}} has 50\\% of {{1, 2, 3}}. "
    text += f"Find {opening}x^{{2}}{closing}."
    return text, f"Let {signs_a}={signs_b}. {name} has 50% of {{1, 2, 3}}. Find x2."


STYLES: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "GeoQA": geoqa,
    "Chinese": chinese,
    "prices": prices,
    "tables": tables,
    "MATH": english,
}
