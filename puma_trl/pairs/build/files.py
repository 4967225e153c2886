"""The files of a build: the pairs and pictures of one chunk of the input."""

import json
import os
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value

from ...data.files import COLUMNS


FILES_PER_FOLDER = 10_000
ROWS_PER_GROUP = 100  # of a parquet file: what is in memory at a time
GREYS = bytes(level for level in range(256) for _ in range(3))
FEATURES = Features(
    {name: Image() if name.startswith("image") else Value("string") for name in COLUMNS} | {"kind": Value("string")}
)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is either all there or not there."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


class Part:
    """
    Writes the pairs of a chunk.

    Pictures go to folders of at most `FILES_PER_FOLDER` files, and rows to a jsonl file at the end; or both go to a
    parquet file, some rows at a time.

    Args:
        output (`Path`):
            Folder of the build.
        number (`int`):
            Number of the chunk.
        embedded (`bool`):
            Whether to write parquet.
    """

    def __init__(self, output: Path, number: int, embedded: bool):
        self.output, self.number, self.embedded = output, number, embedded
        self.target = output / "data" / f"train-{number:05d}.parquet"
        self.count = 0  # pictures
        self.rows: list[dict[str, Any]] = []
        self.writer: pq.ParquetWriter | None = None

    def add_row(self, row: dict[str, Any]) -> None:
        """Adds a pair, whose pictures have been added."""
        self.rows.append(row)
        if self.embedded and len(self.rows) == ROWS_PER_GROUP:
            self._write_group()

    def _write_group(self) -> None:
        schema = FEATURES.arrow_schema
        if self.writer is None:
            self.target.parent.mkdir(exist_ok=True)
            self.writer = pq.ParquetWriter(self.target.with_suffix(".tmp"), schema)
        self.writer.write_table(pa.Table.from_pylist(self.rows, schema=schema))
        self.rows = []

    def finish(self, dropped: list[dict[str, Any]]) -> None:
        """Puts the files in their places."""
        name = f"{self.number:05d}"
        write_whole(self.output / "parts" / f"{name}.dropped.jsonl", "".join(_line(row) for row in dropped))
        if not self.embedded:
            rows = (row | {"image_url": row["image_url"] or ""} for row in self.rows)
            write_whole(self.output / "parts" / f"{name}.jsonl", "".join(_line(row) for row in rows))
            return
        if self.rows:
            self._write_group()
        if self.writer is not None:
            self.writer.close()
            os.replace(self.target.with_suffix(".tmp"), self.target)

    def add_picture(self, image: PIL.Image.Image) -> str | dict[str, Any]:
        """Saves a picture as PNG."""
        if image.mode == "L":
            image.putpalette(
                GREYS
            )  # Pillow filters no rows of a palette, which halves the time, and the size is the same
        buffer = BytesIO()
        image.save(buffer, format="PNG", compress_level=1)
        return self._save(buffer.getvalue(), ".png")

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
