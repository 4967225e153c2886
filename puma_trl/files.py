"""Files that are there whole or not at all."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from .errors import PumaError


# What `torch.save` says where a file cannot be written, in an error of no kind of its own
WRITING = re.compile("PytorchStreamWriter|inline_container|iostream")


def unfinished(path: str | Path) -> Path:
    """Returns what a file is called until it is whole; a kill leaves that, and the next writer replaces it."""
    path = Path(path)
    return path.with_name(f"{path.name}.tmp")


def check_file(path: str | Path) -> None:
    """
    Makes sure that a file can have a name, before the hours of work that it is written after.

    Raises:
        FileExistsError: if the path is there and no regular file, such as a folder or a device.
        NotADirectoryError: if its folder is a file.
    """
    path = Path(path)
    if path.is_dir():
        raise FileExistsError(f"'{path}' is a folder, and a file is to be written. Choose another name.")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"'{path}' is not a regular file, so nothing is written there. Choose another name.")
    check_folder(path.parent)


def check_folder(path: str | Path) -> None:
    """
    Makes sure that a folder is there or can be made.

    Raises:
        NotADirectoryError: if it, or a folder that it is in, is a file.
    """
    for place in (Path(path), *Path(path).parents):
        if place.exists() and not place.is_dir():
            raise NotADirectoryError(f"'{place}' is a file, and a folder is needed. Choose another name.")


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
    check_file(path)
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


@contextmanager
def naming_disk(folder: str | Path, remedy: str = "", kind: type[PumaError] = PumaError) -> Iterator[None]:
    """
    Lets an error of writing, such as a full disk, name the folder and what to do.

    Args:
        folder (`str` or `Path`):
            What is written.
        remedy (`str`, *optional*):
            What to do besides, as the end of a sentence.
        kind (`type[PumaError]`, *optional*, defaults to [`PumaError`]):
            Kind of the error.

    Raises:
        PumaError: in place of that error.
    """
    try:
        yield
    except Exception as error:
        # tokenizers raise errors of no kind, and torch those of the widest
        is_of_writing = isinstance(error, OSError | SafetensorError) or type(error) is Exception
        if not is_of_writing and not (isinstance(error, RuntimeError) and WRITING.search(str(error))):
            raise
        raise kind(
            f"{folder} could not be written: {error}. See that its disk has room and takes files of this size{remedy}."
        ) from error
