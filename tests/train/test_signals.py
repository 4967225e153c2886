"""SIGTERM and SIGINT before and during training, and in data-loader workers."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from accelerate import skip_first_batches

from puma_trl.train import signals
from puma_trl.train.signals import end_on_signals, leave_signals, stop_on_signals


@pytest.fixture(autouse=True)
def handlers():
    """Puts the handlers of the tests back."""
    before = {number: signal.getsignal(number) for number in signals.EXIT_CODES}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def exit_code(function):
    """Returns how a fork ends that runs a function; a signal as its negative number."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            function()
        except SystemExit as stopped:
            code = stopped.code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_before_training(number, code):
    def run():
        end_on_signals()
        os.kill(os.getpid(), number)
        time.sleep(60)

    assert exit_code(run) == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_in_training(number, code, capfd):
    trainer = SimpleNamespace(stop_requested=False)
    get_code = stop_on_signals(trainer)
    assert get_code() == 0 and not trainer.stop_requested
    os.kill(os.getpid(), number)
    assert trainer.stop_requested and get_code() == code
    os.kill(os.getpid(), signal.SIGTERM)  # schedulers may send it again
    assert get_code() == code
    assert capfd.readouterr().err.count("saving at the next logging step") == 1


def test_a_second_interrupt_ends_at_once(monkeypatch):
    def interrupt_twice(pause):
        stop_on_signals(SimpleNamespace())
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(pause)
        os.kill(os.getpid(), signal.SIGINT)
        sys.exit(7)

    monkeypatch.setattr(signals, "SAME_INTERRUPT", 0.2)
    assert exit_code(lambda: interrupt_twice(0.4)) == -signal.SIGINT
    assert exit_code(lambda: interrupt_twice(0.0)) == 7  # one Ctrl-C, which the launcher has sent on


def test_workers_ignore_what_all_processes_get():
    def work():
        leave_signals(started.append, 3)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        sys.exit(started[0])

    started = []
    assert exit_code(work) == 3


class Rows(torch.utils.data.Dataset):
    """Sends both signals from within the workers that read it, as a process group gets them."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        assert torch.utils.data.get_worker_info() is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        return index


@pytest.mark.parametrize("is_training", [True, False])
def test_loaders_of_the_trainer_outlive_signals(train, tiny_model, pairs, is_training):
    trainer = train(tiny_model(), pairs(2), run=False, dataloader_num_workers=2)
    trainer.data_collator = torch.tensor
    loader = trainer._get_dataloader(Rows(), "rows", 2, is_training=is_training)
    assert torch.cat(list(loader)).tolist() == list(range(8))
    assert torch.cat(list(skip_first_batches(loader, 1))).tolist() == list(range(2, 8))  # of a resumed epoch


LEFT = """
import sys
from functools import partial
from torch.utils.data import DataLoader
from puma_trl.train.signals import leave_signals

persist = sys.argv[1] == "persist"
init = partial(leave_signals, None)
loader = DataLoader(range(99), 2, num_workers=2, persistent_workers=persist, worker_init_fn=init)
for batch in loader:
    if not persist:
        raise RuntimeError("out of memory")
print("done")
"""


@pytest.mark.parametrize(("left", "code", "output"), [("persist", 0, ["done"]), ("in an epoch", 1, [])])
def test_workers_end_with_their_process(left, code, output):
    result = subprocess.run([sys.executable, "-c", LEFT, left], capture_output=True, text=True, timeout=240)
    said = [line for line in result.stdout.splitlines() if not line.startswith("[INFO]")]  # by libraries
    assert (result.returncode, said) == (code, output)
    assert (result.stderr.splitlines() or [""])[-1] == ("RuntimeError: out of memory" if code else "")
