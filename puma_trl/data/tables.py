"""Parquet files → memory-mapped tables, with little of them in memory, whatever their pictures weigh."""

import errno
import hashlib
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from ..errors import DataError


NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
MAGIC = b"PAR1"
BATCH_BYTES = 16 << 20
LARGEST_BATCH = 1000
# What is read at a time of a column, instead of all of a row group
BUFFER_BYTES = 1 << 20


def open_parquet(path: Path, version: str) -> Dataset:
    """
    Opens a parquet file through a copy of it in the cache of datasets, from which rows can be read at random.

    Args:
        path (`Path`):
            The file.
        version (`str`):
            Changes with the content.

    Raises:
        DataError: if the file is not parquet, cut off or broken.
    """
    with open(path, "rb") as file:
        begins = file.read(len(MAGIC)) == MAGIC
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - len(MAGIC)))
        ends = file.read() == MAGIC
    if not begins or not ends:
        what = "is cut off: it does not end as a parquet file does" if begins else "is not a parquet file"
        raise DataError(f"'{path}' cannot be read as parquet: it {what}. Write or copy the file again.")
    digest = hashlib.sha256(version.encode()).hexdigest()[:32]
    copy = Path(datasets.config.HF_DATASETS_CACHE) / "puma_trl" / f"{digest}.arrow"
    if copy.exists():
        try:
            return Dataset.from_file(str(copy))
        except (pa.ArrowException, OSError):  # cut short, as by a full disk: made again
            pass
    try:
        _copy_rows(path, copy)
        return Dataset.from_file(str(copy))
    except OSError as error:
        if error.errno in NOT_WRITABLE:
            raise DataError(
                f"'{path}' could not be copied to {copy.parent}: {error}. Make room there, or set HF_DATASETS_CACHE "
                "to another folder."
            ) from error
        raise _broken(path, error) from error
    except DataError:
        raise
    except (pa.ArrowException, NotImplementedError, ValueError, TypeError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> DataError:
    return DataError(f"'{path}' cannot be read as parquet: {str(error).rstrip('.')}. Write or copy the file again.")


def _copy_rows(path: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    unfinished = copy.with_name(f"{copy.stem}.{os.getpid()}.tmp")  # other runs may be at the same file
    try:
        with (
            pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES) as parquet,
            pa.OSFile(str(unfinished), "wb") as file,
            pa.ipc.new_stream(file, parquet.schema_arrow) as writer,
        ):
            for name in parquet.schema_arrow.names:
                if parquet.schema_arrow.names.count(name) > 1:
                    raise DataError(f"'{path}' has the column `{name}` more than once. Rename or remove the others.")
            groups = [parquet.metadata.row_group(index) for index in range(parquet.num_row_groups)]
            heaviest = max((group.total_byte_size / group.num_rows for group in groups if group.num_rows), default=1)
            for batch in parquet.iter_batches(batch_size=int(min(max(BATCH_BYTES // heaviest, 1), LARGEST_BATCH))):
                writer.write_batch(batch)
        os.replace(unfinished, copy)
    finally:
        unfinished.unlink(missing_ok=True)
        pa.default_memory_pool().release_unused()
