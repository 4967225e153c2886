"""Reading and writing json and jsonl with errors that name file and line."""

import json
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from ..files import whole_file


# of json; a number of more than 4,300 digits is a ValueError
UNREADABLE = (ValueError, RecursionError)
LINE_BREAKS = "\x85\u2028\u2029"


def read_text(path: Path) -> str:
    """
    Reads a UTF-8 text file.

    Raises:
        EvaluationError: if the file does not exist or is not UTF-8 (the line is named).
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise EvaluationError(f"There is no file {path}.") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise EvaluationError(
            f"{path}, line {line}: byte {data[error.start]:#04x} is not UTF-8. Save the file as UTF-8."
        ) from None


def read_json(path: Path) -> Any:
    """
    Reads a json file.

    Raises:
        EvaluationError: if it is no valid json or an object repeats a key.
    """

    text = read_text(path)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = dict(pairs)
        if len(names) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated = next(key for key in names if keys.count(key) > 1)
            raise EvaluationError(f"{path}: the key {repeated!r} occurs twice in one object. Remove one.")
        return names

    try:
        return json.loads(text, object_pairs_hook=unique)
    except EvaluationError:
        raise
    except UNREADABLE as error:
        raise EvaluationError(f"{path}, line {getattr(error, 'lineno', 1)}: {_word_unreadable(error)}") from None


def read_jsonl(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """
    Reads a jsonl file.

    Returns:
        (line number from 1, object) of every line that is not blank.

    Raises:
        EvaluationError: if a line is no JSON object.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except UNREADABLE as error:
            raise EvaluationError(f"{path}, line {number}: {_word_unreadable(error)}") from None
        if not isinstance(row, dict):
            raise EvaluationError(f"{path}, line {number}: expected a JSON object, not {type(row).__name__}.")
        rows.append((number, row))
    return rows


def _word_unreadable(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({error.msg})."
    what = "brackets too deep in each other" if isinstance(error, RecursionError) else "a number of too many digits"
    return f"JSON that cannot be read, with {what}. Correct it."


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file whole or not at all."""
    with whole_file(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Writes readable json."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def json_line(row: dict[str, Any]) -> str:
    """Returns one line of jsonl; characters that some readers take for line breaks are escaped."""
    line = json.dumps(row, ensure_ascii=False)
    if any("\ud800" <= character <= "\udfff" for character in line):
        line = json.dumps(row)  # half a character, as a cut reply may end in, has no UTF-8
    for character in LINE_BREAKS:
        line = line.replace(character, f"\\u{ord(character):04x}")
    return line + "\n"


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes one JSON object per line."""
    write_text(path, "".join(json_line(row) for row in rows))
