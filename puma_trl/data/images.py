"""Pictures: a check of the header before training, and the pixels in RGB when a batch is made."""

import os
import warnings
from io import BytesIO
from typing import Any

from PIL import Image, ImageOps

from ..errors import DataError


# Pillow's own limit, above which it suspects a decompression bomb: about 89 million pixels.
MAX_PIXELS = Image.MAX_IMAGE_PIXELS

# The last bytes of a complete file. Some writers leave padding behind them.
END_MARKERS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
TAIL = 64

# EXIF orientations that turn a picture by a quarter, so that width and height change places.
ORIENTATION = 0x0112
QUARTER_TURNS = (5, 6, 7, 8)


def _source(value: Any) -> BytesIO | str:
    if isinstance(value, dict):
        value = value["bytes"] if value["bytes"] is not None else value["path"]
    return BytesIO(value) if isinstance(value, bytes) else value


def _name(value: Any) -> str:
    if isinstance(value, dict):
        value = value["path"] or value["bytes"]
    return f"{len(value):,} bytes" if isinstance(value, bytes) else f"'{value}'"


def _open_header(value: Any) -> Image.Image:
    """Opens an image without decoding it, and refuses what can be refused from its header."""
    name = _name(value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(_source(value))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"missing image: {name} does not exist") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"image too large: {name}: {error}") from None
    except Exception as error:  # Pillow's plugins raise all kinds of errors on broken headers
        raise DataError(f"unreadable image: {name}: {error}") from None
    width, height = image.size
    problem = None
    if width * height > MAX_PIXELS:
        problem = f"image too large: {name} has {width} x {height} pixels, more than {MAX_PIXELS:,}"
    elif image.mode == "F":
        problem = f"unreadable image: {name} has floating-point pixels; convert it to 8 or 16 bits"
    if problem:
        image.close()
        raise DataError(problem)
    return image


def _ends_well(value: Any, image_format: str) -> bool:
    marker = END_MARKERS.get(image_format)
    source = _source(value)
    if marker is None:
        return False
    if isinstance(source, BytesIO):
        return marker in source.getvalue()[-TAIL:]
    with open(source, "rb") as file:
        file.seek(max(0, os.path.getsize(source) - TAIL))
        return marker in file.read()


def image_stamp(value: dict[str, Any]) -> int:
    """Returns a number that changes with an image file: its time and size, -1 if it is missing, 0 for plain bytes."""
    if value["bytes"] is not None:
        return 0
    try:
        stat = os.stat(value["path"])
    except (OSError, ValueError):
        return -1
    return stat.st_mtime_ns + stat.st_size


def image_size(value: Any) -> tuple[int, int]:
    """
    Reads the size of an image from its header and makes sure that the file is complete.

    The pixels are only decoded when the format has no end marker (other than PNG and JPEG) or the marker is missing.

    Args:
        value (`dict`, `str` or `bytes`):
            A path, the bytes of a file, or `{"bytes": …, "path": …}` as [`~datasets.Image`] stores them.

    Returns:
        `tuple[int, int]`: height and width in pixels, as [`open_image`] turns the picture.

    Raises:
        DataError: if the image is missing, unreadable, truncated or too large.
    """
    with _open_header(value) as image:
        width, height = image.size
        if not _ends_well(value, image.format):
            try:
                image.load()
            except Exception as error:
                raise DataError(f"unreadable image: {_name(value)}: {error}") from None
        if image.format == "JPEG" and image.getexif().get(ORIENTATION) in QUARTER_TURNS:
            width, height = height, width
    return height, width


def open_image(value: Any) -> Image.Image:
    """
    Opens an image as RGB.

    The first frame of an animation is taken, 16 bits are scaled to 8, transparency is laid on white, and the picture
    is turned as its EXIF orientation says.

    Args:
        value (`dict`, `str`, `bytes` or `PIL.Image.Image`):
            A path, the bytes of a file, `{"bytes": …, "path": …}` as [`~datasets.Image`] stores them, or an image.

    Raises:
        DataError: if the image is missing, unreadable, truncated or too large.
    """
    if isinstance(value, Image.Image):
        return _to_rgb(value)
    with _open_header(value) as image:
        try:
            return _to_rgb(image)
        except Exception as error:
            raise DataError(f"unreadable image: {_name(value)}: {error}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits; Pillow would clip them at 255
        image = image.convert("I").point(lambda level: level * (255 / 65535)).convert("L")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
