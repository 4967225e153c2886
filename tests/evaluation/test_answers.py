"""The `final` rule and the original project's MathVerse rule."""

import random

import pytest

from puma_trl.evaluation.answers import _last_boxed, _without_markup, final_answer, puma_mathverse


@pytest.mark.parametrize(
    ("reply", "kind", "answer"),
    [
        # the last boxed expression comes before everything else
        (r"The answer is 3. \boxed{4}", "text", "4"),
        (r"\boxed{1} then \boxed{\frac{1}{2}}", "text", r"\frac{1}{2}"),
        (r"\boxed{\text{B}}", "choice", "B"),
        (r"so \boxed{x = 12\,cm} holds", "number", "12"),
        (r"\boxed{1} and \boxed{2 unbalanced", "text", "1"),
        # then the text after the last answer phrase, on that line
        ("The answer is 5.\nWait, the answer is 6.\nDone", "number", "6"),
        ("<Thought process>: <<A is B>> <Answer>: <<C>>", "choice", "C"),
        ("**Answer:** (D) 45 degrees", "choice", "D"),
        ("Final answer: 3 + 4 = 7 cm^2", "number", "7"),
        ("Answer: 1,250.5 m", "number", "1250.5"),
        ("the correct option is\nB", "choice", "B"),
        ("The answer is [1, 2.5].", "list", "[1, 2.5]"),
        ("Answer: y = 2x + 1.", "text", "y = 2x + 1"),
        ("The answer is `hong kong`", "choice", "hong kong"),
        ("Answer: \u221212", "number", "-12"),
        ("Answer: 7\nAnswer:", "number", "7"),
        # then the last option letter or number
        ("I compare A with C and take (C)", "choice", "C"),
        ("It must be 45 then", "choice", "45"),
        ("12 - 5 leaves 7 apples", "number", "7"),
        ("between -3 and -4.5", "number", "-4.5"),
        ("from 5-3", "number", "3"),
        ("B has 3", "text", "3"),
        ("3 of B", "text", "B"),
        ("years [2007] and [2008, 2009]", "list", "[2008, 2009]"),
        # nothing
        ("", "text", None),
        ("no idea at all", "choice", None),
        ("The answer is unknown", "number", None),
    ],
)
def test_final_answer(reply, kind, answer):
    assert final_answer(reply, kind) == answer


@pytest.mark.parametrize(
    ("reply", "extraction"),
    [
        ("Therefore, it is 5. Answer: B ", "B"),
        ("Answer: B, so, C", "C"),
        ("It is true. Also, 12", "12"),  # "Also," is no marker: its S is small, but "so," is inside
        ("the torso, 3", "3"),
        ("**Answer:** B", "** B"),
        ("Answer: 40.", "40."),
        ("so 5", "so 5"),  # the comma is required
        ("ANSWER: 5", "ANSWER: 5"),
        ("Answer: 1 \u2020 2 \u2020 3 ", " 3 "),  # after the last dagger, untrimmed
        ("\u2020answer: 4", "answer: 4"),
        ("Answer: 5[UNUSED_TOKEN_145]\n", "5"),
        ("  7 ", "7"),
        ("", ""),
        ("Thus, ", ""),
    ],
)
def test_puma_mathverse(reply, extraction):
    assert puma_mathverse(reply) == extraction


def search_last_boxed(reply):
    """Tries each `\\boxed{` from the last on, and counts braces from there: plain, and quadratic."""
    start = reply.rfind("\\boxed{")
    while start != -1:
        depth = 0
        for position in range(start + len("\\boxed"), len(reply)):
            depth += {"{": 1, "}": -1}.get(reply[position], 0)
            if depth == 0:
                return _without_markup(reply[start + len("\\boxed{") : position])
        start = reply.rfind("\\boxed{", 0, start)
    return None


def test_last_boxed_of_random_replies():
    rng = random.Random(0)
    found = set()
    for _ in range(20_000):
        reply = "".join(rng.choices(["\\boxed{", "{", "}", "\\", "a", "1"], k=rng.randint(0, 12)))
        assert _last_boxed(reply) == search_last_boxed(reply), reply
        found.add(_last_boxed(reply))
    assert len(found) > 100


def test_long_replies_of_boxes_are_read_once():
    """Counting braces anew from each box that does not end would take 10^11 steps here."""
    assert final_answer("\\boxed{7}" + "\\boxed{x " * 500_000, "number") == "7"
