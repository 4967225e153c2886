"""
What every command does around its work: an error of the user's is one line, no secret is printed, and other libraries
say nothing about a machine without a GPU, and draw no bars where no terminal shows them. Import it before them.
"""

import argparse
import difflib
import logging
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Any, NoReturn

from .errors import ConfigError, PumaError, printable
from .process import is_command, let_interrupt, prepare_process
from .redact import hide_secrets


USER_ERRORS = (PumaError, OSError, FloatingPointError)  # the last one from a loss that is not finite
# Seconds that other processes than the main one keep their errors to themselves. A launcher ends them in less when the
# main process fails, so that its line stays the last one.
PATIENCE = 10.0


class Parser(argparse.ArgumentParser):
    """
    A parser of a command whose errors are one line of [`run_command`], with the nearest name for one that is unknown.
    """

    def __init__(self, *args: Any, allow_abbrev: bool = False, **kwargs: Any):
        super().__init__(*args, allow_abbrev=allow_abbrev, **kwargs)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        args = list(sys.argv[1:] if args is None else args)
        own = takewhile(lambda arg: arg != "--", args)
        if self._subparsers is not None:
            own = takewhile(lambda arg: arg.startswith("-"), own)
        for arg in own:  # first, since a missing option may be one that is misspelt
            name = arg.split("=", 1)[0]
            if re.fullmatch(r"--[\w-]+", name) and name not in self._option_string_actions:
                raise ConfigError(f"Unknown option `{name}`. {guess(name, self._option_string_actions)}{self._page()}")
        args, rest = super().parse_known_args(args, namespace)
        if rest:
            raise ConfigError(f"`{' '.join(rest)}` has no place on the command line. {self._page()}")
        return args, rest

    def _check_value(self, action: argparse.Action, value: Any):
        if action.choices is None or value in action.choices:
            return
        choices = [str(each) for each in action.choices]
        if isinstance(action, argparse._SubParsersAction):
            nearest = guess(str(value), choices, f"{self.prog} ")
            raise ConfigError(f"Unknown command `{value}`. {nearest}{self._page('lists all')}")
        name = action.option_strings[0] if action.option_strings else action.dest
        raise ConfigError(f"`{name} {value}`: {guess(str(value), choices)}It takes one of {', '.join(choices)}.")

    def error(self, message: str) -> NoReturn:
        """Raises the error as one line; the usage is left to `--help`."""
        missing = re.fullmatch("the following arguments are required: (.*)", message)
        if missing and missing[1] == "command":
            raise ConfigError(f"Name a command. {self._page('lists all')}")
        if missing:
            names = [f"`{name}`" for name in missing[1].split(", ")]
            raise ConfigError(
                f"{' and '.join([', '.join(names[:-1])] * (len(names) > 1) + names[-1:])} must be given. "
                f"{self._page()}"
            )
        message = re.sub("^argument ([^:]+): ", r"`\1`: ", message)
        raise ConfigError(f"{message}. {self._page()}")

    def _page(self, words: str = "lists all options") -> str:
        return f"`{self.prog} --help` {words}."


def guess(name: str, known: Iterable[str], before: str = "") -> str:
    """Returns a question with the nearest known name, behind what comes before it, or nothing if none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean `{before}{near[0]}`? " if near else ""


def run_command(main: Callable[..., int | None], *arguments: Any) -> None:
    """
    Runs a command and ends the process: with 2 and one line, `error: …`, after an error of the user's; with 1 and a
    traceback after any other; else with the code that `main` returns, or 0.

    Of several processes that fail, the main one speaks.

    Args:
        main (`Callable`):
            The command; returns an exit code, or `None` for 0.
        arguments:
            What it is called with.
    """
    _hide_in_logs()
    if is_command():
        let_interrupt()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what is half written goes then
    try:
        code = main(*arguments) or 0
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except USER_ERRORS as error:
        code = report(error)
    except Exception:
        code = _say(traceback.format_exc(), 1)
    _end(code)


def report(error: Exception, code: int = 2) -> int:
    """
    Prints an error of the user's in one line.

    Returns:
        `int`: the exit code.
    """
    return _say(error_line(error), code)


def error_line(error: Exception) -> str:
    """Returns the line that tells of an error: `error: …`, with rows behind semicolons, without secrets."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = lines[0]
    for line in lines[1:]:
        text += (" " if text.endswith((".", ":", ";", ",", "!", "?")) else "; ") + line
    return printable(hide_secrets(f"error: {text}"))


def _say(text: str, code: int) -> int:
    if int(os.environ.get("RANK", 0)) > 0:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(code))  # of the launcher, after an error of the main process
        time.sleep(PATIENCE)
    sys.stdout.flush()
    if "tqdm" in sys.modules:  # a bar that is not closed would be drawn again behind the line
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()
    print(hide_secrets(text).rstrip("\n"), file=sys.stderr, flush=True)
    return code


def _end(code: int) -> None:
    distributed = sys.modules.get("torch.distributed")
    if code and distributed is not None and distributed.is_available() and distributed.is_initialized():
        # What the group does when the interpreter ends may hang, warn or abort (SIGABRT) while others wait for this
        # process; the launcher ends them.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _hide_in_logs() -> None:
    make_record = logging.getLogRecordFactory()

    def make_clean_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # logging tells of these itself
            return record
        if hide_secrets(message) != message:
            record.msg, record.args = hide_secrets(message), ()
        return record

    logging.setLogRecordFactory(make_clean_record)


def _quieten() -> None:
    if not sys.stderr.isatty():  # in a file, bars of loading, checking and writing are long lines of nothing
        for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")  # which transformers reads too
    # bitsandbytes looks for a kernel on CPUs with AVX512, and can do without
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # DeepSpeed, which other libraries import wherever it is installed, finds that there is no GPU
    logging.getLogger("DeepSpeed").addFilter(lambda record: not record.msg.startswith("Setting accelerator to CPU"))
    # PEFT 0.21 asks transformers 5.23 by the old name
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


if is_command():
    prepare_process()
_quieten()
