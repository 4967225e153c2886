"""What judges take for equal, and how a judge's reply is read."""

import pytest

from puma_trl.evaluation.benchmarks import BENCHMARKS
from puma_trl.evaluation.judging import is_equivalent, read_verdict

from .helpers import verse_item


mathverse = BENCHMARKS["mathverse"]
CHOICES = "Choices:\nA:50°\nB:60°\nC:sample A\nD:$2\\sqrt{3}$ cm"


@pytest.mark.parametrize(
    ("gold", "extraction", "same"),
    [
        # units, as the official judge takes them: "0.5m and 50cm" mean the same
        ("12", "12 cm^2", True),
        ("12", "12 cm²", True),
        ("12", "12 square units", True),
        ("12", "12m2", True),
        ("12 cm", "12", True),
        ("0.5m", "50cm", True),
        ("0.5 m", "0.5 cm", False),
        ("2 m^2", "20000 cm^2", True),
        ("2 m^2", "200 cm^2", False),
        ("3 kilometers", "3000 m", True),
        ("120°", "120", True),
        ("120", "120 degrees", True),
        ("14", "-14", False),
        # radicals and fractions
        (r"5\sqrt{2}", "5√2", True),
        (r"5\sqrt{2}", "5√(2)", True),
        (r"5\sqrt{2}", "5√3", False),
        (r"\frac{3}{4}", "3/4", True),
        (r"\frac{3}{4}", "0.75", True),
        (r"2\pi", "2π", True),
        (r"\frac{\pi r^2}{4}", "(π r²)/4", True),
        # a trailing point
        (r"4\sqrt{6}", r"4\sqrt{6}.", True),
        ("14", "14.", True),
        # names and expressions
        ("14", "x = 14", True),
        ("x = -3", "-3", True),
        ("y=2x+1", "$y = 2x + 1$", True),
        ("y=2x+1", "y = 2x - 1", False),
        ("(-2,1]", r"\((-2, 1]\)", True),
        ("(-2,1]", r"\((-2, 1)\)", False),
        ("x^2-1", "(x-1)(x+1)", True),
        ("False", "false", True),
        ("14", "null", False),
        # units of another kind, times of day, roots in any order
        ("30°", "30 cm", False),
        ("2 hours", "2 minutes", False),
        ("2 hours", "120 min", True),
        ("50%", "0.5", True),
        ("5‰", "0.5%", True),
        # of one kind and another size, however small
        ("60°", "60′", False),
        ("60°", "60'", False),
        ("60°", r"60^{\prime}", False),
        ("60′", '60"', False),
        ("1°", "60'", True),
        ("5 lb", "5 kg", False),
        ("5 ha", "5 m^2", False),
        ("5 吨", "5 千克", False),
        ("20 °C", "20 °F", False),
        ("1 mm^3", "1.5 mm^3", False),
        # in parts
        ("1 h 30 min", "90 minutes", True),
        ("2小时30分钟", "150分钟", True),
        ("1 h 30 min", "1 h", False),
        ("30°15′", "30.25°", True),
        ("30.26°", "30°15'36\"", True),
        ("2 min 30 h", "2.5 min", False),
        ("90 min", "x = 30 min, y = 1 h 30 min", False),
        ("3:15 pm", "3:15 am", False),
        ("3:15 pm", "3:15 p.m.", True),
        ("x = 3 or x = -3", "x = -3 or x = 3", True),
        ("x = 3 or x = -3", "-3", False),
    ],
)
def test_math_verify_in_free_form(gold, extraction, same):
    item = verse_item(1, question_type="free-form", answer=gold)
    assert is_equivalent(mathverse, item, extraction) is same


@pytest.mark.parametrize(
    ("gold", "extraction", "same"),
    [
        ("A", "A", True),
        ("(A)", "A", True),
        ("A", "(A)", True),
        ("A", "A. 50°", True),
        ("A", "50°", True),
        ("A", "50 degrees", True),
        ("A", "60°", False),
        ("A", "B", False),
        ("C", "sample A", True),
        ("A", "sample A", False),
        ("D", "2√3", True),
        ("D", "2√3 cm.", True),
        ("D", "3.46", True),  # what it rounds to, and no other option is near
        ("A", "null", False),
        ("C\nD", "C and D", True),
        ("C\nD", "C", False),
        ("C\nD", "A and C", False),
        ("False", "false", True),
        ("False", "A", False),
    ],
)
def test_math_verify_in_multiple_choice(gold, extraction, same):
    item = verse_item(1, answer=gold, question_for_eval=f"Find it.\n{CHOICES}")
    assert is_equivalent(mathverse, item, extraction) is same


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("1", 1),
        (" 0\n", 0),
        ("Judgement: 1", 1),
        ("judgment: 0", 0),
        ("Judgement: 1\nBoth say half a metre.", 1),
        ("Judgement: 1.", 1),
        ("**Judgement: 1**", 1),
        ("**Judgement:** 0", 0),
        ("1 (they agree)", 1),
        ('{"judgement": 1}', 1),
        ('```json\n{"judgement": 0}\n```', 0),
        ("<think>0? No.</think>1", 1),
        ("0 or 1?</think>\n\n0", 0),
        ("<think>1", None),
        # the verdict behind an explanation, and what wraps it
        ("Both say 5.\n\nJudgement: 1", 1),
        ("1. The gold answer is 5.\n2. The other is 6.\nJudgement: 0", 0),
        ("1. Both are 5.", 1),
        ("1 cm is not the same as 2 cm. Judgement: 0", 0),
        ("1 cm is not 2 cm.", None),
        ("1 = 1", None),
        ("0 or 1", None),
        ("Judgement: 0 or 1?", None),
        ("1\n\n[Gold]: 3\nJudgement: 0", 1),
        ('{"reason": "They agree", "judgement": 1}', 1),
        ("They differ.\n\n0", 0),
        ("The answers are not the same.", None),
        ("\\boxed{1}", 1),
        ("<answer>0</answer>", 0),
        ("[1]", 1),
        ("'1'", 1),
        ("Answer: 1", 1),
        ("Judgement：0", 0),
        ("答案一致，判定为1", 1),
        ("1 because both are 5", 1),
        ("10", None),
        ("-1", None),
        ("1/2", None),
        ("0.5", None),
        ("1%", None),
        ("yes", None),
        ("Both say 1", None),
        ("", None),
    ],
)
def test_verdicts(reply, verdict):
    assert read_verdict(reply) == verdict
