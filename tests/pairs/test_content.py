"""What problems and pictures are compared by: normal form, word grams, short answers, perceptual hash."""

import numpy as np
import pytest

from puma_trl.data.images import open_image
from puma_trl.pairs.check.content import bits_apart, gram_digests, perceptual_hash, short_answer, split_words
from puma_trl.pairs.generate.files import write_pairs
from puma_trl.pairs.generate.pairs import generate_pairs


@pytest.mark.parametrize(
    "one, other",
    [
        ("Find  the AREA.", "find the area"),
        ("Find $x^{2}$ !", "Find \\(x²\\)"),
        ("1,200 cm", "1200 cm"),
        ("\\angle ABC = 40^\\circ", "∠ABC=40°"),
        ("<image>\n**Question:** find x", "question find x"),
        ("ｆｕｌｌ－width", "full width"),
        ("5 − 3", "5 - 3"),
    ],
)
def test_normal_form(one, other):
    assert split_words(one) == split_words(other) != []


@pytest.mark.parametrize(
    "one, other", [("5 - 3", "5 + 3"), ("x = 1.5", "x = 15"), ("A < B", "A > B"), ("求周长", "求面积")]
)
def test_normal_form_keeps_meaning(one, other):
    assert split_words(one) != split_words(other)


def test_grams_and_answers():
    words = [str(number) for number in range(10)]
    assert len(gram_digests(words)) == 3 and len(gram_digests(words[:7])) == 0
    assert set(gram_digests(words[:9])) < set(gram_digests(words))
    assert set(gram_digests(words)).isdisjoint(gram_digests(words[::-1]))
    assert short_answer("2 + 3 = 5.\n#### 5") == "5" and short_answer("isosceles triangle") == "isosceles triangle"
    assert short_answer("so \\boxed{\\frac{1}{2}}.") == "\\frac{1}{2}"


def test_perceptual_hash(tmp_path):
    write_pairs(generate_pairs(40, seed=0), tmp_path / "pairs.jsonl", "images")
    pictures = [open_image(str(path)) for path in sorted((tmp_path / "images").rglob("*.png"))]
    assert len(pictures) == 40
    hashes = np.array([perceptual_hash(picture) for picture in pictures])
    for picture, look in zip(pictures, hashes, strict=True):
        assert np.sort(bits_apart(hashes, look))[1] > 10
        assert bits_apart(hashes[:1], hashes[0])[0] == 0
        larger = picture.resize((picture.width * 3 // 2, picture.height * 3 // 2))
        assert bits_apart(look[None], perceptual_hash(larger))[0] <= 10
