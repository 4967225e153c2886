"""Chunks of data files through one process or several, with a progress bar."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import track

from ...data.files import Chunk
from ...data.load import MAX_PROCESSES
from ...errors import DataError


def count_processes(num_proc: int | None) -> int:
    """
    Returns how many processes work: by default one for each core, up to `MAX_PROCESSES`.

    Raises:
        DataError: if it is less than one.
    """
    if num_proc is not None and num_proc < 1:
        raise DataError(f"`--num_proc` is {num_proc}, but at least one process must work.")
    return num_proc or min(os.cpu_count(), MAX_PROCESSES)


def map_chunks(worker: Callable[[Chunk], Any], chunks: list[Chunk], num_proc: int, title: str) -> Iterator[Any]:
    """
    Yields what a worker makes of each chunk, in order, with a progress bar where there is a terminal.

    Args:
        worker (`Callable[[Chunk], Any]`):
            Is copied into each process once.
        chunks (`list[Chunk]`):
            Chunks of [`find_chunks`].
        num_proc (`int`):
            Processes; with 1 the work is done in this one.
        title (`str`):
            What the bar says.
    """
    console = Console(stderr=True)
    shown = {"description": title, "total": len(chunks), "console": console, "transient": True}
    shown["disable"] = not sys.stderr.isatty()
    if num_proc == 1 or len(chunks) < 2:
        yield from track(map(worker, chunks), **shown)
        return
    # spawned, since a copy of a process with threads (of torch, tokenizers, Arrow) may wait for ever for one of them
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(num_proc, len(chunks)), initializer=_keep_worker, initargs=(worker,)) as pool:
        yield from track(pool.imap(_work, chunks), **shown)


_worker: Callable[[Chunk], Any]


def _keep_worker(worker: Callable[[Chunk], Any]) -> None:
    global _worker
    _worker = worker


def _work(chunk: Chunk) -> Any:
    return _worker(chunk)
