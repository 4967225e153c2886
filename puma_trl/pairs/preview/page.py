"""The file of the preview: a template, the thumbnails in blocks, the rows; one page that needs no network."""

import hashlib
import json
from base64 import b64encode
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

from ...data.images import open_image
from ...errors import DataError
from ...files import whole_file


TEMPLATES = Path(__file__).parent / "templates"
# where style, script and data come into the page
STYLE, SCRIPT, DATA = "/* style */\n", "/* script */\n", "<!-- data -->"

# The page decodes a block of pictures when one of them is shown.
IMAGES_PER_BLOCK = 100

WEBP_QUALITY = 80
WEBP_METHOD = 2  # of 0 to 6: slower is smaller


def describe_size(size: int) -> str:
    """Words a number of bytes."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def make_thumbnail(image: dict[str, Any], size: int) -> tuple[str, int, int]:
    """
    Reduces a picture, read as in training, to fit a square.

    Args:
        image (`dict`):
            `{"bytes": …, "path": …}`.
        size (`int`):
            Longest side of the thumbnail in pixels. Smaller pictures keep their size.

    Returns:
        `tuple[str, int, int]`: the thumbnail as WebP in base64, width and height of the picture.

    Raises:
        DataError: if the picture is missing, unreadable, truncated or too large.
    """
    picture = open_image(image)
    width, height = picture.size
    picture.thumbnail((size, size))
    file = BytesIO()
    picture.save(file, "WEBP", quality=WEBP_QUALITY, method=WEBP_METHOD)
    return b64encode(file.getvalue()).decode(), width, height


def read_template() -> tuple[str, str]:
    """Returns what stands before the data of the page, and what stands behind it."""
    page, style, script = (
        (TEMPLATES / f"preview.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "css", "js")
    )
    head, tail = page.split(DATA)
    return head.replace(STYLE, style), tail.replace(SCRIPT, script)


class PageWriter:
    """
    Writes the page piece by piece, so that the thumbnails are never in memory together.

    The file gets its name when it is complete. Used as a context manager; on an error nothing is left.
    """

    def __init__(self, path: Path, thumbnail_size: int):
        self.thumbnail_size = thumbnail_size
        # a lone surrogate, which UTF-8 cannot hold, becomes the escape that JSON has for it
        self._whole = whole_file(path, errors="backslashreplace")
        self._head, self._tail = read_template()
        self._known: dict[Any, list[int] | str] = {}
        self._count = 0
        self._block: list[str] = []

    def __enter__(self) -> "PageWriter":
        self._file = self._whole.__enter__()
        self._file.write(self._head)
        self._pool = ThreadPoolExecutor()
        return self

    def __exit__(self, *error: Any) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._whole.__exit__(*error)

    def add_images(self, images: Sequence[dict[str, Any]]) -> list[list[int] | str]:
        """
        Adds pictures to the page; one that it has already is not added again.

        Args:
            images (`Sequence[dict]`):
                Pictures as `{"bytes": …, "path": …}`.

        Returns:
            For each its number on the page, its width and height, or why it cannot be read.
        """
        keys = [
            image["path"] if image["bytes"] is None else hashlib.sha256(image["bytes"]).digest() for image in images
        ]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._known}
        for key, result in zip(new, self._pool.map(self._try_thumbnail, new.values()), strict=True):
            if isinstance(result, str):
                self._known[key] = result
                continue
            thumbnail, width, height = result
            self._known[key] = [self._count, width, height]
            self._count += 1
            self._block.append(thumbnail)
            if len(self._block) == IMAGES_PER_BLOCK:
                self._write_block()
        return [self._known[key] for key in keys]

    def _try_thumbnail(self, image: dict[str, Any]) -> tuple[str, int, int] | str:
        try:
            return make_thumbnail(image, self.thumbnail_size)
        except DataError as error:
            return str(error)

    def _write_block(self) -> None:
        self._write_json('class="data-images"', self._block)
        self._block = []

    def _write_json(self, attribute: str, value: Any) -> None:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        # nothing in the data can end the script or open a comment in it
        self._file.write(
            f'<script type="application/json" {attribute}>' + text.replace("<", "\\u003c") + "</script>\n"
        )

    def finish(self, rows: list[dict[str, Any]], facts: dict[str, Any]) -> int:
        """
        Writes the rows and what the page says about all of them.

        Args:
            rows (`list[dict]`):
                The rows as the template reads them.
            facts (`dict[str, Any]`):
                `title`, `total`, `unit` and `model`.

        Returns:
            Size of the page in bytes.
        """
        self._write_block()
        self._write_json('id="data-rows"', rows)
        size = self._file.tell() + len(self._tail.encode())
        facts = facts | {
            "images_per_block": IMAGES_PER_BLOCK,
            "page_size": describe_size(size),  # without the facts themselves, a few hundred bytes
            "thumbnail_size": self.thumbnail_size,
        }
        self._write_json('id="data-facts"', facts)
        self._file.write(self._tail)
        return self._file.tell()
