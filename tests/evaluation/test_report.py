"""report.md and its chart: figures, protocol, partial runs, published figures given by the user."""

import json
import re

import pytest
from PIL import Image

from puma_trl.evaluation.__main__ import main
from puma_trl.evaluation.benchmarks import BENCHMARKS
from puma_trl.evaluation.report import Figure

from .helpers import IDS, make_items, vista_item, write_data, write_rows


@pytest.fixture
def scored(tmp_path):
    """Returns a function that scores a run in which `answered` replies are right; gives the metrics file."""

    def run(benchmark, answered=None, *options):
        items = make_items(benchmark)
        data, responses = tmp_path / "items.json", tmp_path / "responses.jsonl"
        data.write_text(json.dumps(items))
        rows = [{"id": item[IDS[benchmark]], "response": f"Answer: {item['answer']}"} for item in items[:answered]]
        files = ["--data", str(data), "--responses", str(write_rows(responses, rows))]
        output = ["--output", str(tmp_path / "metrics.json")]
        assert main(["score", "--benchmark", benchmark, *files, *output, *options]) == 0
        return tmp_path / "metrics.json"

    return run


def report(metrics, *options):
    output = metrics.with_name("report.md")
    assert main(["report", "--metrics", str(metrics), "--output", str(output), *options]) == 0
    assert Image.open(output.with_suffix(".png")).height > 100
    return output.read_text()


def cells(text, metric):
    """Returns the cells of a metric's line."""
    return next(
        [cell.strip() for cell in line.split("|")[2:-1]]
        for line in text.splitlines()
        if line.startswith(f"| {metric} |")
    )


def test_percentages_have_two_decimals_and_counts(scored):
    text = report(scored("mathvista", 7))
    assert cells(text, "accuracy") == ["70.00%", "39.68% to 89.22%", "7/10"]
    assert cells(text, "answer_type/text") == ["50.00%", "9.45% to 90.55%", "1/2"]
    assert "7 of 10 items answered (70.00%)" in text and "**Partial run**" in text


def test_wemath_dimensions_and_undefined_domains(scored):
    text = report(scored("wemath"))
    assert cells(text, "S1") == ["100.00%", "64.57% to 100.00%", "7/7"]
    assert cells(text, "strict/score") == ["100.00%", "", ""]
    assert cells(text, "strict/RM") == ["0.00%", "", "0"]
    assert cells(text, "domains/Direction") == ["–", "", ""]
    assert "not the official protocol" not in text and "Partial" not in text


def test_withheld_dimensions_are_said(scored):
    text = report(scored("wemath", 9))
    assert "four dimensions are withheld" in text and "strict/score" not in text


@pytest.mark.parametrize(
    ("options", "official"),
    [((), False), (("--extraction", "official"), False), (("--extraction", "math_puma"), True)],
)
def test_protocol_is_named(scored, options, official):
    """Without a language model neither `final` nor `official` is the official protocol; `math_puma` claims nothing."""
    text = report(scored("mathverse", None, *options))
    assert ("**This is not the official protocol**" in text) is not official
    assert "Judge: exact." in text and "without a language model" in text


def test_published_figures_stand_beside_ours(scored, tmp_path):
    reference = tmp_path / "published.json"
    figures = {"accuracy": 0.335, "problem_version/Text Lite": 0.25, "rule": "GPT-4 extracts"}
    reference.write_text(json.dumps({"Some paper": figures}))
    text = report(scored("mathverse"), "--reference", str(reference))
    assert cells(text, "accuracy")[2:] == ["9/9", "33.50%"]
    assert cells(text, "problem_version/Vision Only")[3] == "–"
    assert "Some paper (rule: GPT-4 extracts)" in text and "given by the user" in text


def test_no_published_figure_is_built_in(scored):
    assert cells(report(scored("mathverse")), "metric") == ["this run", "95 % interval", "count"]


@pytest.fixture
def wrong_run(tmp_path):
    """Returns a function that scores a MathVista run of 25 items with pictures, all but three wrong."""

    def run(reply="The answer is (A).", pictures=True):
        items = [vista_item(index) for index in range(25)]
        data = write_data(tmp_path, "mathvista", items)
        if not pictures:
            (tmp_path / "images" / "14.jpg").unlink()
        rows = [{"id": str(index), "response": "(B)" if index < 3 else reply} for index in range(25)]
        files = ["--data", str(data), "--responses", str(write_rows(tmp_path / "r.jsonl", rows))]
        assert main(["score", "--benchmark", "mathvista", *files, "--output", str(tmp_path / "metrics.json")]) == 0
        report(tmp_path / "metrics.json")
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return run


def test_page_shows_ten_wrong_answers(wrong_run):
    page = wrong_run()
    assert page.count("<section>") == 10 and "10 of 22 wrong answers" in page
    assert page.count("data:image/png;base64,") == 11  # and the chart
    assert "(B) 20 cm" in page and 'Read as <b class="wrong">A</b>' in page and '<b class="gold">20 cm</b>' in page
    assert "geometry problem solving" in page and "<td>39.68%" not in page and "<td>accuracy</td>" in page
    # everything is in the page: nothing is fetched, and no script runs
    assert not re.search(r"(?:src|href)=\"(?!data:)", page) and "<script" not in page


def test_replies_are_no_markup(wrong_run):
    page = wrong_run('<script>alert(1)</script><img src="http://x/y.png">\x1b[2J \ud800 (A)')
    assert "<script" not in page and "&lt;script&gt;" in page and "\x1b" not in page and 'src="http' not in page


def test_missing_pictures_are_said(wrong_run):
    page = wrong_run(pictures=False)
    assert page.count("<section>") == 10 and "No pictures: " in page and "item 14" in page
    assert page.count("data:image/png;base64,") == 1


def test_missing_files_are_said(wrong_run, tmp_path):
    wrong_run()
    (tmp_path / "r.jsonl").unlink()
    report(tmp_path / "metrics.json")
    page = (tmp_path / "report.html").read_text()
    assert "No examples: " in page and "r.jsonl" in page and "<td>accuracy</td>" in page


def test_chart_shows_what_a_person_reads_in_a_minute():
    for benchmark in BENCHMARKS.values():
        figures = {name: Figure(0.5) for name in benchmark.charted}
        assert "accuracy" in figures and len(figures) <= 7


@pytest.mark.parametrize(
    ("content", "message"),
    [({"A": {"accuracy": 41.5}}, "41.5 is no fraction"), ([0.4], "must hold"), ({"A": 0.4}, "must")],
)
def test_bad_published_figures(scored, tmp_path, capsys, content, message):
    (tmp_path / "published.json").write_text(json.dumps(content))
    metrics = scored("mathverse")
    assert main(["report", "--metrics", str(metrics), "--reference", str(tmp_path / "published.json")]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"benchmark": "other"}', "no metrics file"),
        ('{"benchmark": "wemath", "total": 3}', "lacks accuracy, coverage, correct"),
        ({"accuracy": "half"}, "`accuracy` is 'half', which `score` does not write"),
        ({"settings": None}, "`settings` is None, which"),
        ({"files": []}, "`files` is [], which"),
    ],
)
def test_no_metrics_file(content, message, scored, tmp_path, capsys):
    if isinstance(content, dict):
        content = json.dumps(json.loads(scored("wemath").read_text()) | content)
    (tmp_path / "m.json").write_text(content)
    assert main(["report", "--metrics", str(tmp_path / "m.json"), "--output", str(tmp_path / "r.md")]) == 1
    assert message in capsys.readouterr().err


def test_published_figures_that_the_run_lacks_are_named(scored, tmp_path, recwarn):
    reference = tmp_path / "published.json"
    reference.write_text(json.dumps({"theirs": {"acuracy": 0.5, "rule": "official"}}))
    text = report(scored("mathvista"), "--reference", str(reference))
    assert "Not shown, since this run has no such figure: acuracy of theirs." in text
    assert not [warning for warning in recwarn if "legend" in str(warning.message)]
    reference.write_text(json.dumps({"theirs": {"accuracy": 0.5, "answer_type/text": 0.5}}))
    assert "Not shown" not in report(scored("mathvista"), "--reference", str(reference))
