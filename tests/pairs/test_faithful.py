"""What is drawn is the question: every sign of it, in its order, none twice, and none of the source."""

import random

import pytest

from puma_trl.pairs.build import compose, fonts

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
        pieces, failures = compose.list_pieces(question, compose.draw_style(rng), BOOK)
        assert failures == (), question
        assert plain("".join(piece.text for piece in pieces)) == plain(signs), question
        spots = [(piece.x, piece.y) for piece in pieces if piece.path]
        assert len(set(spots)) == len(spots), question  # nothing lies over another
        drawn_alone += len(spots)
    assert drawn_alone > 5 * COUNT


@pytest.mark.parametrize("style", STYLES)
def test_no_source_is_drawn(style):
    """A backslash, a brace or a dollar only where the signs of the question have it."""
    for seed in range(COUNT // 4):
        rng = random.Random(f"source/{style}/{seed}")
        question, signs = STYLES[style](rng)
        text = "".join(piece.text for piece in compose.list_pieces(question, compose.draw_style(rng), BOOK)[0])
        for sign in "\\{}$^_&":
            assert text.count(sign) == signs.count(sign), question
