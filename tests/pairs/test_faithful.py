"""What is drawn is the question: every sign of it, in its order, none twice, and none of the source."""

import random

import pytest

from puma_trl.errors import DataError
from puma_trl.pairs.build import compose, fonts

from .pieces import list_pieces
from .problem_texts import STYLES


BOOK = fonts.FontBook()
COUNT = 1000  # of each style


def plain(text):
    return "".join(text.split()).replace("-", "−")


@pytest.mark.parametrize("style", STYLES)
def test_every_sign_is_drawn_once(style):
    drawn_alone = 0
    for seed in range(COUNT):
        rng = random.Random(f"{style}/{seed}")
        question, signs = STYLES[style](rng)
        pieces, failures = list_pieces(question, compose.draw_style(rng), BOOK)
        assert failures == (), question
        assert plain("".join(piece.text for piece in pieces)) == plain(signs), question
        spots = [(piece.x, piece.y) for piece in pieces if piece.path]
        assert len(set(spots)) == len(spots), question  # nothing lies over another
        drawn_alone += len(spots)
    assert drawn_alone > 5 * COUNT


# Pieces of LaTeX, of prices, of HTML and of Markdown, with and without what closes them
SCRAPS = (
    "{ } $ ^ _ & \\\\ a 12 ( ) [ ] | , . = + - ~ ' < > √ 若 ？ \\frac \\sqrt \\sqrt[3] \\left( \\right) "
    "\\left\\{ \\right. \\begin{cases} \\end{cases} \\begin{array}{c|c} \\end{array} "
    "\\begin{tabular}{|c|} \\end{tabular} \\hline \\cline{1-9} \\multicolumn{2}{c} \\multirow{2}{*} "
    "\\text \\textbf \\mathbb \\overline \\overarc \\not \\overset \\over \\quad \\hskip \\hspace{1cm} "
    "\\rule{1cm}{1pt} \\alpha \\sum \\lim \\limits \\nosuch \\$ \\( \\) \\[ \\] $$ ** <br> <sub> </sub> "
    "&lt;"
).split()


def test_scraps_of_source_are_drawn_or_named():
    """Whatever comes: a backslash is in the picture only if it is told."""
    for seed in range(COUNT):
        rng = random.Random(seed)
        question = "".join(rng.choices([*SCRAPS, " "], k=rng.randint(1, 25)))
        try:
            pieces, failures = list_pieces(question, compose.draw_style(rng), BOOK)
        except DataError:
            continue
        assert failures or "\\" not in "".join(piece.text for piece in pieces), question


# Pieces of running text, and what is drawn of them
RUNNING = {
    "1\\,000": "1000",
    "\\textbf{(A)}\\ 3": "(A)3",
    "x^2": "x2",
    "a_1": "a1",
    "(2+3)": "(2+3)",
    "$5": "$5",
    "\\$7.50": "$7.50",
    "\\(y\\)": "y",
    "\\angle A=____°": "∠A=____°",
    "\\frac{1}{2}": "12",
    "90^\\circ": "90°",
    "&lt;": "<",
    "<b>w</b>": "w",
    "20\\%": "20%",
    "|x|": "|x|",
    "A'B'": "A'B'",
    "甲": "甲",
    "____": "____",
    "R\\&D": "R&D",
    "don't": "don't",
}
BLANKS = (" ", "\\,", "\\ ", "\\quad ", "\n", "&nbsp;", " ~ ", "\\\\ ", "\\!")


def test_pieces_of_running_text_are_drawn_whatever_blank_is_between():
    for seed in range(COUNT):
        rng = random.Random(f"running/{seed}")
        pieces = rng.choices(list(RUNNING), k=rng.randint(2, 6))
        blanks = rng.choices(BLANKS, k=len(pieces))
        question = "".join(piece + blank for piece, blank in zip(pieces, blanks, strict=True))
        drawn, failures = list_pieces(question, compose.draw_style(rng), BOOK)
        assert failures == (), question
        text = plain("".join(piece.text for piece in drawn)).replace("~", "").replace("′", "'")
        assert text == plain("".join(RUNNING[piece] for piece in pieces)), question
