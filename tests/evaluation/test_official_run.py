"""MathVerse by its official protocol, extraction and judging by a language model, against aggregates made by hand."""

import json

import pytest

from puma_trl.evaluation.__main__ import main

from .helpers import read_rows, verse_item


FREE = {"question_type": "free-form"}


def metadata(subject, subfield):
    return {"metadata": {"split": "testmini", "source": "made", "subject": subject, "subfield": subfield}}


ANGLE, PLANE_LENGTH = metadata("Plane Geometry", "Angle"), metadata("Plane Geometry", "Length")
SOLID_LENGTH, PROPERTY = metadata("Solid Geometry", "Length"), metadata("Functions", "Property")
# item, what the model said, what the language model extracts (as it says it), what it judges (as it says it; None: it
# is not asked, because the extraction equals the gold answer or is empty)
CASES = [
    (verse_item(1, "Text Dominant", **ANGLE), "I choose the second.", "Extracted Answer: B", None),
    (verse_item(2, "Text Lite", **ANGLE), "Angle 2 is 30 degrees.", "30 degrees", "Judgement: 0"),
    (verse_item(3, "Vision Intensive", **ANGLE), "It is 20, as drawn.", "<think>20 is B.</think>\n20", "1"),
    (
        verse_item(4, "Vision Dominant", answer="14", **FREE, **PLANE_LENGTH),
        "So 14 cm.",
        "14 cm",
        "Judgement: 1\nSame.",
    ),
    (verse_item(5, "Vision Only", answer="14", **FREE, **PLANE_LENGTH), "14.3, about.", "14.3", "<think>No.</think>0"),
    (
        verse_item(6, "Text Lite", answer="2\\sqrt{5}", **FREE, **SOLID_LENGTH),
        "√20, I think",
        "√20",
        '{"judgement": 1}',
    ),
    (verse_item(7, "Vision Only", answer="y=2x", **FREE, **PROPERTY), "", None, None),
    (verse_item(8, "Text Only", **ANGLE), "(B)", "B", None),
    (verse_item(9, "Text Only", answer="14", **FREE, **SOLID_LENGTH), "13", "13", "0"),
]
# by hand: right are 1, 3, 4 and 6 of the seven with a picture, and 8 of the two without
RATES = {
    "problem_version": {
        "Text Dominant": (1, 1),
        "Text Lite": (1, 2),
        "Vision Intensive": (1, 1),
        "Vision Dominant": (1, 1),
        "Vision Only": (0, 2),
    },
    "subject": {"Plane Geometry": (3, 5), "Solid Geometry": (1, 1), "Functions": (0, 1)},
    "question_type": {"multi-choice": (2, 3), "free-form": (2, 4)},
    "text_only": {"Text Only": (1, 2)},
}
SUBFIELDS = {
    "Plane Geometry": {"Angle": (2, 3), "Length": (1, 2)},
    "Solid Geometry": {"Length": (1, 1)},
    "Functions": {"Property": (0, 1)},
}


def counts(groups):
    return {name: (rate["correct"], rate["total"]) for name, rate in groups.items()}


@pytest.mark.parametrize("has_forms", [True, False])
def test_official_protocol_end_to_end(api, tmp_path, has_forms):
    def answer(body, number):
        asked = body["messages"][-1]["content"]
        is_judge = "Reference answer:" in asked
        if "response_format" in body and not has_forms:
            return 400, "unknown option response_format"
        (case,) = [case for case in CASES if f"angle {case[0]['sample_index']}." in asked]
        return 200, case[3] if is_judge else case[2]

    server = api(answer)
    data, results = tmp_path / "testmini.json", tmp_path / "output_testmini.json"
    data.write_text(json.dumps({item["sample_index"]: item for item, *_ in CASES}))  # keyed by id
    results.write_text(json.dumps([item | {"model_answer": said} for item, said, *_ in CASES], indent=4))
    llm = ["--llm", "judge", "--llm_base_url", server.url, "--concurrency", "1"]
    common = ["--benchmark", "mathverse", "--data", str(data), *llm]
    extracted = tmp_path / "E.jsonl"
    assert main(["extract", *common, "--responses", str(results), "--output", str(extracted)]) == 0
    assert [row["extraction"] for row in read_rows(extracted)] == (
        ["B", "30 degrees", "20", "14 cm", "14.3", "√20", "", "B", "13"]
    )
    score = ["score", *common, "--responses", str(extracted), "--judge", "openai"]
    assert main([*score, "--output", str(tmp_path / "m.json")]) == 0
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert (metrics["extraction"], metrics["judge"], metrics["correct"], metrics["total"]) == (
        "official",
        "openai",
        4,
        7,
    )
    assert metrics["judge_settings"] == {"judge": "openai", "model": "judge", "judged": 6, "failed": 0}
    assert {name: counts(metrics[name]) for name in RATES} == RATES
    assert {subject: counts(groups) for subject, groups in metrics["subfield"].items()} == SUBFIELDS
    judged = sum("Reference answer:" in body["messages"][-1]["content"] for body in server.bodies)
    assert judged == (6 if has_forms else 7)  # the first request with a form is refused, and no other has one
    report = ["report", "--metrics", str(tmp_path / "m.json"), "--output", str(tmp_path / "report.md")]
    assert main(report) == 0
    page = (tmp_path / "report.md").read_text()
    assert "by the language model judge" in page and "not the official protocol" not in page
