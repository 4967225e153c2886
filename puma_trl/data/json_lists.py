"""JSON lists of rows, alone or inside of an object: where the rows stand in the file, with little of it in memory."""

import codecs
import json
import re
from array import array
from collections.abc import Iterable, Iterator
from json.decoder import WHITESPACE
from typing import Any

from ..errors import DataError
from .columns import fits_form
from .texts import guess_encoding


BLOCK_BYTES = 1 << 20
# A file by columns has no more of them
MOST_COLUMNS = 1000
# A longer line is left to the scanner, which has no more in memory than an element.
LONGEST_LINE = 64 << 20
BOM = b"\xef\xbb\xbf"
# Keys of a turn of a conversation: a list of such objects is a part of a row.
TURN_KEYS = {"role", "from"}
# What an object may say of its list of rows; anything else may belong to each row
ABOUT_LIST = set(
    "version name dataset dataset_name title description info license licenses licence citation homepage url source "
    "author authors date created created_at updated_at split splits count total size num_rows num_examples length id "
    "metadata features".split()
)

NUMBER = re.compile(r"[-+.\deE]*")
RAW_DECODE = json.JSONDecoder().raw_decode


class BrokenList(DataError):
    """The structure of a JSON file is broken."""


def json_kind(path: str) -> str:
    """
    Tells a JSON list of rows, or an object that holds rows, from JSON lines.

    Args:
        path (`str`):
            A file of JSON. Broken ones count as JSON lines, of which each can be dropped by itself.

    Returns:
        `str`: `"list"` (alone or inside of an object), `"keyed"` (an object of rows, each behind its id) or `"lines"`.

    Raises:
        DataError: if the file is one object over several lines without rows.
    """
    with open(path, "rb") as file:
        line = file.readline(LONGEST_LINE).removeprefix(BOM)
        while line and not line.strip():
            line = file.readline(LONGEST_LINE)
        more = file.readline(LONGEST_LINE).strip()
    if line.lstrip()[:1] != b"{" or path.lower().endswith(".jsonl"):  # where an object is always a row
        return "list" if line.lstrip()[:1] == b"[" else "lines"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # broken, or an object over several lines
        row = None
    if row is not None:
        holds_rows = any(_is_list_of_rows(value) for value in row.values()) or _share_columns(row.values())
        if more or fits_form(row) or not holds_rows:
            return "lines"
    scanner = ListScanner(path)
    try:
        next(iter(scanner), None)
    except BrokenList:
        return "lines"
    return "keyed" if scanner.keyed else "list"


def _is_list_of_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and not TURN_KEYS & value[0].keys()


def _share_columns(values: Iterable[Any]) -> bool:
    """Whether values are objects with a name in common, as the rows of a file that is keyed by id."""
    names = [set(value) if isinstance(value, dict) else set() for value in values]
    return bool(names) and bool(set.intersection(*names))


def is_by_columns(content: dict[str, Any]) -> bool:
    """Whether an object holds the values of all rows for each column, as a list or, as pandas writes it, by number."""
    columns = [value for value in content.values() if isinstance(value, list | dict) and len(value) > 1]
    if not fits_form(content) or len(columns) < max(len(content), 2) or len(set(map(len, columns))) > 1:
        return False
    numbered = all(isinstance(value, list) or all(key.isdecimal() for key in value) for value in columns)
    cells = [cell for value in columns for cell in (value.values() if isinstance(value, dict) else value)]
    return numbered and not any(isinstance(cell, dict) and TURN_KEYS & cell.keys() for cell in cells)


def by_columns_error(path: str) -> DataError:
    """Returns the error of a file that is written by columns."""
    return DataError(
        f"'{path}' is written by columns, not by rows: each of its keys has the values of all rows. Write a list of "
        'rows, as `DataFrame.to_json(path, orient="records")` of pandas does.'
    )


class ListScanner:
    """
    Iterates over the byte ranges of the elements of a JSON list, or of the only list of rows inside of an object, or
    of the rows of an object that is keyed by id, with their keys.

    Attributes:
        keyed (`bool`): Whether the rows are keyed by id, which is known when the first is there.
    """

    def __init__(self, path: str, block_bytes: int = BLOCK_BYTES):
        self.path = path
        self.block_bytes = block_bytes
        self.text = ""  # one character per byte (Latin-1): JSON's structure is ASCII
        self.position = 0
        self.offset = self.lines = 0  # bytes and line ends before the text
        self.keyed = False
        self.utf8 = codecs.getincrementaldecoder("utf-8")()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        with open(self.path, "rb") as self.file:
            self._read(max(self.block_bytes, len(BOM)))
            if self.text.startswith(BOM.decode("latin-1")):
                self.position = len(BOM)
            yield from self._elements() if self._peek() == "[" else self._rows_of_object()
            if self._peek():
                self._fail("there is text behind the end", self.position)

    def _elements(self) -> Iterator[tuple[int, int]]:
        """Yields the elements of the list that starts at the position, and moves behind it."""
        self.position += 1
        ended = self._peek() == "]"
        while not ended:
            _, end = self._decode()
            yield self.offset + self.position, self.offset + end
            self.position = end
            ended = self._ends("]", "a comma or the end of the list is expected")
        self.position += 1

    def _rows_of_object(self) -> Iterator[tuple[int, int]]:
        """
        Yields the elements of the only list of rows among the values of the object that starts at the position, or the
        values, if all are rows.
        """
        keys, lists, beside, columns, has_empty = [], [], [], {}, False
        places, shared = array("Q"), None  # where rows start and end, and the columns that all have
        self.position += 1
        ended = self._peek() == "}"
        while not ended:
            if self._peek() != '"':
                self._fail("a name in double quotes is expected", self.position)
            start = self.offset + self.position
            key, self.position = self._decode()
            keys.append(key)
            if self._peek() != ":":
                self._fail("a colon is expected", self.position)
            self.position += 1
            if self._peek() == "[" and self._starts_rows():
                lists.append(key)
                if len(lists) > 1:
                    raise DataError(
                        f"'{self.path}' is a JSON object with several lists of rows, `{lists[0]}` and `{key}`. Write "
                        "the one to read to a file of its own."
                    )
                yield from self._elements()
            else:
                value, self.position = self._decode()
                has_empty |= value == []
                if len(keys) <= MOST_COLUMNS:
                    columns[key] = value
                names = set(value) if isinstance(value, dict) else set()
                shared = names if shared is None else shared & names
                places.extend((start, self.offset + self.position))
                if value not in (None, "", [], {}) and key.lower() not in ABOUT_LIST:
                    beside.append(key)
            ended = self._ends("}", "a comma or the end of the object is expected")
        self.position += 1
        if lists and beside:
            raise DataError(
                f"'{self.path}' is a JSON object with rows in `{lists[0]}`, and beside them {_list_keys(beside)}, "
                "which would not be read. Write the rows as JSON lines, each with what belongs to it, or drop that."
            )
        if not lists and len(keys) <= MOST_COLUMNS and is_by_columns(columns):
            raise by_columns_error(self.path)
        self.keyed = not lists and bool(shared) and not fits_form(keys)
        if self.keyed:
            yield from zip(places[::2], places[1::2], strict=True)
        elif not lists and not has_empty:
            raise DataError(
                f"'{self.path}' is one JSON object over several lines, with the keys {_list_keys(keys)}, not a "
                "list of rows. Write the rows as a JSON list, or as JSON lines, each row on one line."
            )

    def _ends(self, end: str, reason: str) -> bool:
        """Moves past a comma, behind which there must be more; returns whether the end is there instead."""
        following = self._peek()
        if following == ",":
            self.position += 1
            self._peek()
        elif following != end:
            self._fail(reason, self.position)
        return following == end

    def _starts_rows(self) -> bool:
        """Whether the list at the position has an object as its first element, and no turn of a conversation."""
        while (start := WHITESPACE.match(self.text, self.position + 1).end()) == len(self.text):
            if not self._read(self.block_bytes):
                return False
        if self.text[start] != "{":
            return False
        bracket, self.position = self.position, start
        element, _ = self._decode()
        self.position = bracket
        return not TURN_KEYS & element.keys()

    def _read(self, size: int) -> bool:
        block = self.file.read(size)
        before = len(self.text)
        self.text += block.decode("latin-1")
        try:
            self.utf8.decode(block, final=not block)
        except UnicodeDecodeError as error:
            self._fail(describe_failure(error), before + error.start)
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
            if not self._read(self.block_bytes):
                return ""

    def _decode(self) -> tuple[Any, int]:
        """Returns the value at the position and its end, reading on while it may be cut off by the end of the text."""
        while True:
            try:
                value, end = RAW_DECODE(self.text, self.position)
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - 10
                if not cut_off or not self._read(max(self.block_bytes, len(self.text))):
                    self._fail(error.msg, error.pos)
            except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
                self._fail(describe_failure(error), self.position)
            else:
                whole = isinstance(value, str | list | dict) or NUMBER.match(self.text, end).end() < len(self.text)
                if whole or not self._read(self.block_bytes):  # a number may go on behind the text
                    return value, end

    def _fail(self, reason: str, position: int):
        line = self.lines + self.text.count("\n", 0, position) + 1
        raise BrokenList(
            f"Broken JSON in '{self.path}' on line {line}: {reason}. Repair the file, or write it as JSON lines, "
            "where single broken rows can be dropped."
        )


def _list_keys(keys: list[str]) -> str:
    return ", ".join(f"`{key}`" for key in keys[:5]) + (", …" if len(keys) > 5 else "")


def describe_failure(error: ValueError | RecursionError) -> str:
    """Words why a text of JSON could not be read."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text, but perhaps {guess_encoding(error.object)}; save the file as UTF-8"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]
