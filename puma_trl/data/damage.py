"""What tells a damaged file of a picture: checksums, ends, and in a JPEG whether its data last to its last pixel."""

import os
import re
import struct
import zlib
from io import BytesIO
from typing import BinaryIO

from PIL import Image, ImageChops


# The last bytes of a complete JPEG. Some writers leave padding behind them.
JPEG_END = b"\xff\xd9"
TAIL = 64

# Texts of a PNG that Pillow reads an orientation from; they may come after the pixels.
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
ORIENTATION_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0", b"exif\0", b"xmp\0")

# The next marker within the data of a scan, where 0xFF00 is data and 0xFFD0 to 0xFFD7 only restart the decoder.
JPEG_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
JPEG_FRAMES = range(0xC0, 0xD0)
JPEG_NO_FRAMES = (0xC4, 0xC8, 0xCC)
HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)
JPEG_SCAN = 0xDA
JPEG_WITHOUT_LENGTH = (0x00, 0x01, *range(0xD0, 0xD9))

# Data that a decoder can only come to if the file's own do not last; after a restart marker too.
_SURPLUS = bytes(range(1, 255, 8))
SURPLUS = _SURPLUS + b"".join(bytes((0xFF, 0xD0 + number)) + _SURPLUS for number in range(8))


def is_whole(file: BinaryIO, image_format: str) -> bool:
    """
    Tells whether a file is complete, without decoding its pixels; `image_format` is Pillow's name of its format.

    Returns:
        `bool`: `False` if that cannot be told, so that the pixels have to be decoded: other formats than PNG, JPEG and
        WebP, a file without its end, a PNG with an orientation behind its pixels.

    Raises:
        ValueError: if a checksum of a PNG does not match.
    """
    if image_format == "PNG":
        file.seek(0)
        return _is_whole_png(file.read())
    if image_format in ("JPEG", "MPO"):
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        return JPEG_END in file.read()
    if image_format == "WEBP":
        size = file.seek(0, os.SEEK_END)
        file.seek(4)
        return size >= 8 + int.from_bytes(file.read(4), "little")
    return False


def _is_whole_png(data: bytes) -> bool:
    view, position, pixels, late = memoryview(data), 8, False, False
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            return False
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ValueError(f"it is damaged: the checksum of its part at byte {position:,} does not match")
        if kind == b"IEND":
            return not late
        pixels = pixels or kind == b"IDAT"
        text = kind in TEXT_CHUNKS and data.startswith(ORIENTATION_TEXTS, position + 8)
        late = late or (pixels and (text or kind == b"eXIf"))
        position = end + 4
    return False


def is_cut_jpeg(image: Image.Image, data: bytes) -> bool:
    """
    Tells whether the data of a JPEG end before its last pixel although it has an end marker.

    Decoders fill up such a picture with grey and say nothing. So it is decoded once more with further data before the
    end marker: those are only looked at, and change pixels, where the file's own do not last.

    Returns:
        `bool`: `False` too for the rare files with arithmetic coding, whose decoder always reads on.
    """
    end = _jpeg_end(data)
    if end is None:
        return False
    with Image.open(BytesIO(data[:end] + SURPLUS + JPEG_END), formats=("JPEG",)) as longer:
        return ImageChops.difference(image, longer).getbbox() is not None


def _jpeg_end(data: bytes) -> int | None:
    """Returns where the data of the first picture end, `None` for other codes than Huffman's."""
    position = 2
    while (position := data.find(b"\xff", position)) >= 0 and position + 4 <= len(data):
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
        elif marker in JPEG_WITHOUT_LENGTH:
            position += 2
        elif marker == JPEG_END[1]:
            break
        else:
            if marker in JPEG_FRAMES and marker not in JPEG_NO_FRAMES and marker not in HUFFMAN_FRAMES:
                return None
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
            if marker == JPEG_SCAN:
                found = JPEG_MARKER.search(data, position)
                position = found.start() if found else len(data)
    return position if position >= 0 else len(data)
