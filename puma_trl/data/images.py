"""Pictures: where they come from, a check of the file before training, and the pixels in RGB when a batch is made."""

import functools
import os
import re
import stat
import unicodedata
import warnings
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from PIL import Image, ImageChops, UnidentifiedImageError

from ..errors import DataError
from .damage import is_cut_jpeg, is_whole
from .texts import shorten


# Formats that pictures come in; a JPEG may be an MPO to Pillow. Its others are documents, of other fields, or start a
# program: Ghostscript for EPS.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

# Those of animations and of several pages; the others of an MPO are of the same view.
FRAMED = ("PNG", "WEBP", "GIF", "TIFF", "AVIF")

# What else is found under the name of a picture, by its first bytes.
OTHER_FORMATS = {
    "a web page": rb"(?i)\s*<(!doctype )?html",
    "SVG or other XML": rb"(?i)\s*<(\?xml|!--|!doctype svg|svg)",
    "PostScript (EPS)": rb"%!PS|\xc5\xd0\xd3\xc6",
    "PDF": rb"%PDF",
    "WMF or EMF": rb"\xd7\xcd\xc6\x9a|\x01\x00\x09\x00|(?s:\x01\x00\x00\x00.{36} EMF)",
    "HEIC": rb"(?s:....)ftyp(hei|hev|mif|msf)",
    "PSD": rb"8BPS",
    "ICO": rb"\x00\x00[\x01\x02]\x00",
    "a ZIP archive": rb"PK\x03\x04",
    "a Git LFS pointer": rb"version https://git-lfs",
}

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}

# Pillow's own limit, above which it suspects a decompression bomb: about 89 million pixels.
MAX_PIXELS = Image.MAX_IMAGE_PIXELS

# Levels by which a line must differ from its ground to be seen, and the share of lines below which all are lost
CONTRAST, LOST = 32, 0.005

# An address, as opposed to a path; a drive of Windows has one letter.
ADDRESS = re.compile(r"(?i)(data|file):|[a-z][a-z0-9+.-]+://")

# How a picture is turned by each orientation of EXIF.
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
QUARTER_TURNS = (5, 6, 7, 8)


def read_address(text: str) -> dict[str, Any] | None:
    """
    Reads an address that stands where a path could.

    Returns:
        `dict`, *optional*: the bytes of a `data:` address or the absolute path of a `file:` address, as
        `{"bytes": …, "path": …}`; `None` for a path.

    Raises:
        DataError: for any other address: nothing is downloaded.
    """
    match = ADDRESS.match(text)
    if match is None:
        return None
    scheme = match[0].rstrip("/").lower()
    if scheme == "data:":
        return {"bytes": _read_data(text), "path": None}
    if scheme == "file:":
        return {"bytes": None, "path": _read_file_address(text)}
    raise DataError(
        f"image address: {shorten(text)!r} is no path, and nothing is downloaded here; download it and give its path"
    )


def _read_data(text: str) -> bytes:
    head, _, body = text.partition(",")
    if not head.lower().endswith(";base64"):
        raise DataError(
            f"image address: {shorten(text)!r} has no `;base64,`; encode the picture in base64, or name a path"
        )
    body = "".join(unquote(body).split())
    try:
        content = b64decode(body + "=" * (-len(body) % 4), validate=True)
    except ValueError as error:
        raise DataError(f"unreadable image: {shorten(text)!r} is not base64: {error}") from None
    if not content:
        raise DataError(f"unreadable image: {shorten(text)!r} holds no bytes")
    return content


def _read_file_address(text: str) -> str:
    path = re.sub(r"(?i)^file:(//(localhost)?(?=/))?", "", text)
    if not path.startswith("/") or path.startswith("//"):
        raise DataError(
            f"image address: {shorten(text)!r} names no absolute path of this machine; write file:///… or a path"
        )
    return unquote(path)


def image_stamp(value: dict[str, Any]) -> int:
    """Returns a number that changes with an image file: its time and size, -1 if it is missing, 0 for plain bytes."""
    if value["bytes"] is not None:
        return 0
    try:
        status = os.stat(value["path"])
    except (OSError, ValueError):
        return -1
    return status.st_mtime_ns + status.st_size


def image_size(value: Any, decode: bool = False) -> tuple[int, int]:
    """
    Reads the size of an image from its header and makes sure that the file is complete and undamaged.

    The checksums of a PNG are verified, and the ends of JPEG and WebP. The pixels are only decoded for other formats,
    and where there is no end.

    Args:
        value (`dict`, `str` or `bytes`):
            A path, the bytes of a file, or `{"bytes": …, "path": …}` as [`~datasets.Image`] stores them.
        decode (`bool`, *optional*, defaults to `False`):
            Whether to decode the pixels of every format, which finds damage inside too. A JPEG has no checksums: it is
            found to be cut, but what is wrong in its middle only where pixels are missing for it.

    Returns:
        `tuple[int, int]`: height and width in pixels, as [`open_image`] turns the picture.

    Raises:
        DataError: if the image is missing, unreadable, truncated, damaged or too large, or has several frames.
    """
    with _opened(value) as (image, file):
        whole = is_whole(file, image.format)
        if decode or not whole:
            image.load()
        if decode and image.format in ("JPEG", "MPO"):
            file.seek(0)
            if is_cut_jpeg(image, file.read()):
                raise ValueError("it is cut: its data end before its last pixel")
        # not the method of PNG, which decodes the pixels first
        turned = Image.Image.getexif(image).get(ORIENTATION) in QUARTER_TURNS
        width, height = image.size
    return (width, height) if turned else (height, width)


def open_image(value: Any) -> Image.Image:
    """
    Opens an image as RGB.

    16 bits are scaled to 8, transparency is laid on white, or on black if what is drawn is as light as white, and the
    picture is turned as its EXIF orientation says.

    Args:
        value (`dict`, `str`, `bytes` or `PIL.Image.Image`):
            A path, the bytes of a file, `{"bytes": …, "path": …}` as [`~datasets.Image`] stores them, or an image.

    Raises:
        DataError: if the image is missing, unreadable, truncated or too large, or has several frames.
    """
    if isinstance(value, Image.Image):
        return _to_rgb(value)
    with _opened(value) as (image, _):
        return _to_rgb(image)


@contextmanager
def _opened(value: Any) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """Opens an image without decoding it, with its file, and names it in whatever goes wrong."""
    value = value if isinstance(value, dict) else _as_struct(value)
    name = f"{len(value['bytes']):,} bytes" if value["path"] is None else repr(value["path"])
    try:
        with _open_file(value, name) as file:
            image = _identify(file)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(f"image too large: {name} has {width} x {height} pixels, more than {MAX_PIXELS:,}")
            if image.format in FRAMED and getattr(image, "n_frames", 1) > 1:
                raise DataError(
                    f"several frames: {name} has {image.n_frames}, and only the first would be read; save the one "
                    "that shows the problem as a PNG"
                )
            # of integers of 32 bits nothing says which level is white; a PGM of 16 bits looks the same to Pillow
            if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
                kind = "floating-point" if image.mode == "F" else "32-bit"
                raise ValueError(f"has {kind} pixels; convert it to 8 or 16 bits")
            yield image, file
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"image too large: {name}: {error}") from None
    except Exception as error:  # Pillow's plugins raise all kinds of errors on broken files
        raise DataError(f"unreadable image: {name}: {error}") from None


def _as_struct(value: str | bytes) -> dict[str, Any]:
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    return read_address(value) or {"bytes": None, "path": value}


def _otherwise_written(path: str) -> str | None:
    """Returns the file whose path differs by case, Unicode form (macOS), slashes (Windows) or escapes alone."""
    found, *names = Path(os.path.abspath(unquote(path.replace("\\", "/")))).parts
    for name in names:
        if not os.path.exists(os.path.join(found, name)):
            name = _names(found).get(_folded(name))
            if name is None:
                return None
        found = os.path.join(found, name)
    return found if os.path.isfile(found) else None


@functools.lru_cache(maxsize=64)
def _names(folder: str) -> dict[str, str]:
    try:
        return {_folded(name): name for name in os.listdir(folder)}
    except OSError:
        return {}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _open_file(value: dict[str, Any], name: str) -> BinaryIO:
    if value["bytes"] is not None:
        return BytesIO(value["bytes"])
    try:
        mode = os.stat(value["path"]).st_mode
    except (FileNotFoundError, NotADirectoryError):
        there = _otherwise_written(value["path"])
        but = f", but {there!r} does, which differs in capitals, Unicode form, slashes or escapes" if there else ""
        raise DataError(f"missing image: {name} does not exist{but}") from None
    if not stat.S_ISREG(mode):  # opening a named pipe would wait for ever
        raise DataError(
            f"unreadable image: {name} is {KINDS.get(stat.S_IFMT(mode), 'no file')}, not a file with a picture"
        )
    return open(value["path"], "rb")


@functools.cache
def picture_formats() -> tuple[str, ...]:
    """Returns those of [`FORMATS`] that this version of Pillow knows."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _identify(file: BinaryIO) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(file, formats=picture_formats())
    except UnidentifiedImageError:
        file.seek(0)
        raise ValueError(f"{_describe(file.read(512))}; pictures are {', '.join(picture_formats())}") from None


def _describe(head: bytes) -> str:
    """Says what a file is that could not be opened, from its first bytes."""
    if not head:
        return "the file is empty"
    for name in picture_formats():
        if Image.OPEN[name][1](head[:16]) is True:
            return f"it begins like {name}, but its header is damaged"
    found = (name for name, pattern in OTHER_FORMATS.items() if re.match(pattern, head))
    return f"it is {next(found, 'of an unknown format')}"


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()  # a PNG may have its orientation behind the pixels
    turn = TURNS.get(image.getexif().get(ORIENTATION))
    if turn is not None:
        image = image.transpose(turn)
    # Workaround (Pillow 13, python-pillow/Pillow#3159): it would clip the levels of 16 bits at 255
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda level: level * (255 / 65535)).convert("L")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white, black = _lay(image, "white"), _lay(image, "black")
        # light lines would be lost
        return black if _visible_share(image, white, 255) < LOST < _visible_share(image, black, 0) else white
    return image.convert("RGB")


def _lay(image: Image.Image, colour: str) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image).convert("RGB")


def _visible_share(image: Image.Image, laid: Image.Image, ground: int) -> float:
    """Returns the share of what is drawn on transparency that can be told from a ground that it was laid on."""
    low, high = image.getchannel("A").getextrema()
    if low == high:  # a picture, whatever its colours, or nothing
        return 1.0
    drawn = image.getchannel("A").point(lambda alpha: 255 * (alpha >= CONTRAST))
    channels = laid.split()
    farthest = functools.reduce(ImageChops.darker if ground else ImageChops.lighter, channels)
    counts = farthest.histogram(drawn)
    visible = counts[: 256 - CONTRAST] if ground else counts[CONTRAST:]
    return sum(visible) / max(sum(counts), 1)
