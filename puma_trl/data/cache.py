"""The cache of datasets: one process fills it, what was cut short there is made again, and a full disk is named."""

import errno
import pickle
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate.logging import get_logger
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError
from torch.distributed.distributed_c10d import _get_default_store

from ..config import PumaKLConfig
from ..errors import DataError
from ..files import whole_file
from .images import image_stamp


logger = get_logger(__name__)

# What a file that was cut short raises, and what failing to write one does
ERRORS = (pa.ArrowException, OSError, ValueError, DatasetGenerationError)
# How a disk without room shows, beside its number
FULL_DISK = ("Not enough disk space", "I/O operation on closed file")
# A file of the main process, by which other machines know that they share its cache
MAIN_FILE = ".puma_trl_main"
# Seconds between looks at the store, and between lines that tell of waiting
LOOK, TELL = 0.5, 60.0
# Files whose times are asked for at once, most of which is waiting for a network disk, and those of one task
STAT_THREADS, STAT_BATCH = 32, 1024


@contextmanager
def fill_first(args: PumaKLConfig, work: str) -> Iterator[bool]:
    """
    Lets the main process fill the cache of datasets, and all others read it after that: the first one of each other
    machine fills its own, if that is another one.

    The others wait on the store of the process group and not at a barrier, which would end the run after
    `ddp_timeout`, and one of each machine tells every minute that it waits. What the main process raises is raised in
    all.

    Yields:
        `bool`: whether this process fills a cache, and so has to look whether what is there still holds.
    """
    if not torch.distributed.is_initialized():
        yield True
        return
    store = _get_default_store()
    turn = store.add(f"puma_trl/turn/{args.process_index}", 1)  # the same for all, which come here in step
    machine = args.process_index - args.local_process_index
    key, fills = f"puma_trl/{turn}/{machine}", args.process_index == 0
    if not fills:
        token = _wait(store, f"puma_trl/{turn}/0", args, work)
        if args.local_process_index > 0:
            _wait(store, key, args, work)
        elif not (fills := not _shares_cache(token)):
            _tell(store, key, token)
    try:
        yield fills
    except Exception as error:
        if fills:
            _tell(store, key, error)
        raise
    if fills:
        _tell(store, key, _sign_cache() if machine == 0 else "")


def _tell(store: torch.distributed.Store, key: str, outcome: str | Exception) -> None:
    try:
        store.set(key, pickle.dumps(outcome))
    except (pickle.PicklingError, TypeError, AttributeError):
        store.set(key, pickle.dumps(RuntimeError(str(outcome))))


def _wait(store: torch.distributed.Store, key: str, args: PumaKLConfig, work: str) -> str:
    """Returns what a process has told when it was done, or raises what that one did."""
    start = told = time.monotonic()
    # where the main process draws its bars, the next one speaks
    speaks = args.local_process_index == (1 if args.process_index == args.local_process_index else 0)
    while not store.check([key]):
        time.sleep(LOOK)
        now = time.monotonic()
        if speaks and now - told >= TELL:
            told = now
            minutes = round((now - start) / 60)
            logger.warning(
                f"Process {args.process_index} waits for the main process, which is {work}: {minutes} min so far.",
                main_process_only=False,
            )
    outcome = pickle.loads(store.get(key))
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _sign_cache() -> str:
    """Leaves a name in the cache that is nowhere else, and returns it."""
    token, folder = uuid.uuid4().hex, Path(datasets.config.HF_DATASETS_CACHE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / MAIN_FILE) as file:
            file.write(token)
    except OSError as error:
        logger.warning(f"{folder} cannot be written ({error.strerror}): each machine checks the data by itself.")
    return token


def _shares_cache(token: str) -> bool:
    """Whether the cache of this machine is that of the main process."""
    try:
        return (Path(datasets.config.HF_DATASETS_CACHE) / MAIN_FILE).read_text(encoding="utf-8") == token
    except OSError:
        return False


def images_changed(rows: Dataset, sides: tuple[str, ...]) -> bool:
    """
    Whether an image file has appeared, changed or gone since the rows were checked; asks once for each file.

    Args:
        rows ([`~datasets.Dataset`]):
            Checked rows, with `image_stamps` beside `image_url`.
        sides (`tuple[str, ...]`):
            Ends of the names of these columns.
    """
    stamps = {}
    for side in sides:
        images, numbers = rows.data.column(f"image_url{side}"), rows.data.column(f"image_stamps{side}")
        for images_of_chunk, numbers_of_chunk in zip(images.chunks, numbers.chunks, strict=True):
            paths = pc.struct_field(pc.list_flatten(images_of_chunk), "path")
            stamps.update(zip(paths.to_pylist(), pc.list_flatten(numbers_of_chunk).to_pylist(), strict=True))
    files = [(path, stamp) for path, stamp in stamps.items() if stamp != 0]
    batches = [files[start : start + STAT_BATCH] for start in range(0, len(files), STAT_BATCH)]
    with ThreadPoolExecutor(min(STAT_THREADS, len(batches)) or 1) as pool:
        try:
            return any(pool.map(_has_changed, batches))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _has_changed(files: list[tuple[str, int]]) -> bool:
    return any(stamp != image_stamp({"bytes": None, "path": path}) for path, stamp in files)


def read_or_make(make: Callable[[bool], Dataset]) -> Dataset:
    """
    Reads rows from the cache, or makes them if they are not there, or only a part of them.

    Args:
        make (`Callable[[bool], Dataset]`):
            Makes the rows; with `True` it takes those in the cache, if there are any.

    Raises:
        DataError: if there is no room for the rows, or making them raises it.
    """
    try:
        return make(True)
    except ERRORS as error:
        _raise_known(error)
    try:
        return make(False)
    except ERRORS as error:
        _raise_known(error)
        raise


def _raise_known(error: Exception) -> None:
    """Raises what is no fault of a file in the cache, which making it again would not mend."""
    for cause in (error, error.__cause__):
        if isinstance(cause, DataError):
            raise cause from None
        if getattr(cause, "errno", None) == errno.ENOSPC or str(cause).startswith(FULL_DISK):
            raise DataError(
                f"The rows could not be written to the cache {datasets.config.HF_DATASETS_CACHE}: {cause}. Make room "
                "there, or set HF_DATASETS_CACHE to another folder."
            ) from error
