"""Numbers as questions and answers are read as they stand in the file, or as the table shows them."""

from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from puma_trl.data.files import find_chunks, find_sources
from puma_trl.data.forms import find_forms
from puma_trl.data.numbers import find_readers, number_to_text, write_json
from puma_trl.data.readers import read_chunk
from puma_trl.data.rows import read_row


WRITTEN = ["3.30", "1e2", "0.00001", "3.14159265358979323846", "-0.0", "17", "12345678901234567890", "1E-3", "1e400"]


def read(path):
    """Reads the rows of a file, as they stand there and as they are trained on."""
    (source,) = find_forms(find_sources([str(path)], None, None, "train"))
    raw = [row for chunk in find_chunks([source]) for _, row in read_chunk(source, chunk)]
    return raw, [read_row(row, source.root, source.form) for row in raw]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_numbers_of_json_are_read_as_they_are_written(tmp_path, name):
    rows = [f'{{"question": {text}, "answer": {text}}}' for text in WRITTEN]
    content = "\n".join(rows) if name.endswith("l") else f"[{', '.join(rows)}]"
    (tmp_path / name).write_text(content)
    raw, read_rows = read(tmp_path / name)
    assert [row["output"] for row in read_rows] == WRITTEN == [row["instruction"] for row in read_rows]
    assert [write_json(row) for row in raw] == rows


def test_numbers_inside_of_conversations(tmp_path):
    row = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": 3.30}]}'
    (tmp_path / "a.jsonl").write_text(row)
    assert read(tmp_path / "a.jsonl")[1][0]["output"] == "3.30"


def test_numbers_of_tables_are_read_as_they_are_shown(tmp_path):
    columns = {
        "question": pa.array([0.1, 2.5], pa.float32()),
        "answer": pa.array([Decimal("3.30"), Decimal("0.10")], pa.decimal128(5, 2)),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    _, rows = read(tmp_path / "a.parquet")
    assert [(row["instruction"], row["output"]) for row in rows] == [("0.1", "3.30"), ("2.5", "0.10")]


def test_names_of_classes(tmp_path):
    features = Features({"question": Value("string"), "answer": ClassLabel(names=["acute", "obtuse"])})
    Dataset.from_dict({"question": ["a", "b"], "answer": [1, 0]}, features=features).to_parquet(tmp_path / "a.parquet")
    assert [row["output"] for row in read(tmp_path / "a.parquet")[1]] == ["obtuse", "acute"]


def test_values_inside_of_columns():
    kind = ClassLabel(names=["acute", "obtuse"])
    readers = find_readers(Features({"a": List({"share": Value("float16"), "kind": kind, "text": Value("string")})}))
    rows = [{"share": 0.0999755859375, "kind": 1, "text": "b"}, {"share": None, "kind": -1, "text": None}]
    expected = [{"share": 0.1, "kind": "obtuse", "text": "b"}, {"share": None, "kind": -1, "text": None}]
    assert readers["a"](rows) == expected
    assert readers["a"](None) is None
    assert find_readers(Features({"b": {"c": Value("int64")}, "d": List(Value("float64"))})) == {}


def test_what_is_no_number():
    for value in (True, None, "1", float("nan"), [1]):
        assert number_to_text(value) is value
