"""Choices in every writing, answers that are positions, broken escapes, and programs: read, or refused by name."""

import pytest

from puma_trl.errors import DataError
from puma_trl.pairs.build.choices import answer_letter, read_choices
from puma_trl.pairs.build.escapes import refuse_escapes
from puma_trl.pairs.build.latex import find_code


@pytest.mark.parametrize(
    "value",
    [
        ["12", 7],
        [["12"], ["7"]],
        [["A", "12"], ["B", "7"]],
        {"A": "12", "B": 7, "C": None},
        {"label": ["A", "B"], "text": ["12", "7"]},
        [{"label": "A", "text": "12"}, {"label": "B", "text": "7"}],
        "A. 12; B. 7",
        "A:12 B:7",
        "(A) 12\n(B) 7",
        '["12", "7"]',
        "['12', '7']",
        '{"A": "12", "B": "7"}',
    ],
)
def test_choices_in_every_writing(value):
    assert [choice.line for choice in read_choices(value, "choices")] == ["A. 12", "B. 7"]


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        (["(A) 12", "(B) 7"], ["(A) 12", "(B) 7"]),
        (["A. 12", "A. 7"], ["A. A. 12", "B. A. 7"]),
        (["A", "B", "C"], []),  # they stand in the picture
        (None, []),
        ([], []),
        ("", []),
    ],
)
def test_choices_with_letters_of_their_own(value, lines):
    assert [choice.line for choice in read_choices(value, "choices")] == lines


@pytest.mark.parametrize("value", [5, "twelve or seven", [None, "7"], [True], ["1"] * 27])
def test_what_is_no_choices_is_named(value):
    with pytest.raises(DataError, match="`choices` (is|has)"):
        read_choices(value, "choices")


@pytest.mark.parametrize(
    ("answer", "choices", "expected"),
    [
        ("1", ["red", "blue"], "B"),
        ("0", ["red", "blue"], "A"),
        ("7", ["12", "7"], "7"),
        ("B", ["12", "7"], "B"),
        ("1", ["1", "2"], "1"),
        ("It is 7.", ["12", "7"], "It is 7."),
        ("42", ["red", "blue"], "42"),
        ("3", [], "3"),
    ],
)
def test_answers_that_are_positions_become_letters(answer, choices, expected):
    assert answer_letter(answer, read_choices(choices, "choices")) == expected


def test_positions_that_count_from_1_are_refused():
    with pytest.raises(DataError, match="the answer is 2, and there are 2 choices, counted from 0"):
        answer_letter("2", read_choices(["red", "blue"], "choices"))


@pytest.mark.parametrize(
    ("text", "command", "words"),
    [
        ("$z\\cdot\x08ar{z}$", "\\bar", "a backspace"),
        ("$\x0crac{1}{2}$", "\\frac", "a form feed"),
        ("$3\times 4$", "\\times", "a tab"),
        ("$\x07lpha$", "\\alpha", "a bell"),
        ("$\x0bec{a}$", "\\vec", "a vertical tab"),
        ("$\\left(x\right)$", "\\right", "a carriage return"),
        ("Let $x\neq 3$.", "\\neq", "a line break"),
    ],
)
def test_broken_escapes_say_how_they_came_about(text, command, words):
    with pytest.raises(DataError) as refused:
        refuse_escapes(text, "question")
    assert words in str(refused.value) and f"`\\{command}`, in the file" in str(refused.value)


@pytest.mark.parametrize("text", ["a\tb", "a\r\nb", "Find x\nand y.", "$a\nb$", "A\tthe end"])
def test_white_space_that_is_meant_stays(text):
    refuse_escapes(text, "question")


def test_other_control_characters_are_refused():
    with pytest.raises(DataError, match=r"control character: the answer has U\+0001"):
        refuse_escapes("a\x01", "answer")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("[asy] draw(x); [/asy] Find x.", "a program of Asymptote"),
        ("\\begin{asy} draw(x); \\end{asy}", "a program of Asymptote"),
        ("\\begin{tikzpicture}\\draw (0,0);\\end{tikzpicture}", "a program of TikZ"),
        ("<table><tr><td>1</td></tr></table> How many?", "HTML"),
        ("```python\nprint(1)\n``` prints?", "a block of code"),
        ("What does this print?\ndef f(x):\n    return x", "a block of code"),
        ("Is a<b and b>c?", None),
        ("Find $x < 3$ & y.", None),
    ],
)
def test_programs_are_found(text, name):
    assert find_code(text) == name
