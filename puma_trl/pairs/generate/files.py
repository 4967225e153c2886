"""Rows of pairs → a jsonl file with its pictures."""

import json
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ...files import whole_file


FILES_PER_FOLDER = 10_000


def write_pairs(rows: Iterator[dict], path: Path, image_folder: str) -> int:
    """
    Writes rows to a jsonl file and their pictures beside it, at most 10,000 files in a folder.

    The file gets its name when it is complete. Pictures of a run that failed stay, for the next one to write again.

    Args:
        rows (`Iterator[dict]`):
            Rows of [`generate_pairs`], or of one side of them.
        path (`Path`):
            The jsonl file.
        image_folder (`str`):
            Folder of the pictures, relative to that of the file.

    Returns:
        Number of rows written.

    Raises:
        FileExistsError: if the file exists.
    """
    refuse_existing(path)
    count = 0
    with whole_file(path) as file:
        for row in rows:
            row = _store_pictures(row, path.parent, image_folder, count)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def refuse_existing(path: Path) -> None:
    """
    Makes sure that nothing is overwritten.

    Raises:
        FileExistsError: if the file exists.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists and would be overwritten. Choose another output folder.")


def _store_pictures(row: dict, folder: Path, image_folder: str, number: int) -> dict:
    """Writes the pictures of a row and puts their paths in their places; a figure that both sides share comes once."""
    paths: dict[bytes, str] = {}
    for column in ("image_url_2", "image_url"):
        picture = row.get(column)
        if isinstance(picture, (Image.Image, bytes)):
            key = picture if isinstance(picture, bytes) else picture.tobytes()
            if key not in paths:
                second = "_text_rich" if paths else ""
                paths[key] = f"{image_folder}/{number // FILES_PER_FOLDER:03d}/{number:07d}{second}.png"
                _store_picture(picture, folder / paths[key])
            row = row | {column: paths[key]}
    return row


def _store_picture(picture: Image.Image | bytes, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(picture, bytes):
        target.write_bytes(picture)
    else:
        picture.save(target)
