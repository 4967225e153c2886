"""Data files: find those of a dataset, and divide them into chunks."""

import bisect
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, load_dataset

from ..errors import DataError
from .columns import PUBLISHED, Form
from .csv_files import find_rows, read_header
from .json_lists import ListScanner, json_kind
from .splits import refuse_gaps, refuse_splits
from .tables import open_parquet


SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
# What a run or a build leaves of rows that it could not use.
DROPPED = "dropped_rows.jsonl"
# What `datasets` writes of a dataset beside its rows
FACTS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
# Folders that systems leave beside data; so do those whose names begin with a dot.
SYSTEM_FOLDER = "__MACOSX"

# A chunk is what one worker reads at a time.
CHUNK_BYTES = 1 << 20
CHUNK_ROWS = 500
CHUNK_TABLE_BYTES = 16 << 20  # of a table, which may have pictures

# First bytes of files that are not text of JSON or csv
STARTS = {
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8",
    b"\x1f\x8b": "is compressed by gzip; unpack it",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"(\xb5/\xfd": "is compressed by zstd; unpack it",
    b"BZh": "is compressed by bzip2; unpack it",
    b"\xfd7zXZ": "is compressed by xz; unpack it",
    b"PAR1": "is a parquet file; name it .parquet",
    b"ARROW1": "is an Arrow file; write it as parquet",
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself; run `git lfs pull`",
    b"<!DOCTYPE": "is a web page; download the file itself",
    b"<html": "is a web page; download the file itself",
}
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz")
# Other files of rows: in a folder of data they would be missed
FOREIGN = (".tsv", ".ndjson", ".jsonlines", ".arrow", ".feather", ".xlsx")


@dataclass(frozen=True)
class Source:
    """
    One file, or one dataset of the Hub.

    Args:
        kind (`str`):
            `"lines"` (JSON lines), `"list"` (a JSON list), `"keyed"` (a JSON object of rows), `"csv"` or `"table"`
            (parquet and the Hub).
        name (`str`):
            The name that row ids start with.
        root (`str`, *optional*):
            Folder that relative image paths start from.
        version (`str`):
            Changes with the content, so that caches can tell.
        path (`str`, *optional*):
            Path of the file.
        table ([`~datasets.Dataset`], *optional*):
            The rows of a `"table"`.
        form ([`Form`], *optional*):
            How its rows are read. Defaults to the published format.
    """

    kind: str
    name: str
    root: str | None
    version: str
    path: str | None = None
    table: Dataset | None = None
    form: Form = PUBLISHED

    @property
    def identity(self) -> tuple[Any, ...]:
        """The same for the same data under any name, links included."""
        if self.path is None:
            return (self.version,)
        status = os.stat(self.path)
        return (status.st_dev, status.st_ino)

    def row_id(self, number: int) -> str:
        """Returns the id of a row: `pairs.jsonl:17` for line 17 of jsonl or csv, else `pairs.json#17` for row 17."""
        return f"{self.name}{':' if self.kind in ('lines', 'csv') else '#'}{number}"


class Chunk(NamedTuple):
    """
    Rows of a source that are read at a time.

    Args:
        source (`int`):
            Position of the source.
        start, end (`int`):
            Bytes of a file, or rows of a table.
        first (`int`):
            Number of the first row, counted from 1: its line in jsonl and csv.
    """

    source: int
    start: int
    end: int
    first: int


def find_sources(names: list[str], image_root: str | None, config: str | None, split: str) -> list[Source]:
    """
    Finds the files behind the names of datasets.

    Args:
        names (`list[str]`):
            Files, folders (all data files in them but `DROPPED` and hidden ones) or Hub datasets.
        image_root (`str`, *optional*):
            Folder that relative image paths start from. Defaults to the folder of each file.
        config (`str`, *optional*):
            Configuration of the Hub datasets.
        split (`str`):
            Split of the Hub datasets.

    Raises:
        DataError: if a name is neither a file, a folder with data files, nor a dataset that the Hub can deliver; if a
            file cannot be read, or is named twice.
    """
    if image_root is not None and not os.path.isdir(image_root):
        raise _no_root(image_root)
    sources, seen = [], {}
    for name in names:
        path = Path(name)
        if not name.strip():  # which would be the current folder
            raise DataError(f"'{name}' is an empty path. Name a file, a folder, or a dataset of the Hub.")
        if "://" in name:
            raise DataError(
                f"'{name}' is an address, and nothing is downloaded from there. Name a file, a folder, or a dataset "
                "of the Hub as `owner/name`."
            )
        if path.is_dir():
            files = _find_files(path)
            refuse_splits(path, files)
            refuse_gaps(path, files)
        elif os.path.lexists(path):
            files = [path]
        elif any(sign in name for sign in "*?["):
            raise DataError(
                f"No such file: '{name}'. Wildcards are not expanded. Name the folder, or the files as a list."
            )
        elif path.suffix.lower() in SUFFIXES or name.count("/") > 1 or name.startswith((".", "/", "~")):
            raise DataError(f"No such file: '{name}'. Check the path and the current folder.")
        else:
            _refuse_second(name, name, seen)
            sources.append(_hub_source(name, image_root, config, split))
            continue
        for file in files:
            _require_regular(file)
            source = _file_source(file, image_root)
            _refuse_second(source.identity, str(file), seen)
            sources.append(source)
    short = [source.name for source in sources]
    return [
        replace(source, name=source.path or source.name) if short.count(source.name) > 1 else source
        for source in sources
    ]


def _refuse_second(key: Any, name: str, seen: dict[str, str]) -> None:
    if key in seen:
        raise DataError(f"'{name}' and '{seen[key]}' are the same data, which would be read twice. Name it once.")
    seen[key] = name


def _find_files(folder: Path) -> list[Path]:
    """Returns the data files in a folder and those below, through links too, but none that are hidden."""
    _refuse_saved_to_disk(folder)

    def fail(error: OSError) -> None:
        raise DataError(f"The folder '{error.filename}' cannot be read: {error.strerror}. Check its permissions.")

    found, visited = [], {}
    for here, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        _refuse_second(os.path.realpath(here), here, visited)  # a link back would lead around without end
        folders[:] = [name for name in folders if not name.startswith(".") and name != SYSTEM_FOLDER]
        for name in names:
            file = Path(here, name)
            if name.startswith(".") or name in (DROPPED, *FACTS):
                continue
            if file.suffix.lower() in SUFFIXES:
                found.append(file)
            elif file.suffix.lower() in PACKED and Path(file.stem).suffix.lower() in SUFFIXES:
                raise DataError(
                    f"'{file}' is compressed, and would not be read. Unpack it, or take it out of the folder."
                )
            elif file.suffix.lower() in FOREIGN:
                raise DataError(
                    f"'{file}' would not be read. Write it as {', '.join(SUFFIXES)}, or take it out of the folder."
                )
    if not found:
        raise DataError(f"The folder '{folder}' has no {', '.join(SUFFIXES)} file. Name a folder with data files.")
    return sorted(found)


def _refuse_saved_to_disk(folder: Path) -> None:
    """Its rows are in Arrow files; the JSON files beside them hold facts on them."""
    single = all((folder / name).is_file() for name in ("dataset_info.json", "state.json"))
    if single or (folder / "dataset_dict.json").is_file():
        raise DataError(
            f"The folder '{folder}' was written by `save_to_disk`, which is not read here. Write the data with "
            "`dataset.to_parquet(...)` and name that file."
        )


def _require_regular(path: Path) -> None:
    """Refuses what cannot be read as a file, without opening it: reading a pipe would wait for ever."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        reason = (
            "is a link to a file that does not exist" if path.is_symlink() else f"cannot be read: {error.strerror}"
        )
        raise DataError(f"'{path}' {reason}. Name another file.") from None
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
        kind = kinds.get(stat.S_IFMT(mode), "a folder")
        raise DataError(f"'{path}' is {kind}, not a file. Write the data to a file and name that.")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        if suffix in PACKED:
            raise DataError(f"'{path}' is compressed. Unpack it.")
        raise DataError(f"Unsupported file type '{suffix}' of '{path}'. Expected {', '.join(SUFFIXES)}.")
    if not os.access(path, os.R_OK):
        raise DataError(f"'{path}' cannot be read. Check its permissions.")


def _file_source(path: Path, image_root: str | None) -> Source:
    status = path.stat()
    if status.st_size == 0:
        raise empty_error(str(path))
    version = f"{path.absolute()} {status.st_size} {status.st_mtime_ns}"
    table = None
    with open(path, "rb") as file:
        start = file.read(32)
    reason = next((reason for sign, reason in STARTS.items() if start.lower().startswith(sign.lower())), None)
    if path.suffix.lower() == ".parquet":
        if reason and not start.startswith(b"PAR1"):
            raise DataError(f"'{path}' cannot be read as parquet: it {reason}.")
        kind, table = "table", open_parquet(path, version)
    elif reason or b"\0" in start[:4]:
        raise DataError(f"'{path}' cannot be read: it {reason or 'is not UTF-8 text; save it as UTF-8'}.")
    elif path.suffix.lower() == ".csv":
        kind = "csv"
    else:
        kind = json_kind(str(path))
    return Source(
        kind=kind,
        name=path.name,
        root=image_root or str(path.parent.absolute()),
        version=version,
        path=str(path),
        table=table,
    )


def _no_root(root: str) -> DataError:
    return DataError(f"No such folder: `image_root` is '{root}'. Name one that holds the images.")


def empty_error(name: str) -> DataError:
    """Returns the error of data without a row."""
    return DataError(f"'{name}' is empty. Pass a file with at least one row.")


def _hub_source(name: str, image_root: str | None, config: str | None, split: str) -> Source:
    try:
        table = load_dataset(name, config, split=split)
    except Exception as error:  # network, missing repository, configuration, split, or broken files
        raise DataError(
            f"No such file or folder: '{name}'; and the Hub gave no dataset of that name"
            f"{f', configuration {config}' if config else ''}, split {split}: {error}. Check the name and the split."
        ) from error
    return Source(kind="table", name=name, root=image_root, version=table._fingerprint, table=table)


def table_source(table: Dataset, name: str, root: str | None) -> Source:
    """Returns the source of a dataset that is at hand, under a name that its row ids start with."""
    if table.format["type"] == "custom":
        raise DataError(
            f"The {name} dataset shows its rows through `set_transform`, which is not read. Store them with `map`."
        )
    shown = table.format["columns"]
    if not table.format["output_all_columns"] and len(shown) < len(table.column_names):
        table = table.with_format(None).select_columns(shown)  # others are hidden by `with_format(columns=…)`
    if len(table) == 0:
        raise DataError(f"The {name} dataset is empty. Give one with at least one row.")
    if root is not None and not os.path.isdir(root):
        raise _no_root(root)
    return Source(kind="table", name=name, root=root, version=table._fingerprint, table=table)


def find_chunks(sources: Sequence[Source]) -> Iterator[Chunk]:
    """
    Divides sources into chunks that can be read independently; an empty source is one empty chunk.

    Raises:
        DataError: if the structure of a file is broken, or a file has the same column twice.
    """
    finders = {
        "lines": _line_chunks,
        "list": _list_chunks,
        "keyed": _list_chunks,
        "csv": lambda source: find_rows(source.path, CHUNK_BYTES),
        "table": _table_chunks,
    }
    for position, source in enumerate(sources):
        start = None
        if source.kind in ("csv", "table"):
            _refuse_twins(column_names(source), source)
        for start, end, first in finders[source.kind](source):
            yield Chunk(position, start, end, first)
        if start is None:
            yield Chunk(position, 0, 0, 1)


def column_names(source: Source) -> list[str]:
    """
    Returns the columns of a csv file or a table.

    Raises:
        DataError: if the header of the csv file is broken.
    """
    return source.table.column_names if source.kind == "table" else read_header(source.path)


def _refuse_twins(columns: list[str], source: Source) -> None:
    for name in columns:
        if columns.count(name) > 1:
            raise DataError(f"'{source.name}' has the column `{name}` more than once. Rename or remove the others.")


def _line_chunks(source: Source) -> Iterator[tuple[int, int, int]]:
    with open(source.path, "rb") as file:
        start, first = 0, 1
        while block := file.read(CHUNK_BYTES):
            block += file.readline()
            yield start, start + len(block), first
            start += len(block)
            first += block.count(b"\n")


def _list_chunks(source: Source) -> Iterator[tuple[int, int, int]]:
    start = first = end = None
    for number, (element_start, element_end) in enumerate(ListScanner(source.path, CHUNK_BYTES), 1):
        if start is None:
            start, first = element_start, number
        end = element_end
        if end - start >= CHUNK_BYTES:
            yield start, end, first
            start = None
    if start is not None:
        yield start, end, first


def _table_chunks(source: Source) -> Iterator[tuple[int, int, int]]:
    columns = table_columns(source)
    if not columns:
        return
    table = source.table.select_columns(columns).with_format("arrow")
    start = 0
    while start < len(table):
        counts = range(1, min(CHUNK_ROWS, len(table) - start) + 1)
        fitting = bisect.bisect(counts, CHUNK_TABLE_BYTES, key=lambda count: table[start : start + count].nbytes)
        count = max(fitting, 1)
        yield start, start + count, start + 1
        start += count


def table_columns(source: Source) -> list[str]:
    """Returns the columns of a table that are looked at."""
    return [name for name in source.table.column_names if name not in source.form.passed]
