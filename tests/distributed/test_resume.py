"""A killed run goes on as if nothing had happened."""

import json
import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from .conftest import ROOT, TIMEOUT, Run, start, stop


pytestmark = pytest.mark.distributed


def wait_for(path, process, log):
    deadline = time.monotonic() + TIMEOUT
    while not path.exists():
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, f"{path} was not written in {TIMEOUT} s"
        time.sleep(0.05)


@pytest.mark.parametrize("engine", ["single", "ddp"])
@pytest.mark.parametrize("use_kl", [True, False])
def test_kill_and_resume(command, workspace, tmp_path, engine, use_kl):
    """The real script, full fine-tuning: SIGKILL of all processes after a checkpoint, then `resume_from_checkpoint`."""
    flags = {"max_steps": 12, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "learning_rate": 1e-2}
    flags |= {"per_device_train_batch_size": 1, "use_kl": use_kl}
    script = ROOT / "puma_trl" / "run.py"
    argv, whole_dir, _ = command(engine, "whole", script=script, **flags)
    whole = start(argv, tmp_path / "whole.log")
    assert whole.wait(TIMEOUT) == 0, (tmp_path / "whole.log").read_text()[-4000:]

    argv, output_dir, facts = command(engine, "killed", script=script, resume_from_checkpoint=True, **flags)
    log = tmp_path / "killed.log"
    process = start(argv, log)
    wait_for(output_dir / "checkpoint-2" / "checkpoint_complete", process, log)
    os.killpg(process.pid, signal.SIGKILL)
    stop(process)
    assert not (output_dir / "model.safetensors").exists()  # it was killed before its end

    process = start(argv, log)
    assert process.wait(TIMEOUT) == 0, log.read_text()[-4000:]
    assert "Resuming from" in log.read_text()
    expected, found = load_file(whole_dir / "model.safetensors"), load_file(output_dir / "model.safetensors")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert Run(output_dir, facts).losses == Run(whole_dir, facts).losses


def test_second_run_in_the_same_folder_is_refused(command, workspace, tmp_path):
    argv, output_dir, _ = command("single", "twice", script=ROOT / "puma_trl" / "run.py", max_steps=1)
    output_dir.mkdir()
    (output_dir / "keep.json").write_text(json.dumps({"good": True}))
    process = start(argv, tmp_path / "twice.log")
    assert process.wait(TIMEOUT) != 0
    assert "is not empty, and a new run would overwrite it" in (tmp_path / "twice.log").read_text()
    assert json.loads((output_dir / "keep.json").read_text()) == {"good": True}
