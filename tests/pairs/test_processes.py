"""Tasks in several processes."""

import os
import signal
from concurrent.futures.process import BrokenProcessPool

import pytest

from puma_trl.pairs.processes import map_tasks


def kill(task):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_ends_the_work():
    with pytest.raises(BrokenProcessPool):
        list(map_tasks(kill, range(2), 2, "Killing"))
