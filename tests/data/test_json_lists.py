"""JSON objects with a list of rows: what stands beside it is never lost."""

import json

import pytest

from puma_trl.errors import DataError

from .test_files import read


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
