"""MathVerse: extraction without a language model, comparison, aggregates."""

import pytest

from puma_trl.errors import EvaluationError
from puma_trl.evaluation.benchmarks import BENCHMARKS

from .helpers import verse_item


mathverse = BENCHMARKS["mathverse"]


@pytest.mark.parametrize(
    ("reply", "rule", "extraction"),
    [
        (" B \n", "official", "B"),
        ("Extracted Answer: B", "official", "B"),
        ("B Extracted Answer: C", "official", "B Extracted Answer: C"),
        ("", "official", ""),
        (None, "official", ""),
        (None, "math_puma", ""),
        ("so, B", "math_puma", "B"),
        ("The answer is (C).", "final", "C"),
        ("", "final", None),
        (None, "final", None),
    ],
)
def test_extract(reply, rule, extraction):
    assert mathverse.extract(verse_item(1), reply, rule) == extraction


@pytest.mark.parametrize(
    ("reply", "extraction"),
    [
        ("Answer: x = 2.", "x = 2"),
        ("So the straw is 14 cm long.", "14"),
        ("\\boxed{2\\sqrt{5}}", "2\\sqrt{5}"),
        ("?", None),
    ],
)
def test_final_rule_in_free_form(reply, extraction):
    assert mathverse.extract(verse_item(1, question_type="free-form"), reply, "final") == extraction


def test_final_rule_reads_the_options_of_the_question():
    assert mathverse.extract(verse_item(1), "Angle 1 is 30°.", "final") == "C"
    assert mathverse.options(verse_item(1)) == ("10", "20", "30", "40")


@pytest.mark.parametrize(
    ("gold", "extraction", "correct"),
    [
        ("B", "B", True),
        ("B", "B ", False),  # untrimmed on both sides
        (" 14", "14", False),
        (" 14", " 14", True),
        ("(C)", "C", False),
        ("False", "False", True),
        ("C\nD", "C\nD", True),
        ("45\u9e3a", "45\u00b0", False),
        ("14", 14, False),
        ("14", None, False),
    ],
)
def test_quick_match(gold, extraction, correct):
    item = verse_item(1, answer=gold)
    assert mathverse.is_correct(item, mathverse.normalise(item, extraction)) is correct


def test_metrics_by_hand():
    angle = {"subject": "Plane Geometry", "subfield": "Angle"}
    length = {"subject": "Plane Geometry", "subfield": "Length"}
    solid = {"subject": "Solid Geometry", "subfield": "Length"}
    items = [
        verse_item(1, "Text Lite", metadata=angle),
        verse_item(2, "Text Lite", metadata=length),
        verse_item(3, "Vision Only", metadata=solid, question_type="free-form"),
        verse_item(4, "Vision Only", metadata=solid),
        verse_item(5, "Text Only", metadata=solid),
        verse_item(6, "Text Only", metadata=angle),
    ]
    metrics = mathverse.compute_metrics(items, [True, False, True, True, True, False])
    assert (metrics["correct"], metrics["total"], metrics["accuracy"]) == (3, 4, 0.75)
    half, whole = {"correct": 1, "total": 2, "accuracy": 0.5}, {"correct": 2, "total": 2, "accuracy": 1.0}
    assert metrics["problem_version"] == {"Text Lite": half, "Vision Only": whole}
    assert metrics["text_only"] == {"Text Only": half}
    assert metrics["subject"] == {"Plane Geometry": half, "Solid Geometry": whole}
    assert metrics["question_type"] == {
        "multi-choice": {"correct": 2, "total": 3, "accuracy": 2 / 3},
        "free-form": {"correct": 1, "total": 1, "accuracy": 1.0},
    }
    # Length exists under two subjects and is not pooled
    assert metrics["subfield"] == {
        "Plane Geometry": {
            "Angle": {"correct": 1, "total": 1, "accuracy": 1.0},
            "Length": {"correct": 0, "total": 1, "accuracy": 0.0},
        },
        "Solid Geometry": {"Length": whole},
    }


def test_text_only_alone_reports_its_figure():
    metrics = mathverse.compute_metrics([verse_item(1, "Text Only"), verse_item(2, "Text Only")], [True, False])
    assert (metrics["accuracy"], metrics["correct"], metrics["total"], metrics["subject"]) == (0.5, 1, 2, {})
    assert metrics["text_only"]["Text Only"]["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_version": "Text dominant"}, "problem_version"),
        ({"metadata": {"subject": "Functions"}}, "subfield"),
        ({"metadata": None}, "metadata"),
    ],
)
def test_unknown_values_are_named(changes, message):
    with pytest.raises(EvaluationError, match=message):
        mathverse.check_items([verse_item(7, **changes)], allow_partial=False)


def test_prompts():
    item = verse_item(3)
    assert mathverse.build_prompt(item, "official") == item["query_wo"]
    assert mathverse.build_prompt(item, "math_puma") == item["query_cot"]


@pytest.mark.parametrize(
    ("text", "extraction"), [("Extracted Answer: 5 ", "5"), ("5", "5"), (" Extracted Answer: x", "x")]
)
def test_llm_extraction_loses_its_prefix(text, extraction):
    assert mathverse.clean_llm_extraction(text, "official") == extraction
