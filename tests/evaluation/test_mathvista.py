"""MathVista: extraction order, normalisation, groups, prompts."""

import pytest

from puma_trl.errors import EvaluationError
from puma_trl.evaluation.benchmarks import BENCHMARKS
from puma_trl.evaluation.benchmarks.mathvista import GROUPS

from .helpers import vista_item


mathvista = BENCHMARKS["mathvista"]
INTEGER, FLOAT, LIST = (("free_form", kind) for kind in ("integer", "float", "list"))


@pytest.mark.parametrize(
    ("kind", "reply", "extraction"),
    [
        (("multi_choice", "text"), "", ""),
        (("multi_choice", "text"), None, ""),
        (("multi_choice", "text"), "20 cm", "20 cm"),
        (("multi_choice", "text"), "20 cm ", ""),  # only a literal option counts
        (("multi_choice", "text"), "B", ""),
        (INTEGER, " 14 ", "14"),
        (INTEGER, "1_000", "1000"),
        (INTEGER, "\uff17", "7"),
        (INTEGER, "14.0", ""),
        (INTEGER, 'The answer is "14".', ""),  # the quick step is off
        (FLOAT, "1.50", "1.5"),
        (FLOAT, "3", "3.0"),
        (FLOAT, "1e3", "1000.0"),
        (FLOAT, "3 cm", ""),
        (LIST, "[1, 2]", ""),
    ],
)
@pytest.mark.parametrize("rule", ["official", "math_puma"])
def test_official_steps_without_llm(kind, reply, extraction, rule):
    assert mathvista.extract(vista_item(1, *kind), reply, rule) == extraction
    assert mathvista.needs_llm(vista_item(1, *kind), reply) is (extraction == "" and reply not in ("", None))


@pytest.mark.parametrize(
    ("kind", "reply", "extraction"),
    [
        (("multi_choice", "text"), "20 cm", "20 cm"),
        (("multi_choice", "text"), "The answer is (B) 20 cm.", "B"),
        (INTEGER, "So 14.0 of them", "14.0"),
        (FLOAT, "Answer: $1.25 each", "1.25"),
        (LIST, "The answer is [1, 2].", "[1, 2]"),
        (INTEGER, "", None),
        (("multi_choice", "text"), None, None),
    ],
)
def test_final_rule(kind, reply, extraction):
    assert mathvista.extract(vista_item(1, *kind), reply, "final") == extraction


@pytest.mark.parametrize(
    ("choices", "extraction", "normalised"),
    [
        (["10", "20", "30"], "B", "20"),
        (["10", "20", "30"], " B ", "20"),
        (["10", "20", "30"], "b", "10"),  # no letter: all at distance 2, the first wins
        (["10", "20", "30"], "it is (b) or (C)", "20"),
        (["10", "20", "30"], "(E) 30", "10"),  # replaced by E, which is out of range and far from all
        (["10", "20", "30"], "D", "10"),
        (["10", "20", "30"], "about 30", "30"),
        (["10", "20", "30"], "", "10"),
        (["long option", "no"], "", "no"),
        (["7777777", "None of"], None, "None of"),
        (["14", "5"], 14, "14"),
        (["C", "A", "B"], "C", "B"),  # the letter wins over the literal text
        (["(a) x", "y"], "(a) x", "(a) x"),
        (["stay the same ", "fall"], "stay the same", "stay the same "),
        (["only"], "anything", "only"),
    ],
)
def test_multiple_choice_always_gives_an_option(choices, extraction, normalised):
    assert mathvista.normalise(vista_item(1, choices=choices), extraction) == normalised


@pytest.mark.parametrize(
    ("extraction", "normalised"),
    [
        ("14.9", "14"),
        ("-0.5", "0"),
        ("-14.9", "-14"),
        ("1_000", "1000"),
        ("\uff11\uff12", "12"),
        (14, "14"),
        ("1,000", None),
        ("14%", None),
        ("$14", None),
        ("", None),
        (None, None),
        ("inf", None),
        ("nan", None),
        ([1], None),
    ],
)
def test_integers_are_truncated(extraction, normalised):
    assert mathvista.normalise(vista_item(1, *INTEGER), extraction) == normalised


@pytest.mark.parametrize(
    ("extraction", "precision", "normalised"),
    [
        ("1.25", 1.0, "1.2"),  # binary rounding
        ("1.35", 1.0, "1.4"),
        ("-0.04", 1, "-0.0"),
        ("2", 2.0, "2.0"),
        ("3.14159", 2.0, "3.14"),
        ("inf", 1, "inf"),
        ("abc", 1, None),
        ("1.2", None, None),
    ],
)
def test_floats_are_rounded_with_the_precision_as_int(extraction, precision, normalised):
    assert mathvista.normalise(vista_item(1, *FLOAT, precision=precision), extraction) == normalised


@pytest.mark.parametrize(
    ("extraction", "correct"), [("[1, 2]", True), ("[1,2]", False), ([1, 2], True), (None, False)]
)
def test_lists_stay_strings(extraction, correct):
    item = vista_item(1, *LIST, answer="[1, 2]")
    assert mathvista.is_correct(item, mathvista.normalise(item, extraction)) is correct


def test_groups_by_hand():
    items = [
        vista_item(1, metadata={"skills": ["a", "b"], "grade": "college"}),
        vista_item(2, *INTEGER, metadata={"skills": ["b"]}),
        vista_item(3, metadata={"skills": ["b", "b"], "source": "other"}),
    ]
    metrics = mathvista.compute_metrics(items, [True, False, True])
    assert (metrics["correct"], metrics["total"], metrics["accuracy"]) == (2, 3, 2 / 3)
    groups = metrics["groups"]
    assert list(groups) == list(GROUPS)
    assert groups["skills"] == {
        "a": {"correct": 1, "total": 1, "accuracy": 1.0},
        "b": {"correct": 2, "total": 3, "accuracy": 2 / 3},
    }
    assert list(groups["question_type"]) == ["multi_choice", "free_form"]  # sorted by accuracy
    assert groups["answer_type"]["integer"] == {"correct": 0, "total": 1, "accuracy": 0.0}
    assert groups["grade"] == {
        "college": {"correct": 1, "total": 1, "accuracy": 1.0},
        "high school": {"correct": 1, "total": 2, "accuracy": 0.5},
    }
    assert groups["source"]["other"]["total"] == 1


@pytest.mark.parametrize(
    ("kind", "changes", "lines"),
    [
        (
            ("multi_choice", "text"),
            {"question": "Which?", "choices": ["x", "y"]},
            [
                "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at "
                "the end.",
                "Question: Which?",
                "Choices:",
                "(A) x",
                "(B) y",
            ],
        ),
        (
            INTEGER,
            {"question": "How many?", "unit": "g"},
            [
                "Hint: Please answer the question requiring an integer answer and provide the final value, e.g., 1, "
                "2, 3, at the end.",
                "Question: How many? (Unit: g)",
            ],
        ),
        (
            FLOAT,
            {"question": "How much?", "precision": 2.0},
            [
                "Hint: Please answer the question requiring a floating-point number with two decimal places and "
                "provide the final value, e.g., 1.23, 1.34, 1.45, at the end.",
                "Question: How much?",
            ],
        ),
        (
            LIST,
            {"question": "Which years?"},
            [
                "Hint: Please answer the question requiring a Python list as an answer and provide the final list, "
                "e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the end.",
                "Question: Which years?",
            ],
        ),
    ],
)
def test_official_prompt_is_rebuilt(kind, changes, lines):
    assert mathvista.build_prompt(vista_item(1, *kind, **changes), "official") == "\n".join(lines)


def test_puma_prompt_drops_options_and_unit():
    prompt = mathvista.build_prompt(vista_item(1, unit="g"), "math_puma")
    assert "How long is segment 1?" in prompt and "20 cm" not in prompt and "Unit" not in prompt


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choices": []}, "choices"),
        ({"choices": None}, "choices"),
        ({"question_type": "free_form", "answer_type": "text"}, "answer_type"),
        ({"metadata": {"language": "english"}}, "source"),
    ],
)
def test_unusable_items_are_named(changes, message):
    with pytest.raises(EvaluationError, match=f"Item 7.*{message}"):
        mathvista.check_items([vista_item(7) | changes], allow_partial=False)


@pytest.mark.parametrize(
    ("text", "rule", "extraction"),
    [
        ("B", "official", "B"),
        ("Extracted answer: B", "official", "Extracted answer: B"),
        ("B", "math_puma", "b"),
        ("Extracted Answer: B ", "math_puma", "b"),
    ],
)
def test_llm_extraction_is_lower_cased_only_by_the_original_project(text, rule, extraction):
    assert mathvista.clean_llm_extraction(text, rule) == extraction
