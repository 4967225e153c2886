"""Tasks such as chunks of data files through one process or several, with a progress bar."""

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from rich.console import Console
from rich.progress import track

from ..errors import DataError


def count_processes(num_proc: int | None) -> int:
    """
    Returns how many processes work: by default one for each core, up to `MAX_PROCESSES`.

    Raises:
        DataError: if it is less than one.
    """
    from ..data.load import MAX_PROCESSES  # takes seconds to import, which not every process must wait for

    if num_proc is not None and num_proc < 1:
        raise DataError(f"`--num_proc` is {num_proc}, but at least one process must work.")
    return num_proc or min(os.cpu_count(), MAX_PROCESSES)


def map_tasks(worker: Callable[[Any], Any], tasks: Sequence[Any], num_proc: int, title: str) -> Iterator[Any]:
    """
    Yields what a worker makes of each task, in order, with a progress bar where there is a terminal.

    Args:
        worker (`Callable[[Any], Any]`):
            Is copied into each process once.
        tasks (`Sequence[Any]`):
            What it is called with, such as the chunks of [`find_chunks`].
        num_proc (`int`):
            Processes; with 1 the work is done in this one.
        title (`str`):
            What the bar says.

    Raises:
        DataError: if a process was killed.
    """
    results = stream_tasks(worker, tasks, max(min(num_proc, len(tasks)), 1))
    console = Console(stderr=True)
    shown = {"description": title, "total": len(tasks), "console": console, "transient": True}
    shown["disable"] = not sys.stderr.isatty()
    yield from track(results, **shown)


def stream_tasks(worker: Callable[[Any], Any], tasks: Iterable[Any], num_proc: int) -> Iterator[Any]:
    """
    The same without a bar, for any number of tasks: only a few are taken before their results are asked for.

    Raises:
        DataError: if a process was killed.
    """
    if num_proc == 1:
        yield from map(worker, tasks)
        return
    # unlike multiprocessing.Pool, it notices when a worker is killed; spawned, since a copy of a process with threads
    # (of torch, tokenizers, Arrow) may wait for ever for one of them
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_proc, context, initializer=_start, initargs=(worker,))
    waiting = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(_work, task))
            if len(waiting) > 2 * num_proc:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            f"One of the {num_proc} processes was killed, as happens where memory runs out. Work with fewer: "
            "`--num_proc 1`."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_worker: Callable[[Any], Any]


def _start(worker: Callable[[Any], Any]) -> None:
    """Keeps the worker, and ends the process when the command is killed, so that none works on alone."""
    global _worker
    _worker = worker

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(task: Any) -> Any:
    return _worker(task)
