"""`responses.jsonl`: one `{"id", "response"}` per line, appended as replies come and never asked for twice."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from .benchmarks import Benchmark
from .files import json_line, read_json, read_jsonl, write_json, write_jsonl


SYNC_EVERY = 16
REPLIES = frozenset({"response", "model_answer"})  # ours and MathVista's, MathVerse's


def read_responses(path: Path, benchmark: Benchmark, items: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """
    Reads a responses file and checks it against the items.

    Args:
        path (`Path`):
            Rows `{"id", "response"}` with, optionally, `extraction` and `judgement`, or the result file of an official
            script: a json of items with `response` (MathVerse: `model_answer`), listed or keyed by id.
        benchmark ([`Benchmark`]):
            The benchmark.
        items (`list[dict[str, Any]]`):
            Its items.

    Returns:
        Id as text → row.

    Raises:
        EvaluationError: if a row has no id or none of response, extraction and judgement, a response is neither text
            nor null, a judgement is neither 0 nor 1, an id is repeated, or ids are not in the items.
    """
    known = {benchmark.item_id(item) for item in items}
    rows: dict[str, dict[str, Any]] = {}
    unknown = []
    for where, row in _read_rows(path, benchmark):
        key = id_of(row, where)
        _check_row(row, where)
        if key in rows:
            raise EvaluationError(f"{where}: the id {key} occurs a second time. Keep one response per item.")
        rows[key] = row
        if key not in known:
            unknown.append(key)
    if unknown:
        names = ", ".join(unknown[:10]) + (", …" if len(unknown) > 10 else "")
        raise EvaluationError(
            f"{path}: {len(unknown)} ids are not in the {benchmark.title} data: {names}. An id is the item's "
            f"`{benchmark.id_column}`; check that responses and data belong together."
        )
    return rows


def _read_rows(path: Path, benchmark: Benchmark) -> list[tuple[str, dict[str, Any]]]:
    """Returns (where, row) of every response, rows of official result files in the form of ours."""
    if path.suffix == ".json":
        content = read_json(path)
        keyed = isinstance(content, dict)
        pairs = (
            list(content.items()) if keyed else list(enumerate(content if isinstance(content, list) else [content]))
        )
        rows = [(f"{path}, key {key!r}" if keyed else f"{path}, row {key} (from 0)", row) for key, row in pairs]
        for where, row in rows:
            if not isinstance(row, dict):
                raise EvaluationError(
                    f"{where}: {type(row).__name__} instead of an object. Expected objects with `response`, listed or "
                    "keyed by id."
                )
        if keyed:
            rows = [
                (where, {benchmark.id_column: key} | row) for (key, _), (where, row) in zip(pairs, rows, strict=True)
            ]
    else:
        rows = [(f"{path}, line {number}", row) for number, row in read_jsonl(path)]
    if not any(REPLIES & row.keys() for _, row in rows):
        return rows  # no results, but perhaps the benchmark's own file
    return [(where, _from_official(row, benchmark)) for where, row in rows]


def _from_official(row: dict[str, Any], benchmark: Benchmark) -> dict[str, Any]:
    if "id" in row or benchmark.id_column not in row:
        return row
    # a script leaves out the reply of a model that gave none
    response = row.get("response", row.get("model_answer", ""))
    kept = {name: row[name] for name in ("extraction", "judgement") if name in row}
    return {"id": row[benchmark.id_column], "response": response} | kept


def id_of(row: dict[str, Any], where: str) -> str:
    """
    Returns the id of a row as text.

    Raises:
        EvaluationError: if it has none.
    """
    if row.get("id") is None:
        raise EvaluationError(f"{where}: the row has no `id`.")
    return str(row["id"])


def _check_row(row: dict[str, Any], where: str) -> None:
    if not {"response", "extraction", "judgement"} & row.keys():
        raise EvaluationError(f"{where}: the row has neither `response` nor `extraction` nor `judgement`.")
    if not isinstance(row.get("response"), str | None):
        raise EvaluationError(f"{where}: `response` is {row['response']!r}, but it must be text or null.")
    if "judgement" in row and (type(row["judgement"]) is not int or row["judgement"] not in (0, 1)):
        raise EvaluationError(f"{where}: `judgement` is {row['judgement']!r}, but it must be 0 or 1.")


class ResponseWriter:
    """
    Appends rows to a jsonl file, line by line, with an fsync every `SYNC_EVERY` rows and at the end.

    Args:
        path (`Path`):
            The file. A last line that a killed process left unfinished is cut off first.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        repair_last_line(path)
        self.file = open(path, "a", encoding="utf-8")
        self.unsynced = 0

    def __enter__(self) -> "ResponseWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        self.sync()
        self.file.close()

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Appends rows; each is in the operating system's hands when this returns, so a killed process loses none."""
        for row in rows:
            self.file.write(json_line(row))
            self.unsynced += 1
        self.file.flush()
        if self.unsynced >= SYNC_EVERY:
            self.sync()

    def sync(self) -> None:
        """Forces everything written so far to the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.unsynced = 0


def repair_last_line(path: Path) -> None:
    """Completes the last line of a jsonl file if only its line break is missing, else cuts off what is torn."""
    if not path.exists():
        return
    data = path.read_bytes()
    head, _, tail = data.rpartition(b"\n")
    if not tail:
        return
    try:
        whole = isinstance(json.loads(tail), dict)
    except ValueError:
        whole = False
    with open(path, "r+b") as file:
        if whole:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        else:
            file.truncate(len(data) - len(tail))
        os.fsync(file.fileno())


def rank_path(path: Path, rank: int) -> Path:
    """Returns the file that one of several processes writes: `responses.rank00003.jsonl`."""
    return path.with_suffix(f".rank{rank:05d}.jsonl")


def merge_ranks(path: Path) -> None:
    """Moves the rows of all ranks' files into the responses file, each id once, whole or not at all."""
    parts = sorted(path.parent.glob(f"{path.stem}.rank*.jsonl"))
    if not parts:
        return
    rows: dict[str, dict[str, Any]] = {}
    for part in [path, *parts]:
        repair_last_line(part)
        if part.exists():
            for line, row in read_jsonl(part):
                # a process killed between writing the merged file and deleting the parts leaves rows twice
                rows.setdefault(id_of(row, f"{part}, line {line}"), row)
    write_jsonl(path, list(rows.values()))
    for part in parts:
        part.unlink()


def settings_path(responses: Path) -> Path:
    """Returns where the settings that made a responses file are kept: `responses.settings.json` for the jsonl."""
    return responses.with_suffix(".settings.json")


def read_settings(responses: Path) -> dict[str, Any]:
    """Returns the settings that made a responses file, empty if it was not made here."""
    path = settings_path(responses)
    settings = read_json(path) if path.exists() else {}
    if not isinstance(settings, dict):
        raise EvaluationError(f"{path} must hold an object of settings. Delete it, if you do not know what it is.")
    return settings


def write_settings(responses: Path, settings: dict[str, Any]) -> None:
    """Writes the settings beside a responses file."""
    write_json(settings_path(responses), settings)


def open_responses(responses: Path, settings: dict[str, Any]) -> None:
    """
    Repairs what a killed run has left, and writes the settings.

    Raises:
        EvaluationError: if the responses so far were made with other ones.
    """
    before = read_settings(responses)
    merge_ranks(responses)
    repair_last_line(responses)
    different = [name for name in settings if before and before.get(name) != settings[name]]
    if different and responses.exists():
        changes = ", ".join(f"{name} {before.get(name)!r} -> {settings[name]!r}" for name in different)
        raise EvaluationError(
            f"{responses} has replies that were made with other settings ({changes}). Choose another output, or "
            f"delete that file and {settings_path(responses).name} to start again."
        )
    write_settings(responses, settings)
