import errno
import fcntl
import fnmatch
import os
import signal
import time

import pytest

from puma_trl.errors import ConfigError
from puma_trl.record.hub import NOT_PUSHED
from puma_trl.train.lock import LOCK, hold_lock


@pytest.fixture
def hold_elsewhere(tmp_path):
    """Returns a function that holds the lock in another process, and calls something there."""
    children = []

    def hold(then=lambda: None):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                hold_lock(tmp_path)
                then()
                os.write(writer, b"1")
                time.sleep(60)
            finally:
                os._exit(1)
        children.append(child)
        os.close(writer)
        assert os.read(reader, 1) == b"1"
        os.close(reader)
        return child

    yield hold
    for child in children:
        end(child)


def end(child):
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def test_a_second_run_is_refused_with_the_first_one_named(tmp_path, hold_elsewhere):
    child = hold_elsewhere()
    with pytest.raises(ConfigError, match=rf"in use by another run: process {child} on \S+, since 20"):
        hold_lock(tmp_path)
    end(child)
    hold_lock(tmp_path)
    hold_lock(tmp_path)  # again in the process that holds it


def test_a_run_does_not_hold_what_it_was_refused(tmp_path, hold_elsewhere):
    child = hold_elsewhere()
    for _ in range(2):
        with pytest.raises(ConfigError):
            hold_lock(tmp_path)
    end(child)


def test_a_worker_that_outlives_its_run_does_not_hold_the_lock(tmp_path, hold_elsewhere):
    reader, writer = os.pipe()

    def fork_worker():
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        os.write(writer, str(pid).encode())

    child = hold_elsewhere(fork_worker)
    worker = int(os.read(reader, 20))
    end(child)
    os.kill(worker, 0)  # it is alive
    hold_lock(tmp_path)
    os.kill(worker, signal.SIGKILL)


def test_file_systems_without_locks_are_named(tmp_path, monkeypatch, caplog, accelerate_state):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    hold_lock(tmp_path)
    assert f"The file system of {tmp_path} has no locks" in caplog.text


def test_other_errors_are_not_hidden(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output"):
        hold_lock(tmp_path)


def test_the_lock_is_not_pushed():
    trainers = "_*"  # what Trainer leaves out (transformers 5.23)
    for patterns in (NOT_PUSHED, [trainers]):
        assert any(fnmatch.fnmatch(LOCK, pattern) for pattern in patterns)
