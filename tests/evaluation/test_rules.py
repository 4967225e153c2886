"""`score --rules`: one table of several rules on the same replies."""

import json

import pytest

from puma_trl.evaluation.__main__ import main
from puma_trl.evaluation.rates import rate
from puma_trl.record.intervals import wilson

from .helpers import verse_item, vista_item, write_rows


@pytest.fixture
def compare(tmp_path, capsys):
    """Returns a function (benchmark, items, rows, *rules) → (comparison, page, what was printed)."""

    def run(benchmark, items, rows, *options):
        data = tmp_path / "items.json"
        data.write_text(json.dumps(items))
        files = ["--data", str(data), "--responses", str(write_rows(tmp_path / "r.jsonl", rows))]
        output = tmp_path / "m.json"
        assert main(["score", "--benchmark", benchmark, *files, "--output", str(output), *options]) == 0
        return (
            json.loads((tmp_path / "rules.json").read_text()),
            (tmp_path / "rules.md").read_text(),
            capsys.readouterr(),
        )

    return run


def test_rules_differ_on_items(compare):
    items = [vista_item(1), vista_item(2), vista_item(3, "free_form", "integer")]
    rows = [
        {"id": "1", "response": "20 cm", "extraction": "A"},  # every rule but the given extraction is right
        {"id": "2", "response": "I would say (B).", "extraction": "B"},
        {"id": "3", "response": "no idea", "extraction": ""},
    ]
    comparison, page, printed = compare("mathvista", items, rows, "--rules", "official", "math_puma", "final")
    assert {rule: figures["correct"] for rule, figures in comparison["rules"].items()} == {
        "official": 1,
        "math_puma": 1,
        "final": 2,
        "given": 1,
    }
    assert "Without its language model: official, math_puma." in page  # they asked none here
    assert comparison["differ"] == 2 and [row["id"] for row in comparison["differences"]] == ["1", "2"]
    assert comparison["differences"][1]["extractions"] == {"official": "", "math_puma": "", "final": "B", "given": "B"}
    assert "| final | 66.67% | 20.77% to 93.85% | 2/3 |" in page and "| final | 66.67% |" in printed.out
    assert "> I would say (B)." in page and "- official: `` (wrong)" in page and "differ on 2 of 3 items" in page


def test_rules_are_judged_alike(compare):
    items = [verse_item(1, question_type="free-form", answer="12")]
    rows = [{"id": "1", "response": "Answer: 12 cm"}]
    comparison, _, _ = compare("mathverse", items, rows, "--rules", "final", "math_puma", "--judge", "math_verify")
    assert [figures["accuracy"] for figures in comparison["rules"].values()] == [1.0, 1.0]
    assert "given" not in comparison["rules"] and comparison["differ"] == 0


def test_a_rule_that_asks_no_language_model_is_whole(compare):
    items = [verse_item(1)]
    rows = [{"id": "1", "response": "Answer: B"}]
    _, page, _ = compare("mathverse", items, rows, "--rules", "math_puma", "final")
    assert "Without its language model" not in page
    _, page, _ = compare("mathverse", items, rows, "--rules", "official")
    assert "Without its language model: official." in page


def test_intervals_of_rates():
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0, 0) is None and rate([])["accuracy"] is None
