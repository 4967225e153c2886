"""Rows that were cut short in the cache are checked again, a full disk is named, and one process does the work."""

import errno
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from datasets.arrow_writer import ArrowWriter
from PIL import Image

from puma_trl.config import PumaKLConfig, PumaScriptArguments
from puma_trl.data import cache
from puma_trl.data.cache import fill_first, read_or_make
from puma_trl.data.images import image_stamp
from puma_trl.data.load import load_data
from puma_trl.errors import DataError
from puma_trl.models.families.qwen import QWEN_VL


@pytest.fixture
def load(tmp_path, processor):
    rows = [{"instruction": f"a{index}", "output": "b"} for index in range(20)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def load():
        options = {"use_kl": False, "allow_text_only": True, "max_length": None}
        args = PumaKLConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, report_to=[], **options)
        data = PumaScriptArguments(dataset_name=[str(tmp_path / "text.jsonl")])
        return load_data(data, args, processor, QWEN_VL)[0]["train"]["instruction"][:]

    return load


@pytest.mark.parametrize("part", [0, 0.5, 0.97])
def test_files_that_were_cut_short_are_made_again(part, load, tmp_path):
    expected = load()
    files = list((tmp_path / "cache").rglob("*.arrow"))
    assert len(files) == 2  # where the rows stand, and the rows
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * part)])
        assert load() == load() == expected


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), ValueError("I/O operation on closed file.")], ids=repr
)
def test_a_full_disk_is_named(error, load, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(ArrowWriter, "write_table", fail)
    with pytest.raises(DataError, match=f"could not be written to the cache {tmp_path}/cache: .* Make room there"):
        load()


def test_other_errors_stay_what_they_are():
    for error, tried in ((DataError("a"), [True]), (KeyError("b"), [True]), (OSError("c"), [True, False])):
        asked = []

        def fail(cached, error=error, asked=asked):
            asked.append(cached)
            raise error

        with pytest.raises(type(error)) as found:
            read_or_make(fail)
        assert found.value is error and asked == tried


@pytest.fixture
def load_pictures(tmp_path, monkeypatch, processor):
    """Returns a function that loads rows with pictures and gives the files that were asked for their time after."""
    rows = [{"image_url": f"{index}.png", "instruction": f"a{index}", "output": "b"} for index in range(9)]
    for index in range(9):
        Image.new("RGB", (28, 28), (index, 0, 0)).save(tmp_path / f"{index}.png")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *rows]))
    asked = []
    monkeypatch.setattr(cache, "image_stamp", lambda value: asked.append(value["path"]) or image_stamp(value))

    def load():
        asked.clear()
        args = PumaKLConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, report_to=[], use_kl=False)
        load_data(PumaScriptArguments(dataset_name=[str(tmp_path / "rows.jsonl")]), args, processor, QWEN_VL)
        return sorted(asked)

    return load


def test_pictures_are_asked_for_once_by_one_process(load_pictures, tmp_path, monkeypatch):
    """Not at all where they were checked just now, once each at a cached start, and never by those that only read."""
    files = [str(tmp_path / f"{index}.png") for index in range(9)]
    assert load_pictures() == []
    assert load_pictures() == files
    with monkeypatch.context() as patch:
        patch.setattr("puma_trl.data.load.fill_first", lambda *_: nullcontext(False))
        assert load_pictures() == []
    Image.new("RGB", (56, 56)).save(files[3])
    assert files[3] in load_pictures()
    assert load_pictures() == files  # with the new stamp


class Processes:
    """Threads that stand for the processes of two machines with two GPUs each."""

    def __init__(self, monkeypatch):
        self.done, self.store = [], torch.distributed.HashStore()
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(cache, "_get_default_store", lambda: self.store)
        monkeypatch.setattr(cache, "LOOK", 0.01)

    def run(self, work=lambda: None):
        def process(rank):
            args = SimpleNamespace(process_index=rank, local_process_index=rank % 2)
            try:
                with fill_first(args, "checking") as fills:
                    if fills:
                        work()
                    self.done.append((rank, fills))
            except DataError as error:
                return str(error)

        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(process, reversed(range(4))))


@pytest.fixture
def processes(monkeypatch):
    return Processes(monkeypatch)


def test_the_main_process_fills_a_cache_that_machines_share(processes):
    for _ in range(2):
        processes.run()
        assert processes.done[0] == (0, True)
        assert sorted(processes.done[1:]) == [(1, False), (2, False), (3, False)]
        processes.done.clear()


def test_each_machine_fills_a_cache_of_its_own(processes, monkeypatch):
    monkeypatch.setattr(cache, "_shares_cache", lambda token: False)
    processes.run()
    order = [rank for rank, _ in processes.done]
    assert order[0] == 0 and order.index(2) < order.index(3)
    assert sorted(processes.done) == [(0, True), (1, False), (2, True), (3, False)]


def test_what_the_main_process_raises_is_raised_in_all(processes):
    def fail():
        raise DataError("row 3")

    assert processes.run(fail) == ["row 3"] * 4 and processes.done == []
    processes.run()
    assert len(processes.done) == 4


def test_those_that_wait_say_so(processes, monkeypatch):
    """One on each machine, for as long as it takes."""
    lines = []
    monkeypatch.setattr(cache, "TELL", 0.0)
    monkeypatch.setattr(cache.logger, "warning", lambda line, **_: lines.append(line))

    def work():
        while len(lines) < 6:
            pass

    processes.run(work)
    assert {line.split(":")[0] for line in lines} == {
        f"Process {rank} waits for the main process, which is checking" for rank in (1, 2)
    }
