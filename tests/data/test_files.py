"""Every kind of file gives the same rows, in any division into chunks; broken files are named with the line."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from puma_trl.data import files as data_files
from puma_trl.data.files import BrokenRow, find_chunks, find_sources, read_chunk
from puma_trl.errors import DataError


ROWS = [
    {
        "image_url": None if index % 3 else f"{index}.png",
        "instruction": f'Größe {index}, "x"\u2028\n{{[α]}}, ]' + "ß" * (index % 7),
        "output": f"= {index} €\\",
        "extra": str(index),
    }
    for index in range(50)
]


def write(path, rows, kind):
    if kind == "lines":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif kind == "lines, Windows":
        lines = "\r\n".join(json.dumps(row) for row in rows)
        path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    elif kind == "list":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    elif kind == "list, indented":
        path.write_text("\ufeff \n" + json.dumps(rows, indent=2) + "\n\n", encoding="utf-8")
    elif kind == "csv":
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)


KINDS = {
    "lines": ".jsonl",
    "lines, Windows": ".json",
    "list": ".json",
    "list, indented": ".jsonl",
    "csv": ".csv",
    "parquet": ".parquet",
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def read(name):
    (source,) = find_sources([str(name)], None, None, "train")
    return [(source, index, row) for chunk in find_chunks([source]) for index, row in read_chunk(source, chunk)]


@pytest.mark.parametrize("chunk", [1, 40, 300, 1 << 20])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_the_kind_of_file_or_its_division(kind, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(data_files, "CHUNK_ROWS", max(1, chunk // 40))
    path = tmp_path / f"pairs{KINDS[kind]}"
    write(path, ROWS, kind)
    found = read(path)
    assert [index for _, index, _ in found] == list(range(len(ROWS)))
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
    assert [(index, row["output"]) for _, index, row in read(path)] == [(1, "a"), (4, "b")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"output": "a"', "broken JSON: line 2: Expecting ',' delimiter"),
        (b'{"output": "a\0b"}', "broken JSON: line 2: NUL byte at position 13"),
        (b'{"output": "a\xff"}', "broken JSON: line 2: 'utf-8' codec can't decode"),
        (b'{"output": "a"} {}', "broken JSON: line 2: Extra data"),
        (b"output: a", "broken JSON: line 2: Expecting value"),
        (b'{"output": "a", "output": "b"}', "duplicate column: `output`"),
    ],
)
def test_a_broken_line_is_one_broken_row(line, problem, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'{"output": "first"}\n' + line + b'\n{"output": "last"}\n')
    (_, _, first), (_, index, broken), (_, _, last) = read(path)
    assert (first["output"], last["output"], index) == ("first", "last", 1)
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
    ("content", "reason"),
    [
        (b"instruction,output,output\na,b,c\n", "column `output` more than once"),
        (b"question,output\na,b\n", "no column `instruction`. Its columns are: question, output"),
        (b'instruction,output\na,"b"c\n', "on line 2: "),
        (b'instruction,output\na,b\n"a,b\n', "Broken csv .* on line 3: unexpected end of data"),
        (b"instruction,output\na,\xff\n", "Broken csv .* on line 2: 'utf-8'"),
    ],
)
def test_a_broken_csv_file_is_an_error(content, reason, tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read(path)


def test_a_csv_row_with_other_fields_is_broken(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("instruction,output\na,b\na,b,c\n")
    assert read(path)[1][2].problem == "broken csv: the row has 3 fields, the header has 2"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_bytes(b"no parquet"), "cannot be read as parquet"),
        (lambda path: pq.write_table(pa.table({"a": ["b"]}), path), "no column `instruction` and no column `output`"),
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


def test_folders_give_their_files_in_order_and_equal_names_their_paths(tmp_path):
    for folder in ("b", "a"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "pairs.jsonl", ROWS[:1], "lines")
    write(tmp_path / "a" / "more.csv", ROWS[:1], "csv")
    (tmp_path / "a" / "picture.png").touch()
    sources = find_sources([str(tmp_path)], None, None, "train")
    paths = [str(tmp_path / name) for name in ("a/more.csv", "a/pairs.jsonl", "b/pairs.jsonl")]
    assert [source.path for source in sources] == paths
    assert [source.name for source in sources] == ["more.csv", *paths[1:]]


def test_a_folder_gives_no_rows_that_were_dropped_before(tmp_path):
    for name in ("dropped_rows.jsonl", "train.jsonl"):
        write(tmp_path / name, ROWS[:1], "lines")
    (source,) = find_sources([str(tmp_path)], None, None, "train")
    assert source.name == "train.jsonl"
    (source,) = find_sources([str(tmp_path / "dropped_rows.jsonl")], None, None, "train")
    assert source.name == "dropped_rows.jsonl"


@pytest.mark.parametrize("name", ["nothing.jsonl", "./nothing", "/nothing/here", "a/b/c"])
def test_a_missing_file_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"The data file '{name}' does not exist"):
        find_sources([name], None, None, "train")


@pytest.mark.parametrize("several", [False, True])
def test_a_folder_of_save_to_disk_is_an_error(tmp_path, several):
    dataset = Dataset.from_list(ROWS)
    (DatasetDict({"train": dataset}) if several else dataset).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"saved' was written by `save_to_disk`.*to_parquet"):
        find_sources([str(tmp_path / "saved")], None, None, "train")


def test_folders_and_files_without_data_are_errors(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match="has no .json, .jsonl, .csv, .parquet file"):
        find_sources([str(tmp_path)], None, None, "train")
    with pytest.raises(DataError, match="notes.txt' is no data file"):
        find_sources([str(tmp_path / "notes.txt")], None, None, "train")


def test_hub_data_sets_go_through_load_dataset(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr(data_files, "load_dataset", load_dataset)
    (source,) = find_sources(["owner/pairs"], None, "hard", "test")
    assert asked == [(("owner/pairs", "hard"), {"split": "test"})]
    assert (source.name, source.root) == ("owner/pairs", None)
    (chunk,) = find_chunks([source])
    rows = [row for _, row in read_chunk(source, chunk)]
    assert [row["output"] for row in rows] == [row["output"] for row in ROWS]


def test_a_hub_data_set_that_cannot_be_had_is_an_error(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(data_files, "load_dataset", load_dataset)
    with pytest.raises(DataError, match="'owner/pairs' is no file or folder here, .* no network"):
        find_sources(["owner/pairs"], None, None, "train")
