"""Csv files: their columns, and where their rows stand in the file."""

import csv
from collections.abc import Iterable, Iterator

from ..errors import DataError
from .texts import guess_encoding


# What else than commas may stand between columns
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def read_csv(lines: Iterable[str]) -> Iterator[list[str]]:
    """Returns a reader of csv with fields of any length."""
    csv.field_size_limit(1 << 30)
    return csv.reader(lines, strict=True)


def read_header(path: str) -> list[str]:
    """
    Returns the columns of a csv file. One without a name, such as the index that pandas writes, is `Unnamed: 0` by its
    position, as pandas reads it.

    Raises:
        DataError: if the header is broken, not UTF-8 text, or its columns are not divided by commas.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = next(read_csv(file), [])
    except csv.Error as error:
        raise _csv_error(path, error, 1) from error
    except UnicodeDecodeError as error:
        raise _encoding_error(path, error, error.object.count(b"\n", 0, error.start) + 1) from error
    other = next((sign for sign in SEPARATORS if len(header) == 1 and sign in header[0]), None)
    if other:
        raise DataError(
            f"'{path}' has {SEPARATORS[other]} between its columns ({header[0]!r}). Save it with commas between them."
        )
    return [name or f"Unnamed: {position}" for position, name in enumerate(header)]


def find_rows(path: str, chunk_bytes: int) -> Iterator[tuple[int, int, int]]:
    """
    Yields the parts of a csv file to read at a time.

    Args:
        path (`str`):
            The file.
        chunk_bytes (`int`):
            Bytes of a part, about.

    Yields:
        `tuple[int, int, int]`: the bytes where a part starts and ends, and the line of its first row.

    Raises:
        DataError: if the file is broken, or not UTF-8 text.
    """
    consumed = 0

    def lines(file):
        nonlocal consumed
        for line in file:
            consumed += len(line)
            yield line.decode("utf-8" if consumed > len(line) else "utf-8-sig")

    with open(path, "rb") as file:
        reader = read_csv(lines(file))
        try:
            next(reader, None)
            start, first = consumed, reader.line_num + 1
            for _ in reader:
                if consumed - start >= chunk_bytes:
                    yield start, consumed, first
                    start, first = consumed, reader.line_num + 1
        except csv.Error as error:
            raise _csv_error(path, error, reader.line_num) from error
        except UnicodeDecodeError as error:  # which comes before the line is counted
            raise _encoding_error(path, error, reader.line_num + 1) from error
        if consumed > start:
            yield start, consumed, first


def _csv_error(path: str, error: csv.Error, line: int) -> DataError:
    reason = "a line ends in CR alone" if str(error).startswith("new-line character") else error
    return DataError(f"Broken csv in '{path}' on line {line}: {reason}. Repair the file.")


def _encoding_error(path: str, error: UnicodeDecodeError, line: int) -> DataError:
    guess = guess_encoding(error.object)
    return DataError(f"'{path}' is not UTF-8 text on line {line}, but perhaps {guess}. Save it as UTF-8.")
