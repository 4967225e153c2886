"""Rows that were cut short in the cache are checked again, and a full disk is named."""

import errno
import json

import pytest
from datasets.arrow_writer import ArrowWriter

from puma_trl.config import PumaKLConfig, PumaScriptArguments
from puma_trl.data.cache import read_or_make
from puma_trl.data.load import load_data
from puma_trl.errors import DataError
from puma_trl.models.families.qwen import QWEN_VL


@pytest.fixture
def load(tmp_path, monkeypatch, processor):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
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
