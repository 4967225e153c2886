"""What holds for the process of a command from its first import on."""

import io
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any


class _Lasting(io.FileIO):
    """A stream that goes on into nothing when its reader is gone: no training is lost with a console."""

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except BrokenPipeError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())
            os.close(nothing)
            return len(data)


def is_command() -> bool:
    """Returns whether the process is a command of this package, and not Python that imports it."""
    file = Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve()
    return file.name == "puma-trl" or Path(__file__).resolve().parent in file.parents


def prepare_process() -> None:
    """
    Ends the process in one line where the current folder has been deleted, and with 130 on an interrupt while modules
    are imported, when nothing can be lost; lets its output outlive who reads it.
    """
    # an interrupt that is ignored, as in the background of a shell, stays so
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    try:
        os.getcwd()
    except OSError:
        print("error: The current folder has been deleted. Change to another one.", file=sys.stderr)
        os._exit(2)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
            lasting = _Lasting(stream.fileno(), "w", closefd=False)
            kinds = {each: getattr(stream, each) for each in ("encoding", "errors", "line_buffering", "write_through")}
            binary = lasting if stream.write_through else io.BufferedWriter(lasting)  # `python -u` buffers nothing
            setattr(sys, name, io.TextIOWrapper(binary, **kinds))


def let_interrupt() -> None:
    """Lets an interrupt be `KeyboardInterrupt` again, once [`prepare_process`] has made it another."""
    if callable(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, signal.default_int_handler)
