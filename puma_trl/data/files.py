"""Data files → rows: find the files of a data set, divide them into chunks, read one chunk."""

import codecs
import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from json.decoder import WHITESPACE
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, load_dataset

from ..errors import DataError


SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
SIDE_COLUMNS = ("image_url", "instruction", "output")
PAIR_COLUMNS = tuple(f"{name}_2" for name in SIDE_COLUMNS)
COLUMNS = SIDE_COLUMNS + PAIR_COLUMNS
REQUIRED = ("instruction", "output")
# What a run or a build leaves of rows that it could not use.
DROPPED = "dropped_rows.jsonl"

# A chunk is what one worker reads at a time.
CHUNK_BYTES = 1 << 20
CHUNK_ROWS = 500

# The first character of a JSON file must stand within this many bytes.
START_BYTES = 4096

RAW_DECODE = json.JSONDecoder().raw_decode


@dataclass(frozen=True)
class Source:
    """
    One file, or one data set of the Hub.

    Args:
        kind (`str`):
            `"lines"` (JSON lines), `"list"` (a JSON list), `"csv"` or `"table"` (parquet and the Hub).
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
    """

    kind: str
    name: str
    root: str | None
    version: str
    path: str | None = None
    table: Dataset | None = None


class Chunk(NamedTuple):
    """
    Rows of a source that are read at a time.

    Args:
        source (`int`):
            Position of the source.
        start, end (`int`):
            Bytes of a file, or rows of a table.
        first (`int`):
            Index of the first row.
    """

    source: int
    start: int
    end: int
    first: int


@dataclass(frozen=True)
class BrokenRow:
    """A row that could not be parsed: its text and the reason."""

    text: str
    problem: str


def find_sources(names: list[str], image_root: str | None, config: str | None, split: str) -> list[Source]:
    """
    Finds the files behind the names of data sets.

    Args:
        names (`list[str]`):
            Files, folders (all data files in them but `DROPPED`) or Hub data sets.
        image_root (`str`, *optional*):
            Folder that relative image paths start from. Defaults to the folder of each file.
        config (`str`, *optional*):
            Configuration of the Hub data sets.
        split (`str`):
            Split of the Hub data sets.

    Raises:
        DataError: if a name is neither a file, a folder with data files, nor a data set that the Hub can deliver.
    """
    sources = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            _refuse_saved_to_disk(path)
            found = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            files = sorted(file for file in found if file.name != DROPPED)
            if not files:
                raise DataError(
                    f"The folder '{name}' has no {', '.join(SUFFIXES)} file. Name a folder with data files."
                )
            sources += [_file_source(file, image_root) for file in files]
        elif path.is_file():
            sources.append(_file_source(path, image_root))
        elif path.suffix.lower() in SUFFIXES or name.count("/") > 1 or name.startswith((".", "/", "~")):
            raise DataError(f"The data file '{name}' does not exist. Check `dataset_name` and the current folder.")
        else:
            sources.append(_hub_source(name, image_root, config, split))
    short = [source.name for source in sources]
    return [
        replace(source, name=source.path or source.name) if short.count(source.name) > 1 else source
        for source in sources
    ]


def _refuse_saved_to_disk(folder: Path) -> None:
    """Its rows are in Arrow files, and the JSON files beside them are no data."""
    single = all((folder / name).is_file() for name in ("dataset_info.json", "state.json"))
    if single or (folder / "dataset_dict.json").is_file():
        raise DataError(
            f"The folder '{folder}' was written by `save_to_disk`, which is not read here. Write the data with "
            "`dataset.to_parquet(...)` and name that file."
        )


def _file_source(path: Path, image_root: str | None) -> Source:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"'{path}' is no data file: its name must end with one of {', '.join(SUFFIXES)}.")
    stat = path.stat()
    table = None
    if suffix == ".csv":
        kind = "csv"
    elif suffix == ".parquet":
        kind = "table"
        try:
            table = load_dataset("parquet", data_files=str(path), split="train")
        except Exception as error:  # datasets wraps Arrow's errors in several ways
            reason = error.__cause__ or error
            raise DataError(f"'{path}' cannot be read as parquet: {reason}. Write the file again.") from error
    else:
        kind = "list" if _first_byte(path) == b"[" else "lines"
    return Source(
        kind=kind,
        name=path.name,
        root=image_root or str(path.parent.absolute()),
        version=f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns}",
        path=str(path),
        table=table,
    )


def _first_byte(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(START_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def _hub_source(name: str, image_root: str | None, config: str | None, split: str) -> Source:
    try:
        table = load_dataset(name, config, split=split)
    except Exception as error:  # network, missing repository, configuration, split, or broken files
        raise DataError(
            f"'{name}' is no file or folder here, and the Hub gave no data set of that name (configuration {config}, "
            f"split {split}): {error}. Check `dataset_name`, `dataset_config` and `dataset_train_split`."
        ) from error
    return Source(kind="table", name=name, root=image_root, version=table._fingerprint, table=table)


def find_chunks(sources: list[Source], required: Sequence[str] = REQUIRED) -> Iterator[Chunk]:
    """
    Divides sources into chunks that can be read independently; an empty source is one empty chunk.

    Args:
        sources (`list[Source]`):
            What [`find_sources`] returned.
        required (`Sequence[str]`, *optional*):
            Columns that a csv file or a table must have. Defaults to those of training data.

    Yields:
        `Chunk`: where its rows stand.

    Raises:
        DataError: if the structure of a file is broken, or a file has duplicate columns or lacks a required one.
    """
    finders = {"lines": _line_chunks, "list": _list_chunks, "csv": _csv_chunks, "table": _table_chunks}
    for position, source in enumerate(sources):
        start = None
        if source.kind in ("csv", "table"):
            _check_columns(_columns(source), source, required)
        for start, end, first in finders[source.kind](source):
            yield Chunk(position, start, end, first)
        if start is None:
            yield Chunk(position, 0, 0, 0)


def _line_chunks(source: Source) -> Iterator[tuple[int, int, int]]:
    with open(source.path, "rb") as file:
        start = first = 0
        while block := file.read(CHUNK_BYTES):
            block += file.readline()
            yield start, start + len(block), first
            start += len(block)
            first += block.count(b"\n")


def _list_chunks(source: Source) -> Iterator[tuple[int, int, int]]:
    start = first = end = None
    for index, (element_start, element_end) in enumerate(_ListScanner(source.path)):
        if start is None:
            start, first = element_start, index
        end = element_end
        if end - start >= CHUNK_BYTES:
            yield start, end, first
            start = None
    if start is not None:
        yield start, end, first


class _ListScanner:
    """Iterates over the byte ranges of a JSON list's elements, with little of the file in memory."""

    def __init__(self, path: str):
        self.path = path
        self.text = ""  # one character per byte (Latin-1): JSON's structure is ASCII
        self.position = 0
        self.offset = self.lines = 0  # bytes and line ends before the text
        self.utf8 = codecs.getincrementaldecoder("utf-8")()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        with open(self.path, "rb") as self.file:
            self._read(max(CHUNK_BYTES, START_BYTES))
            self.position = self.text.index("[") + 1
            following = self._peek()
            while following != "]":
                end = self._decode()
                yield self.offset + self.position, self.offset + end
                self.position = end
                following = self._peek()
                if following == ",":
                    self.position += 1
                    self._peek()
                elif following != "]":
                    self._fail("a comma or the end of the list is expected", self.position)
            self.position += 1
            if self._peek():
                self._fail("there is text behind the end of the list", self.position)

    def _read(self, size: int) -> bool:
        block = self.file.read(size)
        before = len(self.text)
        self.text += block.decode("latin-1")
        try:
            self.utf8.decode(block, final=not block)
        except UnicodeDecodeError as error:
            self._fail(f"not UTF-8 text: {error}", before + error.start)
        return bool(block)

    def _peek(self) -> str:
        """Moves to the next character that is no white space; the empty string is the end of the file."""
        while True:
            self.position = WHITESPACE.match(self.text, self.position).end()
            if self.position < len(self.text):
                return self.text[self.position]
            self.lines += self.text.count("\n")
            self.offset += len(self.text)
            self.text, self.position = "", 0
            if not self._read(CHUNK_BYTES):
                return ""

    def _decode(self) -> int:
        """Returns the end of the element at the position, reading on while it is cut off by the end of the text."""
        while True:
            try:
                return RAW_DECODE(self.text, self.position)[1]
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - 10
                if not cut_off or not self._read(max(CHUNK_BYTES, len(self.text))):
                    self._fail(error.msg, error.pos)

    def _fail(self, reason: str, position: int):
        line = self.lines + self.text.count("\n", 0, position) + 1
        raise DataError(
            f"Broken JSON in '{self.path}' on line {line}: {reason}. Repair the file, or write it as JSON lines, where "
            "single broken rows can be dropped."
        )


def _csv_chunks(source: Source) -> Iterator[tuple[int, int, int]]:
    consumed = 0

    def lines(file):
        nonlocal consumed
        for line in file:
            consumed += len(line)
            yield line.decode("utf-8" if consumed > len(line) else "utf-8-sig")

    with open(source.path, "rb") as file:
        reader = csv.reader(lines(file), strict=True)
        try:
            next(reader, None)
            start, first = consumed, 0
            for index, _ in enumerate(reader, start=1):
                if consumed - start >= CHUNK_BYTES:
                    yield start, consumed, first
                    start, first = consumed, index
        except (csv.Error, UnicodeDecodeError) as error:
            line = reader.line_num + isinstance(
                error, UnicodeDecodeError
            )  # the latter comes before the line is counted
            raise DataError(f"Broken csv in '{source.path}' on line {line}: {error}. Repair the file.") from error
        if consumed > start:
            yield start, consumed, first


def _columns(source: Source) -> list[str]:
    if source.kind == "table":
        return source.table.column_names
    with open(source.path, encoding="utf-8-sig", errors="replace", newline="") as file:
        return next(csv.reader(file), [])


def _check_columns(columns: list[str], source: Source, required: Sequence[str]) -> None:
    for name in columns:
        if columns.count(name) > 1:
            raise DataError(f"'{source.name}' has the column `{name}` more than once. Rename or remove the others.")
    missing = [name for name in required if name not in columns]
    if columns and missing:
        raise DataError(
            f"'{source.name}' has no column {' and no column '.join(f'`{name}`' for name in missing)}. Its columns are: "
            f"{', '.join(columns)}. Rename the ones that hold the problem and the answer."
        )


def _table_chunks(source: Source) -> Iterator[tuple[int, int, int]]:
    for start in range(0, len(source.table), CHUNK_ROWS):
        yield start, min(start + CHUNK_ROWS, len(source.table)), start


def read_chunk(
    source: Source, chunk: Chunk, columns: Sequence[str] = COLUMNS
) -> Iterator[tuple[int, dict[str, Any] | BrokenRow]]:
    """
    Reads a chunk of [`find_chunks`]: pairs of a row's index (0-based) and the row, as it stands in the file.

    Of a table only `columns` are read, by default those of training data.
    """
    _, start, end, first = chunk
    if source.kind == "table":
        columns = [name for name in columns if name in source.table.column_names]
        rows = source.table.select_columns(columns).with_format("arrow")[start:end].to_pylist()
        yield from enumerate(rows, first)
        return
    with open(source.path, "rb") as file:
        file.seek(start)
        content = file.read(end - start)
    if source.kind == "lines":
        for index, line in enumerate(content.split(b"\n"), first):
            if index == 0:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield index, _parse_line(line, index)
    elif source.kind == "list":
        yield from enumerate(json.loads(b"[" + content.strip(b" \t\r\n,") + b"]", object_pairs_hook=_row), first)
    else:
        header = _columns(source)
        for index, values in enumerate(csv.reader(io.StringIO(content.decode(), newline="")), first):
            yield index, _csv_row(header, values)


def _row(pairs: list[tuple[str, Any]]) -> dict[str, Any] | BrokenRow:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        return BrokenRow(json.dumps(pairs), f"duplicate column: `{twice}` stands more than once in the row")
    return row


def _parse_line(line: bytes, index: int) -> Any:
    try:
        if b"\0" in line:
            raise ValueError(f"NUL byte at position {line.index(0)}")
        return json.loads(line.decode(), object_pairs_hook=_row)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are among them
        return BrokenRow(line.decode(errors="replace"), f"broken JSON: line {index + 1}: {error}")


def _csv_row(header: list[str], values: list[str]) -> dict[str, Any] | BrokenRow:
    if len(values) != len(header):
        return BrokenRow(
            json.dumps(values), f"broken csv: the row has {len(values)} fields, the header has {len(header)}"
        )
    return {name: value or None for name, value in zip(header, values, strict=True)}
