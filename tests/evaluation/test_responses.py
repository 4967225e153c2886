"""responses.jsonl: appended, repaired, merged from ranks."""

import json

import pytest

from puma_trl.errors import EvaluationError
from puma_trl.evaluation.benchmarks import BENCHMARKS
from puma_trl.evaluation.responses import ResponseWriter, merge_ranks, rank_path, read_responses, repair_last_line

from .helpers import make_items, read_rows, write_rows


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"", b""),
        (b'{"id": 1}\n', b'{"id": 1}\n'),
        (b'{"id": 1}\n{"id": 2, "resp', b'{"id": 1}\n'),
        (b'{"id": 1}\n{"id": 2}', b'{"id": 1}\n{"id": 2}\n'),  # only the line break is missing
        (b'{"id": 1}\n7', b'{"id": 1}\n'),  # a number is no row
        (b'{"id": 1, "response": "\xc3', b""),  # torn inside a character
    ],
)
def test_last_line_is_repaired(content, kept, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    repair_last_line(path)
    assert path.read_bytes() == kept


def test_writer_continues_a_torn_file(tmp_path):
    path = tmp_path / "new" / "r.jsonl"
    with ResponseWriter(path) as writer:
        writer.write([{"id": 1, "response": "line\nbreak \u2028 é"}])
        assert path.read_bytes().endswith(b"\n")  # there before the file is closed
    with open(path, "ab") as file:
        file.write(b'{"id": 2, "res')
    with ResponseWriter(path) as writer:
        writer.write([{"id": 2, "response": ""}, {"id": 3, "response": None}])
    assert [row["id"] for row in read_rows(path)] == [1, 2, 3]
    assert read_rows(path)[0]["response"] == "line\nbreak \u2028 é"


def test_rows_are_on_disk_in_batches(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fsync", lambda handle: synced.append(handle))
    with ResponseWriter(tmp_path / "r.jsonl") as writer:
        for index in range(40):
            writer.write([{"id": index}])
        assert len(synced) == 2  # every 16 rows
    assert len(synced) == 3


def test_ranks_are_merged_without_loss(tmp_path):
    path = tmp_path / "r.jsonl"
    write_rows(path, [{"id": "1", "response": "a"}, {"id": "2", "response": "b"}])
    # rank 0 was merged before it could be deleted; rank 1 was killed inside a line
    write_rows(rank_path(path, 0), [{"id": "2", "response": "b"}, {"id": "3", "response": "c"}])
    rank_path(path, 1).write_text(json.dumps({"id": 4, "response": "d"}) + '\n{"id": 5,')
    merge_ranks(path)
    assert [(str(row["id"]), row["response"]) for row in read_rows(path)] == list(zip("1234", "abcd", strict=True))
    assert [file.name for file in tmp_path.iterdir()] == ["r.jsonl"]


def test_merging_nothing_changes_nothing(tmp_path):
    path = tmp_path / "r.jsonl"
    merge_ranks(path)
    assert not path.exists()


OFFICIAL = {
    # id column of the official result file, and what it calls a reply
    "mathverse": ("sample_index", "model_answer"),
    "mathvista": ("pid", "response"),
    "wemath": ("question number", "response"),
}


@pytest.mark.parametrize("benchmark", OFFICIAL)
@pytest.mark.parametrize("form", ["list", "keyed", "keyed without ids", "jsonl"])
def test_official_result_files(benchmark, form, tmp_path):
    column, reply = OFFICIAL[benchmark]
    items = make_items(benchmark)
    results = [item | {reply: f"Answer: {index}", "query": "?"} for index, item in enumerate(items)]
    results[1] |= {"extraction": "B", "prediction": "20 cm", "true_false": True}
    del results[2][reply]  # the model said nothing
    path = tmp_path / ("results.jsonl" if form == "jsonl" else "results.json")
    if form == "jsonl":
        write_rows(path, results)
    elif form == "list":
        path.write_text(json.dumps(results, indent=2))
    else:
        keyed = {str(row[column]): row for row in results}
        if form == "keyed without ids":
            keyed = {key: {name: row[name] for name in row if name != column} for key, row in keyed.items()}
        path.write_text(json.dumps(keyed, indent=2))
    rows = read_responses(path, BENCHMARKS[benchmark], items)
    assert list(rows) == [str(item[column]) for item in items]
    listed = list(rows.values())
    assert [row["response"] for row in listed[:4]] == ["Answer: 0", "Answer: 1", "", "Answer: 3"]
    assert listed[1]["extraction"] == "B"
    assert all(row.keys() <= {"id", "response", "extraction"} for row in listed)


def test_our_rows_may_be_a_json_list(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps([{"id": 1, "response": "a", "judgement": 1}]))
    rows = read_responses(path, BENCHMARKS["mathverse"], make_items("mathverse"))
    assert rows == {"1": {"id": 1, "response": "a", "judgement": 1}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (make_items("mathverse"), "row 0 .from 0.: the row has no `id`"),
        ({"1": "B"}, "key '1': str instead of an object"),
        ("B", "row 0 .from 0.: str instead"),
        ([{"sample_index": "99", "model_answer": "B"}], "1 ids are not in the MathVerse data: 99"),
        ([{"sample_index": "1", "model_answer": 5}], "`response` is 5"),
    ],
)
def test_files_without_results(content, message, tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(content))
    with pytest.raises(EvaluationError, match=message):
        read_responses(path, BENCHMARKS["mathverse"], make_items("mathverse"))
