"""Processes end well while threads of their process group still drop tensors."""

import subprocess
import sys

import pytest

from .conftest import ENVIRONMENT


pytestmark = pytest.mark.distributed
# The tensors of collectives that no one waits for are dropped by gloo's threads, which need the interpreter for that;
# and as under DDP, the group outlives its end.
CODE = """
import os, sys
import torch
from puma_trl.run import end_process_group
pid = os.fork()
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=int(pid == 0), world_size=2)
group = torch.distributed.group.WORLD
for _ in range(20):
    torch.distributed.all_reduce(torch.ones(1_000_000), async_op=True)
end_process_group()
assert not torch.distributed.is_initialized()
if pid:
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_no_abort_at_exit(tmp_path):
    argv = [sys.executable, "-c", CODE, str(tmp_path / "store")]
    result = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
