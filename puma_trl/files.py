"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def unfinished(path: str | Path) -> Path:
    """Returns what a file is called until it is whole; a kill leaves that, and the next writer replaces it."""
    path = Path(path)
    return path.with_name(f"{path.name}.tmp")


@contextmanager
def whole_file(path: str | Path, mode: str = "w", **kwargs: Any) -> Iterator[IO]:
    """
    Opens a file for writing that gets its name, and replaces an older one, only when the block ends well.

    Until then it stands beside it as `NAME.tmp`; after an error or an interrupt nothing of it is left.

    Args:
        path (`str` or `Path`):
            The file. Its folder is made if it is missing.
        mode (`str`, *optional*, defaults to `"w"`):
            `"w"` (UTF-8) or `"wb"`.
        kwargs (`dict`, *optional*):
            Further arguments of `open`.

    Raises:
        FileExistsError: if the path is there and no regular file, such as a folder or a device.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise FileExistsError(f"'{path}' is not a regular file, so nothing is written there. Choose another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = unfinished(path)
    if "b" not in mode:
        kwargs.setdefault("encoding", "utf-8")
    try:
        with open(beside, mode, **kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
