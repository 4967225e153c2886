"""A chunk of a data file → its rows, as they stand there, each with its number."""

import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from .csv_files import read_csv
from .files import Chunk, Source, column_names, table_columns
from .json_lists import BOM, describe_failure
from .numbers import Number, find_readers


BETWEEN = re.compile(r"[\s:,]*")  # keys and values of an object


@dataclass(frozen=True)
class BrokenRow:
    """A row that could not be parsed: its text and the reason."""

    text: str
    problem: str


def read_chunk(
    source: Source, chunk: Chunk, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, Any] | BrokenRow]]:
    """
    Reads a chunk of [`find_chunks`].

    Args:
        source (`Source`):
            What the chunk is of.
        chunk (`Chunk`):
            The chunk.
        columns (`Sequence[str]`, *optional*):
            What to read of a table. Defaults to what its form looks at.

    Yields:
        `tuple[int, dict | BrokenRow]`: the number of a row, counted from 1 (of jsonl and csv the line where it
        starts), and the row.
    """
    if source.kind == "table":
        if columns is None:
            columns = table_columns(source)
        names = [name for name in source.table.column_names if name in columns]
        rows = source.table.select_columns(names).with_format("arrow")[chunk.start : chunk.end]
        yield from enumerate(_as_shown(rows.to_pylist(), source, names), chunk.first)
        return
    with open(source.path, "rb") as file:
        file.seek(chunk.start)
        content = file.read(chunk.end - chunk.start)
    if source.kind == "lines":
        for number, line in enumerate(content.split(b"\n"), chunk.first):
            if number == 1:
                line = line.removeprefix(BOM)
            if line.strip():
                yield number, _parse_line(line, number)
    elif source.kind == "list":
        yield from enumerate(_parse_list(source, b"[" + content.strip(b" \t\r\n,") + b"]"), chunk.first)
    elif source.kind == "keyed":
        yield from enumerate(_parse_keyed(content.decode()), chunk.first)
    else:
        yield from _read_csv(source, content.decode(), chunk.first)


def _as_shown(rows: list[dict[str, Any]], source: Source, names: list[str]) -> list[dict[str, Any]]:
    """Gives numbers that a table stores for something else, or in less precision, as they are shown."""
    readers = find_readers({name: source.table.features[name] for name in names})
    for row in rows if readers else ():
        row |= {name: read(row[name]) for name, read in readers.items()}
    return rows


def _row(pairs: list[tuple[str, Any]]) -> dict[str, Any] | BrokenRow:
    row = dict(pairs)
    broken = next(filter(None, map(_broken_inside, row.values())), None)
    if broken is not None:
        return broken
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        return BrokenRow(
            json.dumps(pairs, default=repr), f"duplicate column: `{twice}` stands more than once in the row"
        )
    return row


def _broken_inside(value: Any) -> BrokenRow | None:
    if isinstance(value, list):
        return next(filter(None, map(_broken_inside, value)), None)
    return value if isinstance(value, BrokenRow) else None


def _parse_line(line: bytes, number: int) -> Any:
    try:
        if b"\0" in line:
            raise ValueError(f"NUL byte at position {line.index(0)}")
        return json.loads(line.decode(), object_pairs_hook=_row, parse_float=Number)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        reason = describe_failure(error)
        if reason.startswith("Extra data") and b"\r" in line.strip():
            reason = "its lines end in CR alone; save the file with LF"
        return BrokenRow(line.decode(errors="replace"), f"broken JSON: line {number}: {reason}")


def _parse_list(source: Source, text: bytes) -> list[Any]:
    try:
        return json.loads(text, object_pairs_hook=_row, parse_float=Number)
    except RecursionError as error:
        raise DataError(f"Broken JSON in '{source.path}': {describe_failure(error)}. Repair the file.") from error


def _parse_keyed(text: str) -> Iterator[dict[str, Any] | BrokenRow]:
    """Reads rows behind their keys, which become their ids unless they have some."""
    decoder = json.JSONDecoder(object_pairs_hook=_row, parse_float=Number)
    position = 0
    while position < len(text):
        key, position = decoder.raw_decode(text, position)
        row, position = decoder.raw_decode(text, BETWEEN.match(text, position).end())
        yield {"id": key} | row if isinstance(row, dict) else row
        position = BETWEEN.match(text, position).end()


def _read_csv(source: Source, text: str, first: int) -> Iterator[tuple[int, dict[str, Any] | BrokenRow]]:
    header = column_names(source)
    reader = read_csv(io.StringIO(text, newline=""))
    number = first
    for values in reader:
        if values and len(values) != len(header):
            problem = f"broken csv: the row has {len(values)} fields, the header has {len(header)}"
            yield number, BrokenRow(json.dumps(values), problem)
        elif values:  # a blank line has none
            yield number, {name: value or None for name, value in zip(header, values, strict=True)}
        number = first + reader.line_num
