"""We-Math: extraction rules, S1-S3, domains, four dimensions."""

import pytest

from puma_trl.errors import EvaluationError
from puma_trl.evaluation.benchmarks import BENCHMARKS
from puma_trl.evaluation.benchmarks.wemath import four_dimensional, read_domains

from .helpers import wemath_group


wemath = BENCHMARKS["wemath"]
OPTIONS = "A. 10 cm; B. Twenty; C. 30 cm. or so; D. No correct answer"


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("D", "D"),
        ("Answer: D.", "D"),
        ("<Thought process>: <<so>> <Answer>: <<B>>", "B"),
        ("Answer A, no: Answer C", "C"),
        ("Answer: . <<H>>", "H"),
        ("answer: D", None),  # case-sensitive: the text starts with "a"
        ("(D)", None),
        ("Option D", None),
        ("**Answer:** D", None),
        ("The answer is D", None),
        ("Because it is D", "B"),
        ("Answer", None),
        ("Answer: I", None),
        ("", None),
        (None, None),
    ],
)
def test_official_extraction(reply, letter):
    assert wemath.extract({}, reply, "official") == letter


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("D", None),  # no phrase
        ("the answer is (C)", "C"),
        ("Answer: because", None),
        ("Answer: Because", "B"),
        # phrases in their order, not in that of the reply
        ("The answer is A. the correct option is B", "B"),
        ("Answer: A. <Answer>: C", "C"),
        # between the first and the second occurrence only
        ("Answer: none Answer: C", None),
        ("Answer: no Answer: C The answer is D", "D"),
        # else the first option whose lower-cased text occurs in the reply as it is
        ("Answer: it is 10 cm", "A"),
        ("twenty. Answer: see above", "B"),
        ("Twenty. Answer: see above", None),
        ("30 cm. Answer: that", "C"),  # an option's text ends at its second full stop
        (None, None),
    ],
)
def test_puma_extraction(reply, letter):
    assert wemath.extract({"option": OPTIONS}, reply, "math_puma") == letter


def test_puma_extraction_matches_an_empty_option():
    assert wemath.extract({"option": "A. ; B. 20"}, "Answer: none of 20", "math_puma") == "A"
    assert wemath.extract({"option": "no options; B. 20"}, "Answer: none of 20", "math_puma") == "B"


@pytest.mark.parametrize(
    ("reply", "letter"), [("It is (C).", "C"), ("The answer is D", "D"), ("Answer: twelve", None), ("", None)]
)
def test_final_extraction_is_a_letter_or_nothing(reply, letter):
    assert wemath.extract({}, reply, "final") == letter


def groups_of(*outcomes):
    """Builds groups from strings such as "110": one-step rows, then the multi row."""
    items, correct = [], []
    for number, outcome in enumerate(outcomes):
        items += wemath_group(number, len(outcome) - 1, len(items) + 1)
        correct += [digit == "1" for digit in outcome]
    return items, correct


@pytest.mark.parametrize(
    ("outcome", "strict", "loose"),
    [
        ("111", "CM", "CM"),
        ("110", "IG", "IG"),
        ("100", "IK", "IK"),
        ("000", "IK", "IK"),
        ("101", "RM", "CM"),
        ("011", "RM", "CM"),
        ("001", "RM", "RM"),
        ("1111", "CM", "CM"),
        ("1110", "IG", "IG"),
        ("1100", "IK", "IK"),
        ("0101", "RM", "CM"),
        ("0001", "RM", "RM"),
    ],
)
def test_classes_of_a_group(outcome, strict, loose):
    dimensions = four_dimensional(*groups_of(outcome))
    for setting, expected in (("strict", strict), ("loose", loose)):
        counts = {name: dimensions[setting][name]["count"] for name in ("IK", "IG", "CM", "RM")}
        assert counts == {name: int(name == expected) for name in counts}


def test_rates_and_scores_by_hand():
    items, correct = groups_of("111", "111", "110", "101", "001", "1110", "0101", "0000")
    dimensions = four_dimensional(items, correct)
    strict, loose = dimensions["strict"], dimensions["loose"]
    assert strict["CM"] == {"count": 2, "rate": 2 / 8}
    assert strict["IG"] == loose["IG"] == {"count": 2, "rate": 2 / 8}
    assert strict["IK"] == loose["IK"] == {"count": 1, "rate": 1 / 8}
    assert strict["RM"] == {"count": 3, "rate": 3 / 5}  # of RM + CM, not of all groups
    assert strict["score"] == (2 + 0.5 * 2) / 8
    assert loose["CM"] == {"count": 4, "rate": 4 / 8}
    assert loose["RM"] == {"count": 1, "rate": 1 / 5}
    assert loose["score"] == (4 + 0.5 * 2) / 8


def test_rm_rate_is_null_where_no_multi_step_problem_is_right():
    dimensions = four_dimensional(*groups_of("110", "1000"))
    assert dimensions["strict"]["RM"] == {"count": 0, "rate": None}
    assert dimensions["loose"]["score"] == 0.25


def test_steps_and_domains_by_hand():
    circles, squares, axial = "Area of Circles", "Area of Squares", "Axial Symmetry"
    items = wemath_group(1, 2, 1, (circles, squares)) + wemath_group(1, 3, 4, (circles, circles, axial))
    # one-step: circles 1/3, squares 1/1, axial 0/1; the multi rows' concept lists do not count
    correct = [True, True, False, False, False, False, True]
    metrics = wemath.compute_metrics(items, correct)
    assert (metrics["S1"], metrics["S2"], metrics["S3"]) == (2 / 5, 0.0, 1.0)
    assert (metrics["correct"], metrics["total"], metrics["accuracy"]) == (3, 7, 3 / 7)
    assert len(metrics["domains"]) == 12
    # the unweighted mean over concepts: (1/3 + 1) / 2, not 2/4
    assert metrics["domains"]["Calculation of Plane Figures"] == pytest.approx(2 / 3)
    assert metrics["domains"]["Basic Transformations of Figures"] == 0.0
    assert metrics["domains"]["Direction"] is None


def test_domains_cover_the_67_concepts():
    domains = read_domains()
    assert len(domains) == 67 and len(set(domains.values())) == 12


def test_incomplete_groups_stop_or_are_left_out():
    items, correct = groups_of("111", "110")
    with pytest.raises(EvaluationError, match="2steps_1 lacks the item with `key` 2steps_2.*--allow_partial"):
        wemath.check_items(items[:4] + items[5:], allow_partial=False)
    wemath.check_items(items[:4] + items[5:], allow_partial=True)
    metrics = wemath.compute_metrics(items[:4] + items[5:], correct[:4] + correct[5:])
    assert metrics["incomplete_groups"] == 1 and metrics["num_groups"] == 2
    assert metrics["four_dimensional"]["strict"]["score"] == 1.0  # of the whole group alone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "4steps_1"}, "'4steps_1'"),
        ({"key": "3steps_1"}, "mixes"),
        ({"key": "2steps_2"}, "ID '2steps_1' and key '2steps_2'"),
    ],
)
def test_odd_groups_are_named(change, message):
    items = wemath_group(1, 2, 1)
    items[0] |= change
    with pytest.raises(EvaluationError, match=message):
        wemath.check_items(items, allow_partial=True)


def test_unknown_concept_is_told():
    items = wemath_group(1, 2, 1, ("Area of Circles", "Knitting"))
    with pytest.warns(UserWarning, match="Knitting"):
        wemath.check_items(items, allow_partial=False)


def test_prompts():
    item = wemath_group(1, 2, 1)[0]
    official, puma = (wemath.build_prompt(item, variant) for variant in ("official", "math_puma"))
    for prompt in (official, puma):
        assert item["question"] in prompt and item["option"] in prompt
        assert prompt.endswith("<Thought process>: <<your thought process>> <Answer>: <<your option>>")
    assert item["knowledge concept description"] in puma
    assert item["knowledge concept description"] not in official
