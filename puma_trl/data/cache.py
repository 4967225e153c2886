"""The cache of datasets: what was cut short there is made again, and a full disk is named."""

import errno
from collections.abc import Callable

import datasets
import pyarrow as pa
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError

from ..errors import DataError


# What a file that was cut short raises, and what failing to write one does
ERRORS = (pa.ArrowException, OSError, ValueError, DatasetGenerationError)
# How a disk without room shows, beside its number
FULL_DISK = ("Not enough disk space", "I/O operation on closed file")


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
