"""What the names of datasets lead to: files, folders and datasets of the Hub, and what is refused of them."""

import gzip
import os
import socket

import pytest
from datasets import Dataset, DatasetDict

from puma_trl.data import files as data_files
from puma_trl.data.files import find_chunks, find_sources
from puma_trl.data.readers import read_chunk
from puma_trl.errors import DataError

from .written import ROWS, write


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_path_is_no_folder(name):
    with pytest.raises(DataError, match="is an empty path"):
        find_sources([name], None, None, "train")


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


def test_hidden_files_and_folders_are_not_read(tmp_path):
    for name in ("data/a.jsonl", "data/.b.jsonl", "data/.ipynb_checkpoints/a.jsonl", "data/__MACOSX/a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, ROWS[:1], "lines")
    (source,) = find_sources([str(tmp_path / "data")], None, None, "train")
    assert source.name == "a.jsonl"
    (source,) = find_sources([str(tmp_path / "data" / ".ipynb_checkpoints")], None, None, "train")  # named itself
    assert source.path.endswith(".ipynb_checkpoints/a.jsonl")


def test_the_same_file_twice_is_an_error(tmp_path):
    path, folder = tmp_path / "a.jsonl", tmp_path / "folder"
    folder.mkdir()
    write(path, ROWS[:1], "lines")
    (folder / "link.jsonl").symlink_to(path)
    for names in ([path, path], [path, f"{tmp_path}/./a.jsonl"], [folder, path], [tmp_path]):
        with pytest.raises(DataError, match="are the same data, which would be read twice"):
            find_sources([str(name) for name in names], None, None, "train")
    assert len(find_sources([str(folder)], None, None, "train")) == 1


def test_folders_behind_links_are_read_once(tmp_path):
    for name in ("real", "data"):
        (tmp_path / name).mkdir()
    write(tmp_path / "real" / "a.jsonl", ROWS[:1], "lines")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "real")
    (source,) = find_sources([str(tmp_path / "data")], None, None, "train")
    assert source.name == "a.jsonl"
    (tmp_path / "real" / "back").symlink_to(tmp_path / "data")
    with pytest.raises(DataError, match="are the same data"):
        find_sources([str(tmp_path / "data")], None, None, "train")


def test_pipes_devices_and_lost_links_are_refused_unopened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "device.jsonl").symlink_to("/dev/zero")
    (tmp_path / "lost.jsonl").symlink_to(tmp_path / "nothing.jsonl")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jsonl"))
        for name in ("pipe", "device", "socket"):
            with pytest.raises(DataError, match=f"{name}.jsonl' is a {name}, not a file"):
                find_sources([str(tmp_path / f"{name}.jsonl")], None, None, "train")
    with pytest.raises(DataError, match="lost.jsonl' is a link to a file that does not exist"):
        find_sources([str(tmp_path / "lost.jsonl")], None, None, "train")
    with pytest.raises(DataError, match="is a (pipe|device|socket|link)"):
        find_sources([str(tmp_path)], None, None, "train")
    with pytest.raises(DataError, match="'/dev/null' is a device"):
        find_sources(["/dev/null"], None, None, "train")


def test_compressed_files_are_refused_in_folders_too(tmp_path):
    write(tmp_path / "a.jsonl", ROWS[:1], "lines")
    (tmp_path / "pictures.zip").touch()
    assert len(find_sources([str(tmp_path)], None, None, "train")) == 1
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"{}", mtime=0))
    for name in (tmp_path, tmp_path / "b.jsonl.gz"):
        with pytest.raises(DataError, match="b.jsonl.gz' is compressed"):
            find_sources([str(name)], None, None, "train")


@pytest.mark.parametrize("name", ["b.tsv", "below/b.ndjson", "b.arrow"])
def test_rows_in_other_files_of_a_folder_are_not_passed_over(name, tmp_path):
    write(tmp_path / "a.jsonl", ROWS[:1], "lines")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=f"{name}' would not be read. Write it as .json, .jsonl, .csv, .parquet"):
        find_sources([str(tmp_path)], None, None, "train")


@pytest.mark.parametrize("name", ["https://host/pairs.jsonl", "hf://datasets/a/b/c.parquet", "file:///a.jsonl"])
def test_addresses_are_refused_by_what_they_are(name):
    with pytest.raises(DataError, match=f"'{name}' is an address"):
        find_sources([name], None, None, "train")


@pytest.mark.parametrize("name", ["nothing.jsonl", "./nothing", "/nothing/here", "a/b/c"])
def test_a_missing_file_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"No such file: '{name}'"):
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
    with pytest.raises(DataError, match="Unsupported file type '.txt' of '.*notes.txt'. Expected .json"):
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
    assert source.row_id(3) == "owner/pairs#3"
    assert [row["output"] for row in rows] == [row["output"] for row in ROWS]


def test_a_hub_data_set_that_cannot_be_had_is_an_error(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(data_files, "load_dataset", load_dataset)
    with pytest.raises(DataError, match="No such file or folder: 'owner/pairs'; .* no network"):
        find_sources(["owner/pairs"], None, None, "train")


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train.jsonl", "test.jsonl"), ("train", "test")),
        (("train-00000-of-00001.parquet.jsonl", "validation-00000-of-00001.jsonl"), ("train", "validation")),
        (("train/a.jsonl", "val/a.jsonl"), ("train", "validation")),
        (("test.jsonl", "dev.jsonl"), ("test", "validation")),
        (("a.jsonl", "heldout.jsonl", "train.jsonl"), ("train", "validation")),
        (("holdout.jsonl", "train.jsonl"), ("train", "validation")),
        (("train.jsonl", "held-out.jsonl"), ("train", "validation")),
        (("train2014.jsonl", "minival2014.jsonl"), ("train", "validation")),
        (("geo3k_train.jsonl", "geo3k_testmini.jsonl"), ("train", "test")),
    ],
)
def test_folder_with_several_splits(tmp_path, names, splits):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"instruction": "a", "output": "b"}\n')
    with pytest.raises(DataError, match=f"has several splits, .*{splits[0]}.*{splits[1]}|{splits[1]}.*{splits[0]}"):
        find_sources([str(tmp_path)], None, None, "train")
    assert len(find_sources([str(tmp_path / name) for name in names], None, None, "train")) == len(names)


@pytest.mark.parametrize(
    "names",
    [
        ("train-0.jsonl", "train-1.jsonl"),
        ("a.jsonl", "testament.jsonl"),
        ("val.jsonl",),
        ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"),
        ("a-01-of-02.jsonl", "a-02-of-02.jsonl"),
    ],
)
def test_folder_of_one_split(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text('{"instruction": "a", "output": "b"}\n')
    assert len(find_sources([str(tmp_path)], None, None, "train")) == len(names)


def test_hard_link_is_the_same_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (tmp_path / "b.jsonl").hardlink_to(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="are the same data, which would be read twice"):
        find_sources([str(tmp_path)], None, None, "train")


def test_dataset_with_a_transform():
    dataset = Dataset.from_list([{"instruction": "a", "output": "b"}])
    dataset.set_transform(lambda batch: {"instruction": ["changed"], "output": ["b"]})
    with pytest.raises(DataError, match="`set_transform`"):
        data_files.table_source(dataset, "train", None)


def test_columns_that_a_dataset_hides():
    dataset = Dataset.from_list([{"instruction": "a", "output": "b", "input": "hidden"}])
    source = data_files.table_source(dataset.with_format(columns=["instruction", "output"]), "train", None)
    assert source.table.column_names == ["instruction", "output"]
    shown = dataset.with_format("numpy", columns=["output"], output_all_columns=True)
    assert data_files.table_source(shown, "train", None).table.column_names == dataset.column_names


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["train-00000-of-00002.jsonl"], "train-00001-of-00002.jsonl"),
        (["train-00001-of-00003.jsonl", "train-00002-of-00003.jsonl"], "train-00000-of-00003.jsonl"),
        (["a_02_of_02.jsonl"], "a_01_of_02.jsonl"),
    ],
)
def test_folder_without_a_file_of_several(tmp_path, names, missing):
    for name in names:
        (tmp_path / name).write_text('{"instruction": "a", "output": "b"}\n')
    with pytest.raises(DataError, match=f"lacks 1 of . files of a dataset, the first being '{missing}'"):
        find_sources([str(tmp_path)], None, None, "train")
    assert len(find_sources([str(tmp_path / name) for name in names], None, None, "train")) == len(names)


def test_facts_on_a_dataset_beside_its_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    for name in ("dataset_info.json", "dataset_infos.json", "state.json"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_text('{"features": {}}')
    assert len(find_sources([str(tmp_path)], None, None, "train")) == 1
