"""`score` from the command line: files, keys, coverage, carried extractions and judgements, bad input."""

import json
import subprocess
import sys

import pytest

from puma_trl.errors import ConfigError
from puma_trl.evaluation.__main__ import main

from .helpers import IDS, make_items, read_rows, verse_item, vista_item, wemath_group, write_rows


KEYS = ["benchmark", "items", "answered", "extraction", "judge", "prompt", "accuracy", "correct", "total"]


@pytest.fixture
def score(tmp_path, capsys):
    """Returns a function (benchmark, items, rows, *options) → (exit code, metrics, scored rows, stderr)."""

    def run(benchmark, items, rows, *options):
        data = tmp_path / "items.json"
        data.write_text(json.dumps(items))
        responses = write_rows(tmp_path / "responses.jsonl", rows)
        output = tmp_path / "out" / "metrics.json"
        files = ["--data", str(data), "--responses", str(responses), "--output", str(output)]
        code = main(["score", "--benchmark", benchmark, *files, *options])
        error = capsys.readouterr().err
        if not output.exists():
            return code, None, None, error
        return code, json.loads(output.read_text()), read_rows(output.with_name("scored.jsonl")), error

    return run


def right_rows(benchmark, items):
    replies = {"mathverse": "Answer: {}", "mathvista": "{}", "wemath": "Answer: {}"}
    return [{"id": item[IDS[benchmark]], "response": replies[benchmark].format(item["answer"])} for item in items]


@pytest.mark.parametrize("benchmark", IDS)
def test_whole_run(score, benchmark):
    items = make_items(benchmark)
    code, metrics, scored, error = score(benchmark, items, right_rows(benchmark, items))
    assert (code, error) == (0, "")
    assert all(key in metrics for key in KEYS)
    assert metrics["benchmark"] == benchmark
    assert metrics["items"] == metrics["answered"] == len(items)
    assert metrics["extraction"] == ("official" if benchmark == "wemath" else "final")
    assert (metrics["judge"], metrics["prompt"], metrics["partial"]) == ("exact", None, False)
    assert [row["id"] for row in scored] == [item[IDS[benchmark]] for item in items]
    assert all(list(row) == ["id", "extraction", "normalised", "answer", "correct"] for row in scored)
    expected = sum(item.get("problem_version") != "Text Only" for item in items)
    wrong = sum(not row["correct"] for row in scored)
    assert wrong == 0 and metrics["accuracy"] == 1.0
    assert metrics["total"] == expected


@pytest.mark.parametrize("form", ["json dict", "json list", "jsonl", "parquet"])
def test_data_files_as_published(form, tmp_path):
    import pyarrow
    from pyarrow import parquet

    items = [vista_item(1), vista_item(2, "free_form", "float", answer="1.2"), vista_item(3)]
    suffix = {"json dict": ".json", "json list": ".json"}.get(form, f".{form}")
    data = tmp_path / f"items{suffix}"
    if form == "json dict":
        data.write_text(json.dumps({item["pid"]: item for item in items}))
    elif form == "json list":
        data.write_text("\ufeff" + json.dumps(items), encoding="utf-8")
    elif form == "jsonl":
        write_rows(data, items)
    else:
        rows = [item | {"decoded_image": {"bytes": b"x", "path": None}} for item in items]
        parquet.write_table(pyarrow.Table.from_pylist(rows), data)
    responses = write_rows(
        tmp_path / "r.jsonl",
        [{"id": 1, "response": "20 cm"}, {"id": "2", "response": "1.24"}, {"id": "3", "response": "A"}],
    )
    output = tmp_path / "metrics.json"
    files = ["--data", str(data), "--responses", str(responses), "--output", str(output)]
    assert main(["score", "--benchmark", "mathvista", *files]) == 0
    metrics = json.loads(output.read_text())
    assert (metrics["correct"], metrics["total"], metrics["answered"]) == (2, 3, 3)
    assert metrics["groups"]["answer_type"]["float"]["accuracy"] == 1.0


def test_missing_response_is_wrong_and_an_empty_one_counts_as_answered(score):
    items = [verse_item(index) for index in range(1, 5)]
    rows = [{"id": "1", "response": "Answer: B"}, {"id": "2", "response": ""}, {"id": "3", "response": None}]
    _, metrics, scored, _ = score("mathverse", items, rows)
    assert (metrics["items"], metrics["answered"], metrics["coverage"]) == (4, 3, 0.75)
    assert (metrics["correct"], metrics["total"], metrics["empty"], metrics["partial"]) == (1, 4, 2, True)
    assert scored[3] == {"id": "4", "extraction": None, "normalised": None, "answer": "B", "correct": False}
    assert [row["correct"] for row in scored] == [True, False, False, False]


def test_empty_reply_follows_the_official_rule_only_if_asked(score):
    # the shortest option is the nearest to an empty extraction
    items = [vista_item(1, choices=["long one", "x"], answer="x"), vista_item(2)]
    rows = [{"id": "1", "response": ""}, {"id": "2", "response": "20 cm"}]
    _, metrics, scored, _ = score("mathvista", items, rows, "--extraction", "official")
    assert (scored[0]["extraction"], scored[0]["normalised"], scored[0]["correct"]) == ("", "x", True)
    _, metrics, scored, _ = score("mathvista", items, rows)
    assert (scored[0]["extraction"], scored[0]["normalised"], scored[0]["correct"]) == (None, None, False)
    assert (metrics["answered"], metrics["empty"], metrics["correct"]) == (2, 1, 1)


def test_carried_extractions_and_judgements(score):
    items = [vista_item(index) for index in range(1, 7)]
    items[2]["choices"] = ["7777777", "None of"]
    rows = [
        {"id": "1", "response": "20 cm", "extraction": "C"},  # taken, whatever the response says
        {"id": "2", "extraction": "(b)"},
        {"id": "3", "response": "B", "extraction": None},  # counts as given: "None"
        {"id": "4", "response": "A", "judgement": 1},
        {"id": "5", "response": "20 cm", "extraction": "B", "judgement": 0},
        {"id": "6", "judgement": 1},
    ]
    _, metrics, scored, _ = score("mathvista", items, rows, "--extraction", "official")
    assert [row["normalised"] for row in scored] == ["30 cm", "20 cm", "None of", "10 cm", "20 cm", "10 cm"]
    assert [row["correct"] for row in scored] == [False, True, False, True, False, True]
    assert scored[2]["extraction"] is None
    assert (metrics["given_extractions"], metrics["given_judgements"], metrics["extraction"]) == (4, 3, "official")


@pytest.mark.parametrize(("options", "name"), [((), "given"), (("--extraction", "math_puma"), "math_puma")])
def test_extractions_of_unknown_origin_are_called_given(score, options, name):
    _, metrics, _, _ = score("mathvista", [vista_item(1)], [{"id": "1", "extraction": "B"}], *options)
    assert (metrics["extraction"], metrics["correct"]) == (name, 1)


def test_text_only_rows_enter_text_only_alone(score):
    items = make_items("mathverse")
    _, metrics, _, _ = score("mathverse", items, right_rows("mathverse", items))
    assert (metrics["items"], metrics["answered"], metrics["total"]) == (11, 11, 9)
    assert metrics["text_only"] == {"Text Only": {"correct": 2, "total": 2, "accuracy": 1.0}}
    assert "Text Only" not in metrics["problem_version"]


def test_incomplete_wemath_run_withholds_four_dimensions(score):
    items = make_items("wemath")
    rows = right_rows("wemath", items)[:-1]
    code, metrics, _, error = score("wemath", items, rows)
    assert code == 0 and metrics["four_dimensional"] is None
    assert "1 of 10 items have no response" in error and "--allow_partial" in error
    assert (metrics["S1"], metrics["S2"], metrics["S3"]) == (1.0, 1.0, 0.0)
    code, metrics, _, error = score("wemath", items, rows, "--allow_partial")
    assert (code, error, metrics["partial"]) == (0, "", True)
    assert metrics["four_dimensional"]["strict"]["score"] == (2 + 0.5) / 3


def test_wemath_items_of_a_cut_group_stop(score):
    items = make_items("wemath")[:-1]
    code, metrics, _, error = score("wemath", items, right_rows("wemath", items))
    assert code == 1 and metrics is None and "3steps_1 lacks" in error
    code, metrics, _, _ = score("wemath", items, right_rows("wemath", items), "--allow_partial")
    assert code == 0 and metrics["partial"] and metrics["four_dimensional"]["strict"]["CM"]["count"] == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "1", "response": "B"}, {"id": 1, "response": "C"}], "line 2: the id 1 occurs a second time"),
        ([{"id": "1", "response": "B"}, {"id": "77", "response": "C"}, {"id": "x", "response": ""}], "77, x"),
        ([{"response": "B"}], "line 1: the row has no `id`"),
        ([{"id": "1"}], "neither `response` nor"),
        ([{"id": "1", "response": 5}], "`response` is 5"),
        ([{"id": "1", "response": "B", "judgement": 2}], "`judgement` is 2"),
        ([{"id": "1", "response": "B", "judgement": "1"}], "`judgement` is '1'"),
        ([{"id": "1", "response": "B", "judgement": None}], "`judgement` is None"),
        ([{"id": "1", "response": "B", "judgement": True}], "`judgement` is True"),
    ],
)
def test_bad_responses_are_named(score, rows, message):
    code, metrics, _, error = score("mathverse", [verse_item(1), verse_item(2)], rows)
    assert code == 1 and metrics is None
    assert message in error and error.startswith("error: ")


@pytest.mark.parametrize(
    ("benchmark", "items", "message"),
    [
        ("mathverse", [], "holds no items"),
        ("mathverse", [{"sample_index": "1"}], "item 0 (from 0) lacks the column problem_version"),
        ("mathverse", [verse_item(1), verse_item(1, "Text Only")], "testmini and testmini_text_only"),
        ("mathverse", [verse_item(1, answer=None)], "`answer` is null"),
        ("mathvista", [vista_item(1), vista_item(1)], "`pid` occur more than once, such as 1"),
        ("mathvista", [vista_item(1, choices=[])], "`choices`"),
        ("mathvista", [vista_item(1, choices=[1, 2])], "`choices` is [1, 2], but it must be a list of texts"),
        ("mathvista", [vista_item(1, answer=14)], "item 0 (from 0): `answer` is 14, but it must be text"),
        ("mathverse", [verse_item(1, answer=float("nan"))], "`answer` is nan, but it must be text"),
        ("mathverse", [verse_item(1, question_for_eval=5)], "`question_for_eval` is 5, but it must be text"),
        ("mathvista", {"2": vista_item(1)}, "under key '2'"),
        ("mathvista", [1, 2], "list of objects"),
        ("wemath", wemath_group(1, 2, 1) + wemath_group(2, 2, 1), "`question number` occur more than once"),
    ],
)
def test_bad_items_are_named(score, benchmark, items, message):
    code, metrics, _, error = score(benchmark, items, [])
    assert code == 1 and metrics is None
    assert message in error


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.jsonl", b'{"id": "1", "response": "caf\xe9"}\n', "line 1: byte 0xe9 is not UTF-8"),
        ("r.jsonl", b'{"id": "1", "response": "B"}\n{"id": "2", "resp', "line 2: not valid JSON"),
        ("r.jsonl", b"[1]\n", "expected a JSON object, not list"),
        ("items.json", b'{"1": {}, "1": {}}', "the key '1' occurs twice"),
        ("items.json", b"[{]", "line 1: not valid JSON"),
        ("items.json", b"[" * 100_000, "line 1: JSON that cannot be read, with brackets too deep"),
        ("r.jsonl", b"\n" + b"[" * 100_000, "line 2: JSON that cannot be read, with brackets too deep"),
        ("r.jsonl", b'{"id": %s}\n' % (b"9" * 5_000), "line 1: JSON that cannot be read, with a number of too many"),
        ("r.settings.json", b"null", "must hold an object of settings"),
        ("items.parquet", b"PAR?", "not a readable parquet"),
        ("absent.json", None, "There is no file"),
    ],
)
def test_broken_files_are_named(name, content, message, tmp_path, capsys):
    files = {"items.json": json.dumps([verse_item(1)]).encode(), "r.jsonl": b'{"id": "1", "response": "B"}\n'}
    files |= {} if content is None else {name: content}
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
    data = name if name.endswith((".json", ".parquet")) and "settings" not in name else "items.json"
    options = ["--data", str(tmp_path / data), "--responses", str(tmp_path / "r.jsonl")]
    assert main(["score", "--benchmark", "mathverse", *options, "--output", str(tmp_path / "m.json")]) == 1
    assert message in capsys.readouterr().err


def test_a_missing_column_is_named_once(score):
    item = vista_item(1)
    del item["precision"]
    _, _, _, error = score("mathvista", [item], [], "--extraction", "official")
    assert error.count("precision") == 1 and "lacks the column precision." in error


def test_text_only_alone_reports_its_figure(score, capsys):
    items = [verse_item(1, "Text Only"), verse_item(2, "Text Only")]
    code, metrics, _, _ = score("mathverse", items, [{"id": "1", "response": "B"}, {"id": "2", "response": "A"}])
    assert code == 0 and (metrics["accuracy"], metrics["correct"], metrics["total"]) == (0.5, 1, 2)


def test_unknown_benchmark():
    with pytest.raises(ConfigError, match="Did you mean `mathverse`"):
        main(["score", "--benchmark", "mathvers", "--responses", "r.jsonl"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--llm", "judge", "--extraction", "official"], "score asks --llm only with --judge openai"),
        (["--max_failures", "nan"], "--max_failures is nan"),
        (["--max_failures", "-1"], "--max_failures is -1"),
        (["--max_failures", "2"], "--max_failures is 2"),
    ],
)
def test_options_that_would_not_be_used_as_given_stop(options, message, tmp_path, capsys):
    data = tmp_path / "items.json"
    data.write_text(json.dumps(make_items("mathverse")))
    responses = write_rows(tmp_path / "r.jsonl", [{"id": "1", "response": "B"}])
    files = ["--data", str(data), "--responses", str(responses), "--output", str(tmp_path / "m.json")]
    assert main(["score", "--benchmark", "mathverse", *files, *options]) == 1
    assert message in capsys.readouterr().err


def test_a_file_without_responses_is_not_scored(tmp_path, capsys):
    data = tmp_path / "items.json"
    data.write_text(json.dumps(make_items("mathverse")))
    for name, content in (("r.jsonl", ""), ("r.json", "[]"), ("empty.json", "{}")):
        (tmp_path / name).write_text(content)
        files = ["--data", str(data), "--responses", str(tmp_path / name), "--output", str(tmp_path / "m.json")]
        assert main(["score", "--benchmark", "mathverse", *files]) == 1
        assert f"{name} holds no responses" in capsys.readouterr().err


def test_judge_is_for_mathverse(score):
    code, _, _, error = score("wemath", make_items("wemath"), [], "--judge", "math_verify")
    assert code == 1 and "is for MathVerse" in error


def test_math_verify_judges_what_is_no_exact_match(score):
    free = {"question_type": "free-form"}
    items = [
        verse_item(1, answer="0.5", **free),
        verse_item(2, answer="0.5", **free),
        verse_item(3, answer="(C)"),
        verse_item(4, answer="C"),
        verse_item(5, answer="2", **free),
        verse_item(6, answer="x", **free),
    ]
    rows = [
        {"id": "1", "extraction": "1/2"},
        {"id": "2", "extraction": "0.6"},
        {"id": "3", "extraction": "C"},
        {"id": "4", "extraction": "A: 10"},
        {"id": "5", "extraction": "\\frac{4}{2}", "judgement": 0},
        {"id": "6", "extraction": ""},
    ]
    _, metrics, scored, _ = score("mathverse", items, rows, "--judge", "math_verify")
    assert [row["correct"] for row in scored] == [True, False, True, False, False, False]
    assert metrics["judge"] == "math_verify" and metrics["judge_settings"]["judged"] == 4
    _, metrics, scored, _ = score("mathverse", items, rows)
    assert not any(row["correct"] for row in scored)


def test_extract_then_score_equals_score(tmp_path):
    items = [vista_item(1), vista_item(2), vista_item(3, "free_form", "integer"), vista_item(4, choices=["y", "Nona"])]
    replies = ["The answer is (B).", "no idea", "So 14 in all", ""]
    data, responses = tmp_path / "items.json", tmp_path / "responses.jsonl"
    data.write_text(json.dumps(items))
    write_rows(responses, [{"id": str(index + 1), "response": reply} for index, reply in enumerate(replies)])
    common = ["--benchmark", "mathvista", "--data", str(data)]
    extracted = tmp_path / "E.jsonl"
    assert main(["extract", *common, "--responses", str(responses), "--output", str(extracted)]) == 0
    rows = read_rows(extracted)
    assert rows[0] == {"id": "1", "response": "The answer is (B).", "extraction": "B"}
    assert [row["extraction"] for row in rows] == ["B", None, "14", None]
    results = []
    for name, source in (("direct", responses), ("steps", extracted)):
        assert main(["score", *common, "--responses", str(source), "--output", str(tmp_path / name / "m.json")]) == 0
        metrics = json.loads((tmp_path / name / "m.json").read_text())
        assert metrics["extraction"] == "final"
        results.append((metrics["groups"], (tmp_path / name / "scored.jsonl").read_text()))
    assert results[0] == results[1]


@pytest.mark.slow
def test_full_size_scoring(tmp_path):
    groups = [wemath_group(n, 2, 3 * n - 2) for n in range(1, 361)]
    groups += [wemath_group(n, 3, 1081 + 4 * (n - 1)) for n in range(1, 166)]
    items = {
        "wemath": sum(groups, []),
        "mathvista": [vista_item(n, choices=["word " * 8] * 4) for n in range(1, 1001)],
    }
    for benchmark, rows in items.items():
        data = tmp_path / f"{benchmark}.json"
        data.write_text(json.dumps(rows))
        replies = [{"id": row[IDS[benchmark]], "response": "I think Answer: " + "word " * 20} for row in rows]
        responses = write_rows(tmp_path / f"{benchmark}.jsonl", replies)
        files = ["--data", str(data), "--responses", str(responses), "--output", str(tmp_path / "m.json")]
        command = [sys.executable, "-m", "puma_trl.evaluation", "score", "--benchmark", benchmark, *files]
        subprocess.run(command, check=True, capture_output=True)
        metrics = json.loads((tmp_path / "m.json").read_text())
        assert metrics["total"] == metrics["answered"] == len(rows)


def test_scoring_imports_no_heavy_library(tmp_path):
    data = tmp_path / "items.json"
    data.write_text(json.dumps([verse_item(1)]))
    responses = write_rows(tmp_path / "r.jsonl", [{"id": "1", "response": "B"}])
    options = ["--data", str(data), "--responses", str(responses), "--output", str(tmp_path / "m.json")]
    code = (
        "import sys\nfrom puma_trl.evaluation.__main__ import main\n"
        f"assert main({['score', '--benchmark', 'mathverse', *options]!r}) == 0\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'pandas', 'openai', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
