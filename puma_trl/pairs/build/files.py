"""The files of a build: claiming its folder, the pairs and pictures of each chunk of the input, joining them."""

import json
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from datasets import Features, Image, Value

from ...data.columns import COLUMNS
from ...data.files import DROPPED
from ...errors import DataError
from ...files import whole_file
from ..generate.files import FILES_PER_FOLDER
from .settings import BuildSettings


SETTINGS = "build.yaml"  # no name that a reader of data files would take for one
MARKER = "{}.json"  # of a chunk that is finished
ROWS_PER_GROUP = 100  # of a parquet file: what is in memory at a time
GREYS = bytes(level for level in range(256) for _ in range(3))
PAIR_FEATURES = Features(
    {
        name: Image() if name.startswith("image") else Value("string")
        for name in (*COLUMNS, "system", "system_2", "kind")
    }
)


def find_marker(output: Path, number: int) -> Path:
    """Returns the file that tells that a chunk is finished."""
    return output / "parts" / MARKER.format(f"{number:05d}")


class ChunkWriter:
    """
    Writes the pairs of a chunk, by its number. Used as a context manager; after an error only pictures are left.

    Pictures go to folders of at most `FILES_PER_FOLDER` files, and rows to a jsonl file at the end; or both go to a
    parquet file, some rows at a time, if they are `embedded`.
    """

    def __init__(self, output: Path, number: int, embedded: bool):
        self.output, self.number, self.embedded = output, number, embedded
        self.target = output / "data" / f"train-{number:05d}.parquet"
        self.count = 0  # pictures
        self.rows: list[dict[str, Any]] = []
        self.last_picture = b""  # of those that were drawn
        self._files = ExitStack()
        self._table: pq.ParquetWriter | None = None

    def __enter__(self) -> "ChunkWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        self._files.__exit__(*error)

    def add_row(self, row: dict[str, Any]) -> None:
        """Adds a pair, whose pictures have been added."""
        self.rows.append(row)
        if self.embedded and len(self.rows) == ROWS_PER_GROUP:
            self._write_group()

    def _write_group(self) -> None:
        marked = {"shows_source": Value("bool")} if "shows_source" in self.rows[0] else {}
        schema = Features(PAIR_FEATURES | marked).arrow_schema
        if self._table is None:
            file = self._files.enter_context(whole_file(self.target, "wb"))
            self._table = self._files.enter_context(pq.ParquetWriter(file, schema))
        self._table.write_table(pa.Table.from_pylist(self.rows, schema=schema))
        self.rows = []

    def finish(self, dropped: list[dict[str, Any]]) -> None:
        """Puts the files in their places."""
        self._write_lines("dropped.jsonl", dropped)
        if not self.embedded:
            self._write_lines("jsonl", (row | {"image_url": row["image_url"] or ""} for row in self.rows))
            return
        if self.rows:
            self._write_group()
        self._files.close()

    def _write_lines(self, suffix: str, rows: Iterable[dict[str, Any]]) -> None:
        with whole_file(self.output / "parts" / f"{self.number:05d}.{suffix}") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def add_picture(self, image: PIL.Image.Image) -> str | dict[str, Any]:
        """Saves a picture as PNG."""
        if image.mode == "L":
            # Pillow filters no rows of a palette, which halves the time, and the size is the same
            image.putpalette(GREYS)
        buffer = BytesIO()
        image.save(buffer, format="PNG", compress_level=1)
        self.last_picture = buffer.getvalue()
        return self._save(self.last_picture, ".png")

    def add_diagram(self, value: dict[str, Any]) -> str | dict[str, Any]:
        """Copies a diagram of the input, byte by byte."""
        content = value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
        return self._save(content, Path(value["path"] or "").suffix.lower() or ".img")

    def _save(self, content: bytes, suffix: str) -> str | dict[str, Any]:
        name = f"images/{self.number:05d}-{self.count // FILES_PER_FOLDER}/{self.count:06d}{suffix}"
        self.count += 1
        if self.embedded:
            return {"bytes": content, "path": Path(name).name}
        path = self.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return name


def prepare_output(output: Path, settings: BuildSettings) -> bool:
    """
    Claims the output folder for a build; returns whether it is finished already.

    A build that has not finished a part, as when its input has to be repaired first, gives way to another.

    Raises:
        DataError: if the folder holds something else, such as a build of other input or options.
    """
    path, parts = output / SETTINGS, output / "parts"
    wanted = json.loads(json.dumps(asdict(settings)))
    if path.exists():
        found = _read_build(path)
        differing = [name for name, value in wanted.items() if found["settings"].get(name) != value]
        if not differing:
            finished = "result" in found
            if finished:
                shutil.rmtree(parts, ignore_errors=True)  # was killed while they were removed
            else:
                parts.mkdir(exist_ok=True)
            return finished
        if "result" in found or any(parts.glob(MARKER.format("*"))):
            name = differing[0]
            raise DataError(
                f"{output} holds another build: its `{name}` is {found['settings'].get(name)}, this one's "
                f"{wanted[name]}. Choose another `--output`, or delete that folder."
            )
        for folder in (parts, output / "images", output / "data"):
            shutil.rmtree(folder, ignore_errors=True)
    elif output.exists() and any(output.iterdir()):
        raise DataError(f"{output} is not empty, and not a build. Choose another `--output`.")
    _write_yaml(path, {"settings": wanted})
    parts.mkdir()
    return False


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    with whole_file(path) as file:
        yaml.safe_dump(content, file, allow_unicode=True)


def _read_build(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("settings"), dict):
        raise DataError(f"{path} was not written by a build: it has no `settings`. Choose another `--output`.")
    return found


def finish(output: Path, settings: BuildSettings, total: dict[str, Any], num_chunks: int) -> None:
    """
    Joins the parts, writes down the counts, and removes the parts.

    Raises:
        DataError: if there is no pair.
    """
    if not total["rows"]:
        shutil.rmtree(output / "parts")  # so that a corrected command may have the folder
        counts = list_counts(total["dropped"] | total["skipped"])
        raise DataError(f"No pair could be built from {total['read']:,} rows ({counts or 'the input is empty'}).")
    joined = [("dropped.jsonl", DROPPED)] if total["dropped"] else []
    joined += [("jsonl", "train.jsonl")] if settings.format == "jsonl" else []
    for suffix, name in joined:
        with whole_file(output / name, "wb") as file:
            for number in range(num_chunks):
                with open(output / "parts" / f"{number:05d}.{suffix}", "rb") as part:
                    shutil.copyfileobj(part, file)
    _write_yaml(output / SETTINGS, {"settings": json.loads(json.dumps(asdict(settings))), "result": total})
    shutil.rmtree(output / "parts")


def list_counts(counts: dict[str, int]) -> str:
    """Words counts: `2 missing value, 1 too wide`."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
