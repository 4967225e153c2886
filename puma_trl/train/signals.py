"""SIGTERM and SIGINT: a run that is asked to end saves first; its data-loader workers leave both to it."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from transformers import Trainer


# Exit codes of a run that was asked to end: preempted jobs have not failed, and Ctrl-C is told by shells as 128 + 2
EXIT_CODES = {signal.SIGTERM: 0, signal.SIGINT: 130}
# Within this many seconds a second SIGINT is the same Ctrl-C, by way of the launcher
SAME_INTERRUPT = 1.0


def end_on_signals() -> None:
    """Ends the process at once with the signal's exit code: before training there is nothing that could be lost."""
    for number, code in EXIT_CODES.items():
        signal.signal(number, lambda *_, code=code: sys.exit(code))


def stop_on_signals(trainer: Trainer) -> Callable[[], int]:
    """
    Makes SIGTERM and SIGINT save a checkpoint at the next logging step and stop; a second SIGINT ends at once.

    Returns:
        `Callable[[], int]`: a function that gives the exit code of a run that was stopped: 130 after SIGINT on this
        process, else 0.
    """
    first: dict[int, float] = {}

    def ask(number: int, _) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and now - first.get(number, now) > SAME_INTERRUPT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if not first:
            again = ", Ctrl-C again ends it at once" if number == signal.SIGINT else ""
            # not by print, which a signal may have interrupted
            with contextlib.suppress(OSError):  # of a console that is gone
                os.write(2, f"{signal.Signals(number).name}: saving at the next logging step{again}.\n".encode())
        first.setdefault(number, now)
        trainer.stop_requested = True

    for number in EXIT_CODES:
        signal.signal(number, ask)
    return lambda: EXIT_CODES[signal.SIGINT] if signal.SIGINT in first else EXIT_CODES[signal.SIGTERM]


def leave_signals(init: Callable[[int], None] | None, worker_id: int) -> None:
    """
    Starts a data-loader worker that ignores SIGTERM and SIGINT, which schedulers and terminals send to all processes
    of a run: it ends when the process does that it works for, or by the SIGTERM of that process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS has none, where PyTorch's own handler stays
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_heed_parent, daemon=True).start()
    if init is not None:
        init(worker_id)


def _heed_parent() -> None:
    """Ends this process by its parent's SIGTERM; a parent that exits waits for workers which persist until then."""
    parent = multiprocessing.parent_process().pid
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
