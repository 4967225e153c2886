"""A run that was killed, preempted or could not save goes on as if nothing had happened."""

import fcntl
import os
import resource
import shutil
import signal
import time
from functools import partial

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from .conftest import PADDING_FREE, TIMEOUT, Run, run_to_end, run_to_error, stop


pytestmark = pytest.mark.distributed
FLAGS = PADDING_FREE | {
    "learning_rate": 1e-2,
    "max_steps": 8,
    "optim": "adamw_torch",
    "resume_from_checkpoint": True,
    "save_steps": 2,
    "save_strategy": "steps",
}


def wait_until(condition, process, log):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, f"It did not come to this in {TIMEOUT} s:\n{log.read_text()[-4000:]}"
        time.sleep(0.01)


def is_complete(checkpoint):
    return (checkpoint / "checkpoint_complete").exists()


def one_rank(process):
    """The launcher notices, and ends the other rank and itself."""
    ranks = psutil.Process(process.pid).children()
    ranks[-1].kill()
    assert process.wait(TIMEOUT) != 0


def assert_equal_values(found, expected, where):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_equal_values(found[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, pair in enumerate(zip(found, expected, strict=True)):
            assert_equal_values(*pair, f"{where}[{index}]")
    elif torch.is_tensor(expected):
        assert torch.equal(found, expected), where
    elif isinstance(expected, np.ndarray):
        assert np.array_equal(found, expected), where
    elif isinstance(expected, int | float | str | bool):
        assert type(found) is type(expected) and found == expected, where


def assert_equal_checkpoints(found, expected):
    """Parameters, optimizer, scheduler and random number generators, of every rank and bit for bit."""
    names = [path.relative_to(expected) for path in expected.rglob("*") if path.is_file()]
    tensors = [name for name in names if name.suffix in (".safetensors", ".bin", ".pt", ".pth")]
    tensors = [name for name in tensors if name.name != "training_args.bin"]
    assert any("rng_state" in name.name for name in tensors)
    assert any("optim" in name.name for name in tensors)
    for name in tensors:
        if name.suffix == ".safetensors":
            pair = load_file(found / name), load_file(expected / name)
        else:
            pair = (torch.load(folder / name, weights_only=False) for folder in (found, expected))
        assert_equal_values(*pair, str(name))


@pytest.fixture(scope="module")
def whole(launch):
    """Returns a function that gives an uninterrupted run."""
    return partial(launch, **FLAGS)


def assert_continued(output_dir, whole, log):
    assert "Resuming from" in log and "schedule of the learning rate" not in log
    run = Run(output_dir)
    assert run.losses == whole.losses
    assert run.grad_norms == whole.grad_norms
    for facts, expected in zip(run.facts, whole.facts, strict=True):
        count = len(facts["row_ids"])
        assert 0 < count < len(expected["row_ids"])
        assert facts["row_ids"] == expected["row_ids"][-count:]
    assert_equal_checkpoints(output_dir / "checkpoint-8", whole.output_dir / "checkpoint-8")


BF16_EMA = {"bf16": True, "dtype": "bfloat16", "teacher": "ema", "use_peft": True, "lora_modules_to_save": "aligner"}
CASES = [
    ("single", stop, {}),
    ("ddp", stop, {"use_kl": False}),
    ("ddp", one_rank, {}),
    ("zero2", stop, {}),
    ("zero2", one_rank, {}),
    ("zero3", stop, {}),
    ("zero3", one_rank, {}),
    ("fsdp2", stop, {}),
    ("fsdp2", one_rank, {}),
    ("ddp", stop, {"use_peft": True, "teacher": "frozen"}),
    ("ddp", stop, {"teacher": "ema"}),
    ("zero2", stop, {"teacher": "ema"}),
    *((engine, stop, BF16_EMA) for engine in ("ddp", "zero2", "zero3", "fsdp2")),
]


@pytest.mark.parametrize(("engine", "kill", "flags"), CASES, ids=lambda value: getattr(value, "__name__", None))
def test_kill_and_resume(command, start, whole, engine, kill, flags):
    expected = whole(engine, **flags)
    argv, output_dir = command(engine, probe_flags=["--slow"], **FLAGS, **flags)
    log = output_dir.parent / "log"
    process = start(argv, log)
    try:
        wait_until(lambda: is_complete(output_dir / "checkpoint-2"), process, log)
        kill(process)
    finally:
        stop(process)
    assert not list(output_dir.glob("*.safetensors"))  # it was killed before its end
    argv.remove("--slow")
    run_to_end(argv, log, start)
    assert_continued(output_dir, expected, log.read_text())


def test_killed_while_saving(command, start, whole):
    """The checkpoint that the kill cut short is named and passed over."""
    expected = whole("single")
    argv, output_dir = command("single", probe_flags=["--slow"], **FLAGS)
    log = output_dir.parent / "log"
    process = start(argv, log)
    try:
        wait_until((output_dir / "checkpoint-4").exists, process, log)
    finally:
        stop(process)
    assert (output_dir / "checkpoint-2" / "checkpoint_complete").exists()
    # whether or not the kill came in time, the checkpoint is now a torn one
    (output_dir / "checkpoint-4" / "checkpoint_complete").unlink(missing_ok=True)
    for file in (output_dir / "checkpoint-4").glob("*.safetensors"):
        os.truncate(file, file.stat().st_size // 2)
    run_to_end(argv, log, start)
    assert "checkpoint-4 was cut short while it was written" in log.read_text()
    assert_continued(output_dir, expected, log.read_text())


def test_disk_full_while_saving(command, start, whole):
    expected = whole("single")
    argv, output_dir = command("single", probe_flags=["--slow"], **FLAGS)
    log = output_dir.parent / "log"
    process = start(argv, log)
    try:
        wait_until(lambda: is_complete(output_dir / "checkpoint-2"), process, log)
        # no file can grow beyond this, as on a disk with 100 kB left
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
        for child in psutil.Process(process.pid).children(recursive=True):
            resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
        assert process.wait(TIMEOUT) != 0
    finally:
        stop(process)
    assert "File too large" in log.read_text()
    assert (output_dir / "checkpoint-2" / "checkpoint_complete").exists()
    assert not (output_dir / "model.safetensors").exists()
    argv.remove("--slow")
    run_to_end(argv, log, start)
    assert_continued(output_dir, expected, log.read_text())


@pytest.mark.parametrize("engine", ["single", "ddp", "zero2", "zero3", "fsdp2"])
def test_faults(command, start, whole, workspace, engine):
    """Another run in the folder and changed data are refused; a torn checkpoint is passed over."""
    expected = whole(engine)
    argv, output_dir = command(engine, **FLAGS)
    log = output_dir.parent / "log"
    for step in (2, 4, 6):
        shutil.copytree(expected.output_dir / f"checkpoint-{step}", output_dir / f"checkpoint-{step}")
    with open(output_dir / "_puma_lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        run_to_error(argv, log, start, "is in use by another run")
    fewer = output_dir.parent / "pairs.jsonl"
    rows = (workspace / "pairs.jsonl").read_text().splitlines()
    fewer.write_text("\n".join(rows[1:]))
    changed = argv + ["--dataset_name", str(fewer), "--image_root", str(workspace)]
    run_to_error(changed, log, start, "it had 10 rows and now has 9")
    torn = max(output_dir.glob("checkpoint-6/**/*optim*"), key=lambda path: path.is_file() and path.stat().st_size)
    os.truncate(torn, torn.stat().st_size // 2)
    run_to_end(argv, log, start)
    reason = f"checkpoint-6 is torn: {torn.relative_to(output_dir / 'checkpoint-6')} has"
    assert reason in log.read_text() and f"Resuming from {output_dir / 'checkpoint-4'}" in log.read_text()
    assert_continued(output_dir, expected, log.read_text())


@pytest.mark.parametrize("engine", ["single", "ddp", "zero2", "zero3", "fsdp2"])
def test_preempted(command, start, whole, engine):
    """SIGTERM to the process group of one rank, its workers included: all save at the same step and end well."""
    expected = whole(engine)
    flags = FLAGS | {"save_steps": 100, "dataloader_num_workers": 2}
    argv, output_dir = command(engine, probe_flags=["--slow"], **flags)
    log = output_dir.parent / "log"
    process = start(argv, log)
    try:
        wait_until(lambda: " · loss " in log.read_text(), process, log)
        os.killpg(psutil.Process(process.pid).children()[-1].pid, signal.SIGTERM)
        assert process.wait(TIMEOUT) == 0, log.read_text()[-4000:]
    finally:
        stop(process)
    assert "Stopped by SIGTERM after step" in log.read_text()
    assert len(list(output_dir.glob("checkpoint-*/checkpoint_complete"))) == 1
    assert not (output_dir / "model.safetensors").exists()
    argv[argv.index("--save_steps") + 1] = "2"
    argv.remove("--slow")
    run_to_end(argv, log, start)
    assert_continued(output_dir, expected, log.read_text())


def test_interrupted(command, start):
    """Ctrl-C, which the whole process group gets."""
    flags = FLAGS | {"save_steps": 100, "dataloader_num_workers": 2}
    argv, output_dir = command("single", probe_flags=["--slow"], **flags)
    log = output_dir.parent / "log"
    process = start(argv, log)
    try:
        wait_until(lambda: " · loss " in log.read_text(), process, log)
        os.killpg(psutil.Process(process.pid).children()[-1].pid, signal.SIGINT)
        assert process.wait(TIMEOUT) != 0
    finally:
        stop(process)
    assert "returned non-zero exit status 130" in log.read_text()
    assert "Stopped by SIGINT after step" in log.read_text()
    assert len(list(output_dir.glob("checkpoint-*/checkpoint_complete"))) == 1


def test_a_collapse_stops_all_processes(command, start):
    """At the same log, with one checkpoint; the last line of the main process tells why."""
    argv, output_dir = command("ddp", probe_flags=["--collapse"], **FLAGS, stop_on_collapse=True)
    log = output_dir.parent / "log"
    run_to_error(argv, log, start, "Sign of collapse at step 3")
    text = log.read_text()
    assert text.count("Sign of collapse at step 3: the accuracy on the text-rich side") == 1
    assert text.count("error: Stopped at step 3, checkpoint saved: the accuracy on the text-rich side") == 1
    steps = sorted(path.name for path in output_dir.glob("checkpoint-*") if is_complete(path))
    assert steps == ["checkpoint-2", "checkpoint-3"]


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_other_number_of_processes(launch, whole, tmp_path, engine):
    """One process goes on with what two have saved, at the same global batch."""
    expected = whole(engine)
    shutil.copytree(expected.output_dir / "checkpoint-4", tmp_path / "checkpoint-4")
    flags = FLAGS | {"resume_from_checkpoint": tmp_path / "checkpoint-4", "per_device_train_batch_size": 4}
    run = launch(engine, launch_flags=["--num_processes", "1"], **flags)
    assert [facts["world_size"] for facts in run.facts] == [1]
    assert engine != "fsdp2" or run.facts[0]["wrapper"] == "FSDPModule"
    assert run.losses[:4] == expected.losses[:4]
    assert run.losses[4:] == pytest.approx(expected.losses[4:], abs=1e-5)


def test_other_number_of_processes_under_deepspeed(command, start, whole):
    checkpoint = whole("zero2").output_dir / "checkpoint-4"
    flags = FLAGS | {"resume_from_checkpoint": checkpoint}
    argv, output_dir = command("zero2", launch_flags=["--num_processes", "1"], **flags)
    run_to_error(argv, output_dir.parent / "log", start, "was written by 2 processes under DeepSpeed")
