import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from puma_trl.checkpoints.files import CheckpointFiles, new_folder
from puma_trl.errors import CheckpointError


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/other.safetensors", "a/../../b.safetensors", 7])
@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_an_index_leads_nowhere_else(tmp_path, kind, file):
    (tmp_path / "other.safetensors").touch()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / f"{kind}.index.json").write_text(json.dumps({"weight_map": {"weight": file}}))
    with pytest.raises(CheckpointError, match=f"index.json names '{file}', which lies outside of its folder"):
        CheckpointFiles(folder, allow_pickle=True)


HOLD = """
import sys, time
from pathlib import Path
from puma_trl.checkpoints.files import new_folder
from puma_trl.entry import run_command

def main():
    with new_folder(sys.argv[1]) as folder:
        (folder / "config.json").write_text("{}")
        print("written", flush=True)
        time.sleep(60)

run_command(main)
"""


@pytest.fixture
def writer(tmp_path):
    """Starts a process that has written a part of `tmp_path / "model"`."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    argv = [sys.executable, "-c", HOLD, str(tmp_path / "model")]
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "written\n"
        yield process
        process.kill()


def test_terminated_while_writing(writer, tmp_path):
    assert len(list(tmp_path.iterdir())) == 1 and not (tmp_path / "model").exists()
    writer.terminate()
    assert writer.wait(30) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_killed_while_writing(writer, tmp_path):
    """What is left has another name, and goes when the next one writes; what a living process writes stays."""
    with new_folder(tmp_path / "model") as folder:
        assert len(list(tmp_path.iterdir())) == 2
        writer.kill()
        writer.wait(30)
        assert not (tmp_path / "model").exists()
    (tmp_path / "model").rmdir()
    assert len(list(tmp_path.iterdir())) == 1
    with new_folder(tmp_path / "model") as folder:
        (folder / "config.json").write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
