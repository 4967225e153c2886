"""Tasks in several processes."""

import os
import signal

import pytest

from puma_trl.errors import DataError
from puma_trl.pairs.processes import map_tasks


def kill(task):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_ends_the_work_in_a_line():
    with pytest.raises(DataError, match="One of the 2 processes was killed.*`--num_proc 1`"):
        list(map_tasks(kill, range(2), 2, "Killing"))
