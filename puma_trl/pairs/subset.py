"""Some rows of data files → a file of their own, as they stand there, with paths that lead to the same pictures."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datasets import concatenate_datasets

from ..data.files import Source, find_chunks
from ..data.images import ADDRESS
from ..data.numbers import write_json
from ..data.readers import BrokenRow, read_chunk
from ..data.turns import PICTURE_KEYS
from ..errors import DataError
from ..files import whole_file


def find_target(sources: Sequence[Source], path: Path) -> Path:
    """
    Finds the name of a file for rows of several files of one kind, before hours of work.

    Args:
        sources (`Sequence[Source]`):
            The files.
        path (`Path`):
            The file, without its ending: rows of tables become parquet, all others JSON lines.

    Raises:
        DataError: if files of both kinds are given, or the file exists.
    """
    tables = [source.kind == "table" for source in sources]
    if any(tables) and not all(tables):
        raise DataError("Tables and other files cannot be written into one file. Give those of one kind at a time.")
    path = path.with_suffix(".parquet" if all(tables) else ".jsonl")
    if path.exists():
        is_read = any(source.path is not None and os.path.samefile(source.path, path) for source in sources)
        state, remedy = ("is read", "") if is_read else ("exists", ", or delete it")
        raise DataError(f"'{path}' {state}, and would be written over. Choose another folder{remedy}.")
    return path


def write_subset(sources: Sequence[Source], rows: Iterable[tuple[int, int]], path: Path) -> int:
    """
    Writes rows of several files into one, in the order of the files.

    Args:
        sources (`Sequence[Source]`):
            The files, with their forms.
        rows (`Iterable[tuple[int, int]]`):
            The rows to write: the position of the file, and the number of the row there.
        path (`Path`):
            What [`find_target`] returned.

    Returns:
        Number of rows.
    """
    kept: list[set[int]] = [set() for _ in sources]
    for position, number in rows:
        kept[position].add(number)
    if path.suffix == ".parquet":
        _write_table(sources, kept, path)
    else:
        _write_lines(sources, kept, path)
    return sum(map(len, kept))


def _write_lines(sources: Sequence[Source], kept: Sequence[set[int]], path: Path) -> None:
    with whole_file(path) as file:
        for source, numbers in zip(sources, kept, strict=True):
            for chunk in find_chunks([source]):
                for number, raw in read_chunk(source, chunk):
                    if number in numbers and not isinstance(raw, BrokenRow):
                        row = _with_paths(raw, source, path.parent)
                        file.write(write_json(row) + "\n")


def _write_table(sources: Sequence[Source], kept: Sequence[set[int]], path: Path) -> None:
    parts = [
        source.table.select([number - 1 for number in sorted(numbers)])
        for source, numbers in zip(sources, kept, strict=True)
    ]
    with whole_file(path, "wb") as file:
        concatenate_datasets(parts).to_parquet(file)


def _with_paths(row: dict[str, Any], source: Source, folder: Path) -> dict[str, Any]:
    """Returns a row whose relative paths of pictures start from another folder."""
    if source.root is None:
        return row
    columns = {path[0] for name, paths in source.form.fields.items() if "image" in name for path in paths}
    return {
        name: _lead(value, source.root, folder, name in columns) if name not in source.form.ignored else value
        for name, value in row.items()
    }


def _lead(value: Any, root: str, folder: Path, is_picture: bool) -> Any:
    if isinstance(value, str):
        if not is_picture or not value or ADDRESS.match(value) or os.path.isabs(value):
            return value
        return os.path.relpath(os.path.join(root, value), folder)
    if isinstance(value, list):
        return [_lead(part, root, folder, is_picture) for part in value]
    if isinstance(value, dict):
        return {key: _lead(part, root, folder, is_picture or key in PICTURE_KEYS) for key, part in value.items()}
    return value
