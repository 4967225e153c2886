"""JSON objects with a list of rows: what stands beside it is never lost."""

import json

import pytest

from puma_trl.data import files as data_files
from puma_trl.errors import DataError

from .written import read


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"image": "p0.png", "context": "c"}, "`image`, `context`"),
        ({"system": "Answer in French."}, "`system`"),
        ({"test": {"a": 1}}, "`test`"),
        ({"answers": [7], "version": 2}, "`answers`"),
        ({"image_root": "x", "prompt_template": "y"}, "`image_root`, `prompt_template`"),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_what_stands_beside_the_list_of_rows_is_named(more, named, indent, tmp_path):
    path = tmp_path / "pairs.json"
    for facts in (more | {"data": [{"q": "a"}]}, {"data": [{"q": "a"}]} | more):
        path.write_text(json.dumps(facts, indent=indent))
        with pytest.raises(DataError, match=f"rows in `data`, and beside them {named}, which would not be read"):
            read(path)
    path.write_text(json.dumps(dict.fromkeys(more) | {"data": [{"q": "a"}]}, indent=indent))
    assert [row for *_, row in read(path)] == [{"q": "a"}]


def test_an_object_of_json_lines_is_a_row(tmp_path):
    path = tmp_path / "pairs.jsonl"
    row = {"image": "p0.png", "qas": [{"q": "a"}]}
    path.write_text(json.dumps(row))
    assert [found for *_, found in read(path)] == [row]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_rows_that_are_keyed_by_id(indent, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "CHUNK_BYTES", chunk)
    path = tmp_path / "pairs.json"
    rows = {"7": {"q": 'a"}, {', "n": 1.50}, "ä: [": {"q": "b", "more": [{}]}, "9": {"q": "c", "id": "own"}}
    path.write_text(json.dumps(rows, indent=indent))
    found = list(read(path))
    assert [row for *_, row in found] == [{"id": key} | row for key, row in rows.items()]
    assert [number for _, number, _ in found] == [1, 2, 3]


def test_keys_that_come_twice_are_rows_all_the_same(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text('{\n"7": {"q": "a"},\n"7": {"q": "b", "q": "c"}}')
    (_, _, first), (_, _, second) = read(path)
    assert first == {"id": "7", "q": "a"} and second.problem.startswith("duplicate column: `q`")


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("more", [{}, 5, "x", {"other": 1}])
def test_objects_of_several_shapes_are_not_rows(more, indent, tmp_path):
    path = tmp_path / "pairs.json"
    content = {"7": {"q": "a"}, "8": more}
    path.write_text(json.dumps(content, indent=indent))
    if indent is None:
        assert [row for *_, row in read(path)] == [content]  # a row of JSON lines
    else:
        with pytest.raises(DataError, match="one JSON object over several lines, with the keys `7`, `8`"):
            read(path)


@pytest.mark.parametrize("indent", [None, 1])
def test_a_file_by_columns_is_not_keyed(indent, tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps({"question": {"0": "a"}, "answer": {"0": "b"}}, indent=indent))
    if indent is None:
        assert len(read(path)) == 1
    else:
        with pytest.raises(DataError, match="with the keys `question`, `answer`"):
            read(path)
