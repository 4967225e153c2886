"""The `final` rule: its order of evidence, replies labelled by hand, and long replies."""

import json
import math
import random
from pathlib import Path

import pytest

from puma_trl.evaluation.answers import final_answer, parse_options, puma_mathverse
from puma_trl.evaluation.answers.quantities import evaluate, find_quantities, plain_math
from puma_trl.evaluation.answers.statements import last_boxed, strip_thoughts


REPLIES = [json.loads(line) for line in Path(__file__).with_name("replies.jsonl").read_text("utf-8").splitlines()]
ANGLES = ["60°", "65°", "70°", "75°"]
SAMPLES = ["neither; their temperatures are the same", "sample B", "both", "sample A"]


def same(answer, label, kind):
    """Returns whether an answer is the labelled one: numbers by their value, texts without regard to spaces."""
    if answer is None or label is None:
        return answer is label
    if kind == "number":
        return math.isclose(float(answer), float(label), rel_tol=1e-4)
    return "".join(answer.split()) == "".join(label.split())


@pytest.mark.parametrize("row", REPLIES, ids=range(len(REPLIES)))
def test_replies_labelled_by_hand(row):
    answer = final_answer(row["reply"], row["kind"], row["options"] or ())
    assert same(answer, row["answer"], row["kind"]), (row, answer)


def test_there_are_enough_labelled_replies():
    assert (
        len(REPLIES) >= 150 and sum("一" <= character <= "鿿" for row in REPLIES for character in row["reply"]) > 100
    )


@pytest.mark.parametrize(
    ("reply", "kind", "options", "answer"),
    [
        ("(D) sample A", "choice", SAMPLES, "D"),
        ("the correct answer is ∠C = 70°", "choice", ANGLES, "C"),
        ("the correct answer is ∠C = 70°", "choice", [], "70°"),
        ("A rectangle has four sides", "choice", ANGLES, None),
        ("A rectangle has four sides", "choice", [], None),
        ("11:50 A.M.", "choice", ["half", "quarter past"], None),
        ("<answer>\nNo, it is not.\n\nB\n</answer>", "choice", [], "B"),
        ("<answer>In 2019 it was 15,017.</answer>", "number", [], "15017"),
        ("<answer>\n1. 3 yards\nso the perimeter is 6 yards.</answer>", "number", [], "6"),
        ("12 cm^2", "number", [], "12"),
        ("12 m2", "number", [], "12"),
        (r"\boxed{\frac{3}{4}}", "number", [], "0.75"),
        (r"2\sqrt{3}", "number", [], "3.464101615"),
        ("答案是C。", "choice", [], "C"),
        ("所以选项B是正确答案。", "choice", [], "B"),
        ("故选D", "choice", [], "D"),
        ("The function is odd.", "choice", ["odd", "even"], "A"),
        ("answer is d.", "choice", [], "D"),
    ],
)
def test_published_mistakes(reply, kind, options, answer):
    assert final_answer(reply, kind, options) == answer


@pytest.mark.parametrize(
    ("reply", "kind", "answer"),
    [
        # boxed before everything else
        (r"The answer is 3. \boxed{4}", "text", "4"),
        (r"\boxed{1} then \boxed{\frac{1}{2}}", "text", r"\frac{1}{2}"),
        (r"\boxed{1} and \boxed{2 unbalanced", "text", "1"),
        (r"\boxed{7} or \boxed{}", "text", "7"),
        (r"\boxed{5} <answer>6</answer>", "number", "5"),
        # blocks before phrases, and each block as a whole
        ("<answer>6</answer> The answer is 7.", "number", "6"),
        ("The answer is 7.\n\n### Final answer\nThe sum is 6", "number", "6"),
        ("<answer>1</answer> wait <answer>2</answer>", "number", "2"),
        ("<answer>3 cm", "number", "3"),
        # phrases, the last one first, before what is in bold
        ("The answer is 5.\nWait, the answer is 6.\nDone with 9", "number", "6"),
        ("The answer is **5**. I used **12** cubes.", "number", "5"),
        ("Final answer: 3 + 4 = 7 cm^2", "number", "7"),
        ("Answer: 1,250.5 m", "number", "1250.5"),
        ("Answer: 7\nAnswer:", "number", "7"),
        ("The answer is [1, 2.5].", "list", "[1, 2.5]"),
        ("The answer is `hong kong`", "choice", "hong kong"),
        # of what a model goes on to ask itself nothing counts
        ("The answer is 7.\n\nQuestion: What is 2 + 2?\n\nThe answer is 4.", "number", "7"),
        ("Question: What is 2 + 2?\nThe answer is 4.", "number", "4"),
        # in bold before the rest
        ("There are **3 objects** left of the 8.", "number", "3"),
        ("**Step 1: Sum**\n5 + 4\n\n**Step 2: Result**\nIt is 9.", "number", "9"),
        ("**Given:** a circle.\n**Solution**\nIt is 9 cm.", "text", "9 cm"),
        ("The **isosceles** triangle needs (C).", "choice", "C"),
        # then letters, then quantities
        ("I compare A with C and take (C)", "choice", "C"),
        ("It must be 45 then", "choice", "45"),
        ("12 - 5 leaves 7 apples", "number", "7"),
        ("between -3 and -4.5", "number", "-4.5"),
        ("from 5-3", "number", "3"),
        ("years [2007] and [2008, 2009]", "list", "[2008, 2009]"),
        # relations, pairs and ratios as they are
        ("So the function is f(x) = x^2 - 4.", "text", "f(x) = x^2 - 4"),
        ("This means x > 3.", "text", "x > 3"),
        ("Hence x = 3.", "text", "3"),
        ("The ratio is 3:4", "text", "3:4"),
        ("The domain is (-∞, 3].", "text", "(-∞, 3]"),
        ("It can't be A or B, so C", "choice", "C"),
        # all parts of a quantity
        ("It takes 1 h 30 min.", "text", "1 h 30 min"),
        ("So the angle is 30°15′.", "text", "30°15′"),
        ("It is '60'", "text", "60"),
        ("1.2e3", "number", "1.2e3"),
        # bounds, wholes and years are no answers where there is another quantity
        ("There were 7 players who scored more than 2 runs.", "number", "7"),
        ("1 out of 10 times", "number", "1"),
        ("The wage is 15,000 in the year 2019.", "number", "15000"),
        ("About 66% (2/3) of them", "number", "66"),
        # nothing
        ("", "text", None),
        ("no idea at all", "choice", None),
        ("The answer is unknown", "number", None),
        ("I cannot see the 2 people.", "number", None),
        ("How many of the 3 are red?", "number", None),
    ],
)
def test_order_of_evidence(reply, kind, answer):
    assert final_answer(reply, kind) == answer


@pytest.mark.parametrize(
    ("reply", "options", "answer"),
    [
        ("It is 50 cm long.", ["0.5 m", "1 m", "50 m"], "A"),
        ("The answer is 100 cm.", ["0.5 m", "1 m", "50 m"], "B"),
        ("It is 50 long, because 5 x 10 = 50.", ["0.5 m", "1 m", "50 m"], "C"),
        ("It is 30 cm.", ANGLES + ["30°"], "30"),
        ("It takes 90 min.", ["1 h 30 min", "90 h"], "A"),
    ],
)
def test_the_option_in_another_unit(reply, options, answer):
    assert final_answer(reply, "choice", options) == answer


def test_an_option_counts_before_what_is_none():
    reply = "The correct answer is (C). In the triangle, the third angle is\n\\[\\boxed{110^\\circ}\\]"
    assert final_answer(reply, "choice", ANGLES) == "C"
    assert final_answer(reply, "choice", ["100°", "110°", "120°"]) == "B"  # the box names another option
    assert final_answer("\\boxed{110^\\circ}", "choice", ANGLES) == r"110^\circ"


@pytest.mark.parametrize(
    ("reply", "question", "answer"),
    [
        ("The sandwich is not cut in half.", "Is the sandwich cut in half?", "B"),
        ("The sandwich is cut in half.", "Is the sandwich cut in half?", "A"),
        ("Teal is less than Gray.", "Is Teal greater than Gray?", "B"),
        ("Teal is less than Gray.", "Is Teal less than Gray?", "A"),
        ("Teal is not less than Gray.", "Is Teal greater than Gray?", "A"),
        ("Is Teal less than Gray?", "Is Teal less than Gray?", None),
        ("The bread is white.", "Is the sandwich cut in half?", None),
    ],
)
def test_yes_and_no_in_the_words_of_the_question(reply, question, answer):
    assert final_answer(reply, "choice", ["Yes", "No"], question) == answer


@pytest.mark.parametrize("letter", "ABCD")
@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "({})",
        "{}.",
        "Option {}",
        "Thus ({}) it is",
        "The answer is {}.",
        "the answer is ({lower})",
        "The correct option letter is {}.",
        "({}) is correct.",
        "I choose {}.",
        '"{}"',
        "{}. {text}",
        "({}) {text}",
        "It is {text}.",
        "答案选{}",
        "选项{}正确",
    ],
)
def test_a_reply_that_names_one_option_ends_there(form, letter):
    options = ["a red square", "a blue circle", "three lines", "12 dots"]
    reply = form.format(letter, lower=letter.lower(), text=options["ABCD".index(letter)])
    for before in ("", "The figure has 7 sides, and angle B is 40°. ", "Point C lies on AB.\n\n"):
        assert final_answer(before + reply, "choice", options) == letter, before + reply


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        ("<think>a</think>b", "b"),
        ("<THINKING>a</THINKING>\nb", "b"),
        ("a</think>b", "b"),
        ("<think>cut off", ""),
        ("b<think>a</think>", "b"),
        ("◁think▷a◁/think▷b", "b"),
        ("<think>1</think>b<think>2</think>c", "bc"),
        ("<Thought process>: <<a>> <Answer>: <<B>>", "<Thought process>: <<a>> <Answer>: <<B>>"),
    ],
)
def test_thoughts_are_stripped(reply, kept):
    assert strip_thoughts(reply) == kept


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        (r"\frac{3}{4}", 0.75),
        (r"\dfrac12", 0.5),
        (r"2\sqrt{3}", 2 * 3**0.5),
        (r"\frac{\sqrt{3}}{2}", 3**0.5 / 2),
        (r"2\frac{1}{2}", 2.5),
        ("2 1/2", 2.5),
        (r"10\pi", 10 * math.pi),
        ("30√{3}m", 30 * 3**0.5),
        ("(30√{3}+30)m", 30 * 3**0.5 + 30),
        ("5√2", 5 * 2**0.5),
        (r"70^{\circ}", 70),
        (r"$27\,\mathrm{cm}^3$", 27),
        ("12 square centimetres", 12),
        ("40\\%", 40),
        ("1{,}250.5", 1250.5),
        ("10^6", 1e6),
        ("x = -4", -4),
        ("36平方厘米", 36),
        ("12 apples", None),
        ("2x + 1", None),
        ("(2, 3)", None),
        ("", None),
    ],
)
def test_values(text, value):
    assert evaluate(text) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Angle CED is ()\nChoices:\nA:40°\nB:60°\nC:120°\nD:140°", ("40°", "60°", "120°", "140°")),
        ("A. 300, 400;B. 400, 300; C. No correct answer", ("300, 400", "400, 300", "No correct answer")),
        ("Find A.\nChoices:\n(A) yes\n(B) no", ("yes", "no")),
        ("A. F;    B. D;    C. B;    D. I", ("F", "D", "B", "I")),
        ("As shown, point A is on line BC. Find x.", ()),
    ],
)
def test_options_in_a_question(question, options):
    assert parse_options(question) == options


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
        ("Answer: 1 † 2 † 3 ", " 3 "),  # after the last dagger, untrimmed
        ("†answer: 4", "answer: 4"),
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
                content = reply[start + len("\\boxed{") : position].strip()
                if content:
                    return content
                break
        start = reply.rfind("\\boxed{", 0, start)
    return None


def test_last_boxed_of_random_replies():
    rng = random.Random(0)
    found = set()
    for _ in range(20_000):
        reply = "".join(rng.choices(["\\boxed{", "{", "}", " ", "a", "1"], k=rng.randint(0, 12)))
        assert last_boxed(reply) == search_last_boxed(reply), reply
        found.add(last_boxed(reply))
    assert len(found) > 100


PIECES = (
    r"\boxed{x ¦\boxed{}¦(¦(1+¦1+¦9^¦\frac{1}{¦1 ¦-¦ ¦a¦A ¦(A) ¦√¦{¦=¦$¦answer ¦answer is ¦the answer is A. ¦<answer>¦"
    r"</answer>¦<answer></answer>¦<think>¦**¦**a**¦答案¦故选¦选项A¦A is ¦not A ¦yes, ¦option to ¦3. ¦answer          "
    r"¦1 2/3 ¦because ¦1 since ¦A, ¦rule out A, "
).split("¦") + ["Question: \n", "answer is\nQuestion: \n"]


@pytest.mark.parametrize("piece", PIECES)
def test_reading_is_linear_in_the_reply(piece):
    """A quadratic rule would run for a minute here, as one did that began anew at every asterisk."""
    final_answer(piece * (20_000 // len(piece)), "choice", ["Yes", "No", "12"])


def test_overflow_and_depth_are_no_errors():
    for text in ("9^9^9^9", "10^999999", "(" * 5000, "\\frac{1}{" * 3000 + "2", "0^-1", "√(-4)"):
        find_quantities(plain_math(text))
