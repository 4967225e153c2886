"""Every kind of file gives the same rows, in any division into chunks; broken files are named with the line."""

import errno
import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from puma_trl.data import files as data_files
from puma_trl.data.files import find_chunks, find_sources
from puma_trl.data.readers import BrokenRow, read_chunk
from puma_trl.errors import DataError

from .written import ROWS, read, write


KINDS = {
    "lines": ".jsonl",
    "lines, Windows": ".json",
    "list": ".json",
    "list, indented": ".jsonl",
    "list in an object": ".json",
    "list in an object, one line": ".json",
    "csv": ".csv",
    "parquet": ".parquet",
}


@pytest.mark.parametrize("chunk", [1, 40, 300, 1 << 20])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_the_kind_of_file_or_its_division(kind, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(data_files, "CHUNK_ROWS", max(1, chunk // 40))
    path = tmp_path / f"pairs{KINDS[kind]}"
    write(path, ROWS, kind)
    found = read(path)
    numbers = [source.row_id(number).removeprefix(path.name) for source, number, _ in found]
    if kind.startswith("lines"):
        assert numbers == [f":{line}" for line in range(1, 51)]
    elif kind == "csv":  # two lines each
        assert numbers == [f":{line}" for line in range(2, 102, 2)]
    else:
        assert numbers == [f"#{row}" for row in range(1, 51)]
    columns = ("image_url", "instruction", "output")
    assert [[row[name] for name in columns] for *_, row in found] == [[row[name] for name in columns] for row in ROWS]
    assert found[0][0].root == str(tmp_path) and found[0][0].name == path.name


def test_small_chunks_divide_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "CHUNK_BYTES", 300)
    for kind in ("lines", "list", "csv"):
        path = tmp_path / f"pairs{KINDS[kind]}"
        write(path, ROWS, kind)
        assert len(list(find_chunks(find_sources([str(path)], None, None, "train")))) > 5


def test_blank_lines_are_passed_over_and_keep_the_numbering(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('\n{"output": "a"}\n  \n\n{"output": "b"}')
    assert [(line, row["output"]) for _, line, row in read(path)] == [(2, "a"), (5, "b")]
    path = tmp_path / "pairs.csv"
    path.write_text('instruction,output\n\n"a\n\nb",c\n\nd,e')
    assert [(line, row["output"]) for _, line, row in read(path)] == [(3, "c"), (7, "e")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"output": "a"', "broken JSON: line 2: Expecting ',' delimiter"),
        (b'{"output": "a\0b"}', "broken JSON: line 2: NUL byte at position 13"),
        (b'{"output": "a\xff"}', "broken JSON: line 2: it is not UTF-8 text, but perhaps Latin-1"),
        (b'{"output": "a"} {}', "broken JSON: line 2: Extra data"),
        (b"output: a", "broken JSON: line 2: Expecting value"),
        (b'{"output": "a", "output": "b"}', "duplicate column: `output`"),
        (b'{"output": ' + b"[" * 100_000, "broken JSON: line 2: it is nested too deeply"),
        (b'{"output": ' + b"7" * 5000 + b"}", "broken JSON: line 2: Exceeds the limit (4300 digits)"),
    ],
)
def test_a_broken_line_is_one_broken_row(line, problem, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'{"output": "first"}\n' + line + b'\n{"output": "last"}\n')
    (_, _, first), (_, number, broken), (_, _, last) = read(path)
    assert (first["output"], last["output"], number) == ("first", "last", 2)
    assert isinstance(broken, BrokenRow) and broken.problem.startswith(problem)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('[\n{"a": 1},\n{"a" 1}\n]', 3, "Expecting ':' delimiter"),
        ('[\n{"a": 1}\n{"a": 1}\n]', 3, "a comma or the end of the list"),
        ('[\n{"a": 1},\n]', 3, "Expecting value"),
        ('[\n{"a": 1},\n{"a": "cut off', 3, "Unterminated string"),
        ('[\n{"a": 1},\n{"a": 1}\n', 4, "a comma or the end of the list"),
        ('[\n{"a": 1}\n]\n[]', 4, "text behind the end"),
        ('[\n{"a": "\0"}]', 2, "Invalid control character"),
        (b'[\n{"a": 1},\n\n{"a": "\xff"}]', 4, "not UTF-8"),
        ('[\n{"a": ' + "[" * 100_000, 2, "nested too deeply"),
        ('[\n{"a": ' + "7" * 5000 + "}]", 2, "Exceeds the limit"),
        ('{"v": 123456789,\n"d": [{"a": 1}\n{"a": 1}]}', 3, "a comma or the end of the list"),
        ('{"d": [{"a": 1}],\n"v" 1}', 2, "a colon is expected"),
        ('{"d": [{"a": 1}]\n"v": 1}', 2, "a comma or the end of the object"),
        ('{"d": [\n{"a": 1}]} {"d": 2}', 2, "text behind the end"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 10, 1 << 20])
def test_a_broken_list_names_file_and_line(text, line, reason, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "CHUNK_BYTES", chunk)
    path = tmp_path / "pairs.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=reason) as error:
        read(path)
    assert f"pairs.json' on line {line}:" in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{\n"instruction": "a",\n"output": "b"\n}', "with the keys `instruction`, `output`, not a list of rows"),
        ('{\n"a": "b"\n}\n{\n"a": "c"\n}', "one JSON object over several lines"),
        ('{\n"7": {"question": "a"},\n"8": {}}', "with the keys `7`, `8`"),
        ('{\n"messages": [{"role": "user", "content": "a"}]}', "with the keys `messages`"),
        ('{"train": [{"a": 1}], "test": [{"a": 2}]}', "several lists of rows, `train` and `test`"),
    ],
)
def test_an_object_that_is_no_list_says_what_it_is(text, reason, tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text(text)
    with pytest.raises(DataError, match=reason):
        read(path)


def test_one_line_may_be_a_row_with_a_list_of_objects(tmp_path):
    path = tmp_path / "pairs.json"
    for row in (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"image_url": [{"path": "a.png", "bytes": None}], "instruction": "a", "output": "b"},
    ):
        path.write_text(json.dumps(row))
        ((source, number, found),) = read(path)
        assert (source.kind, number, found) == ("lines", 1, row)


def test_a_first_line_that_is_broken_leaves_the_others(tmp_path):
    path = tmp_path / "pairs.jsonl"
    for broken in ('{"output": "a', '{"output":', '{"output": "a",', "{", '{"output": [1,', '{"output": {"a": 1'):
        path.write_text(broken + '\n{"output": "b"}\n{"output": "c"}\n')
        first, *rest = [row for *_, row in read(path)]
        assert isinstance(first, BrokenRow) and [row["output"] for row in rest] == ["b", "c"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"instruction,output,output\na,b,c\n", "column `output` more than once"),
        (b'instruction,output\na,"b"c\n', "on line 2: "),
        (b'instruction,output\na,b\n"a,b\n', "Broken csv .* on line 3: unexpected end of data"),
        (b"instruction,output\ra,b\r", "Broken csv .* on line 1: a line ends in CR alone. Repair"),
        (b"instruction,output\na,\xff\n", "is not UTF-8 text on line 2, but perhaps Latin-1"),
    ],
)
def test_a_broken_csv_file_is_an_error(content, reason, tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read(path)


def tear(path):
    write(path, ROWS, "parquet")
    path.write_bytes(path.read_bytes()[:-30])


def test_a_csv_row_with_other_fields_is_broken(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("instruction,output\na,b\na,b,c\n")
    assert read(path)[1][2].problem == "broken csv: the row has 3 fields, the header has 2"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_bytes(b"no parquet"), "cannot be read as parquet: it is not a parquet file"),
        (lambda path: path.write_bytes(b"PAR1 no parquet PAR1"), "cannot be read as parquet: "),
        (
            lambda path: path.write_bytes(gzip.compress(b"a", mtime=0)),
            "cannot be read as parquet: it is compressed by gzip",
        ),
        (lambda path: tear(path), "cannot be read as parquet: it is cut off"),
        (
            lambda path: pq.write_table(
                pa.Table.from_arrays([pa.array(["b"])] * 3, names=["output", "instruction", "output"]), path
            ),
            "cannot be read as parquet|more than once",
        ),
    ],
)
def test_a_broken_parquet_file_is_an_error(make, reason, tmp_path):
    path = tmp_path / "pairs.parquet"
    make(path)
    with pytest.raises(DataError, match=reason):
        read(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("{}".encode("utf-16-le"), "is not UTF-8 text"),
        (gzip.compress(b"{}", mtime=0), "is compressed by gzip"),
        (b"PK\x03\x04...", "is a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (b"<!doctype html><p>", "is a web page"),
        (b"PAR1...", "is a parquet file; name it .parquet"),
        (b"", "is empty. Pass a file with at least one row."),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_files_that_are_something_else_say_what_they_are(suffix, content, reason, tmp_path):
    path = tmp_path / f"pairs.{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"pairs.{suffix}' .*{reason}"):
        read(path)


def test_tables_are_divided_by_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "CHUNK_TABLE_BYTES", 10_000)
    sizes = [10] * 30 + [4000] * 10 + [30_000] + [10] * 5
    table = pa.table({"image_url": [bytes(size) for size in sizes], "instruction": ["a"] * 46, "output": ["b"] * 46})
    pq.write_table(table, tmp_path / "pairs.parquet", row_group_size=46)
    sources = find_sources([str(tmp_path / "pairs.parquet")], None, None, "train")
    chunks = list(find_chunks(sources))
    assert [chunk.start for chunk in chunks] == [0, *(chunk.end for chunk in chunks[:-1])] and chunks[-1].end == 46
    for chunk in chunks:
        assert chunk.end - chunk.start == 1 or sum(sizes[chunk.start : chunk.end]) <= 10_000
    assert len(chunks) < 15
    rows = [row for chunk in chunks for row in read_chunk(sources[0], chunk)]
    assert [number for number, _ in rows] == list(range(1, 47))
    assert [len(row["image_url"]) for _, row in rows] == sizes


def test_a_copy_of_a_table_that_was_cut_short_is_made_again(tmp_path):
    path = tmp_path / "pairs.parquet"
    write(path, ROWS, "parquet")
    assert len(read(path)) == 50
    (copy,) = (tmp_path / "cache").rglob("*.arrow")
    copy.write_bytes(copy.read_bytes()[:300])
    assert len(read(path)) == 50


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    write(tmp_path / "pairs.parquet", ROWS, "parquet")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DataError, match="could not be copied to .*: .*No space left on device. Make room there"):
        read(tmp_path / "pairs.parquet")
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_fields_of_csv_may_be_long(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("instruction,output\n" + "a" * 300_000 + ",b\n")
    ((_, _, row),) = read(path)
    assert len(row["instruction"]) == 300_000
