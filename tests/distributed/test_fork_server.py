"""A rank that is a fork of the server is as one that `accelerate launch` starts."""

import json

import pytest

from .conftest import PROBE, TIMEOUT, start_alone, stop


pytestmark = pytest.mark.distributed
SCRIPT = """
import atexit, json, os, random, signal, sys, threading
import numpy, torch

facts = {
    "environment": dict(os.environ),
    "name": __name__,
    "argv": sys.argv,
    "path": sys.path[0],
    "folder": os.getcwd(),
    "signals": [str(signal.getsignal(number)) for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM)],
    "threads": [threading.active_count(), torch.get_num_threads()],
    "leads_its_group": os.getpgid(0) == os.getpid(),
    "random": [random.random(), numpy.random.rand(), torch.rand(1).item()],
    "initialized": [torch.distributed.is_initialized(), torch.cuda.is_initialized()],
    "stdout": [sys.stdout.isatty(), sys.stdout.write_through, sys.stdout.encoding],
}
atexit.register(lambda: json.dump(facts, open(f"{sys.argv[1]}.{os.environ['LOCAL_RANK']}", "w")))
"""
OF_ONE_LAUNCH = {"MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE"}
OF_IMPORTS = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # set by DeepSpeed, here or there


@pytest.mark.parametrize("engine", ["ddp", "zero3", "fsdp2"])
def test_same_environment(command, start, tmp_path, engine):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    argv, _ = command(engine)
    argv = [*argv[: argv.index(str(PROBE))], str(script), str(tmp_path / "facts")]

    def ranks(start):
        process = start(argv, tmp_path / "log")
        try:
            assert process.wait(TIMEOUT) == 0, (tmp_path / "log").read_text()[-4000:]
        finally:
            stop(process)
        facts = [json.loads((tmp_path / f"facts.{rank}").read_text()) for rank in (0, 1)]
        for rank in facts:
            assert all(rank["environment"].pop(name) for name in OF_ONE_LAUNCH)
            rank["environment"] |= OF_IMPORTS
        return facts

    found, expected = ranks(start), ranks(start_alone)
    for numbers in zip(*(rank.pop("random") for rank in (*found, *expected)), strict=True):
        assert len({*numbers}) == 4
    for rank, alone in zip(found, expected, strict=True):
        assert rank.pop("environment").items() ^ alone.pop("environment").items() == set()
        assert rank == alone
