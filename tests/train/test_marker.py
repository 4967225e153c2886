import errno
import json
import os
import stat
from pathlib import Path

import pytest
import torch

from puma_trl.train.marker import COMPLETE_MARKER, find_damage, find_problem, read_marker, write_marker

from .checkpoint_files import write_checkpoint


ANOTHER = "was written by another version of this software, or its checkpoint_complete is damaged"


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "checkpoint-4")


def names(checkpoint):
    return sorted(path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file())


def test_marker_lists_all_files_with_sizes(checkpoint):
    assert find_problem(checkpoint) is None
    files = read_marker(checkpoint)["files"]
    assert sorted([*files, COMPLETE_MARKER]) == names(checkpoint)
    assert files["ema_teacher/model.safetensors"] == (checkpoint / "ema_teacher" / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"settings": None}, ANOTHER),
        ({"step": "4"}, ANOTHER),
        ({"files": []}, ANOTHER),
        ({"files": {"../../key": 3}}, "has a damaged checkpoint_complete: it names ../../key"),
        ({"files": {}}, "lacks trainer_state.json"),
        ({"step": 5}, "is damaged: trainer_state.json is of step 4, the marker of 5"),
    ],
)
def test_a_marker_that_cannot_be(checkpoint, change, reason):
    path = checkpoint / COMPLETE_MARKER
    path.write_text(json.dumps(read_marker(checkpoint) | change))
    assert find_problem(checkpoint) == (reason, False)
    path.write_text("[" * 100_000)
    assert find_problem(checkpoint) == ("has a torn checkpoint_complete", False)


def test_files_that_come_later_do_no_harm(checkpoint):
    (checkpoint / "provenance.json").write_text("{}")
    assert find_problem(checkpoint) is None


def test_every_missing_and_every_torn_file_is_named(checkpoint):
    for name in read_marker(checkpoint)["files"]:
        path = checkpoint / name
        content = path.read_bytes()
        path.unlink()
        assert find_problem(checkpoint) == (f"lacks {name}", False)
        path.write_bytes(content[: len(content) // 2])
        size = f"{len(content) // 2:,} of {len(content):,} bytes"
        assert find_problem(checkpoint) == (f"is torn: {name} has {size}", False)
        path.write_bytes(bytes(len(content)))  # as after a power failure
        assert find_problem(checkpoint) == (f"is damaged: {name} cannot be read", False)
        path.write_bytes(content)
    assert find_problem(checkpoint) is None


def test_files_of_the_oldest_format(checkpoint):
    torch.save({"a": torch.ones(3)}, checkpoint / "optimizer.pt", _use_new_zipfile_serialization=False)
    write_marker(checkpoint, read_marker(checkpoint))
    assert find_problem(checkpoint) is None


def test_torn_marker_and_that_of_another_version(checkpoint):
    for text, reason in (
        ('{"files', "has a torn checkpoint_complete"),
        ('{"num_processes": 2, "rows_per_step": 4}', "was written by another version of this software"),
        ("[]", "was written by another version of this software"),
    ):
        (checkpoint / COMPLETE_MARKER).write_text(text)
        problem = find_problem(checkpoint)
        assert problem.reason.startswith(reason) and not problem.is_unfinished


@pytest.mark.parametrize(
    ("name", "kept", "reason", "is_unfinished"),
    [
        ("checkpoint-4", [], "was cut short while it was written", True),
        ("checkpoint-4", ["model.safetensors", "optimizer.pt"], "was cut short while it was written", True),
        ("checkpoint-4", ["config.json", "model.safetensors", "trainer_state.json"], "holds the model only", False),
        ("checkpoint-4", ["model.safetensors", "optimizer.pt", "trainer_state.json"], "written by other", False),
        ("final", ["config.json", "model.safetensors", "trainer_state.json"], "holds a model, and no check", False),
        ("other", [], "is no checkpoint", False),
    ],
)
def test_folders_without_a_marker(checkpoint, name, kept, reason, is_unfinished):
    for file in names(checkpoint):
        if file not in kept:
            (checkpoint / file).unlink()
    folder = checkpoint.rename(checkpoint.with_name(name))
    problem = find_problem(folder)
    assert reason in problem.reason and problem.is_unfinished == is_unfinished


def test_all_is_on_the_disk_before_the_marker_and_the_marker_after(tmp_path, monkeypatch):
    flushed = []
    fsync = os.fsync

    def watch(descriptor):
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    checkpoint = write_checkpoint(tmp_path / "checkpoint-4")
    marker = flushed.index(checkpoint / f"{COMPLETE_MARKER}.tmp")
    assert {checkpoint / name for name in read_marker(checkpoint)["files"]} < set(flushed[:marker])
    assert checkpoint / "ema_teacher" in flushed[:marker]
    assert flushed[marker + 1 :] == [checkpoint, tmp_path]


def test_file_systems_that_flush_no_folders(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    assert find_problem(write_checkpoint(tmp_path / "checkpoint-4")) is None


def test_a_marker_that_could_not_be_written_is_not_there(checkpoint):
    (checkpoint / COMPLETE_MARKER).unlink()
    with pytest.raises(TypeError):
        write_marker(checkpoint, {"settings": object()})
    assert not list(checkpoint.glob(f"{COMPLETE_MARKER}*"))


def test_damage_within_a_file(checkpoint):
    assert find_damage(checkpoint) is None
    path = checkpoint / "optimizer.pt"
    content = bytearray(path.read_bytes())
    place = bytes(content).index(torch.arange(1000.0).numpy().tobytes())
    content[place + 2000] ^= 255
    path.write_bytes(content)
    assert find_problem(checkpoint) is None
    assert find_damage(checkpoint) == path
