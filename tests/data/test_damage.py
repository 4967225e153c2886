"""Damaged files of pictures are found: by checksums in the check, by decoding where that is asked for."""

import struct
import zlib

import pytest
from PIL import Image

from puma_trl.data.images import image_size, open_image
from puma_trl.errors import DataError

from .pictures import chunk, encode, noise


PNG, JPEG = encode(noise(), "PNG"), encode(noise(), "JPEG")
STORED = encode(noise(), "PNG", compress_level=0)
DAMAGED = {
    "zeros in the middle": PNG[:4000] + b"\0" * 200 + PNG[4200:],
    "one bit": PNG[:4000] + bytes([PNG[4000] ^ 1]) + PNG[4001:],
    "half zeros": PNG[:5000] + b"\0" * (len(PNG) - 5000),
    "stored, zeros in the middle": STORED[:4000] + b"\0" * 200 + STORED[4200:],
    "behind the pixels": PNG[:-12] + chunk(b"tEXt", b"a\0b")[:-1] + b"\0" + PNG[-12:],
}


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("name", DAMAGED)
def test_checksums_of_png_are_verified(name, decode):
    with pytest.raises(DataError, match="unreadable image: .*: it is damaged: the checksum of its part at byte"):
        image_size(DAMAGED[name], decode=decode)


def broad(mode="RGB"):
    """Noise above, and below the grey that a decoder fills up with."""
    picture = Image.new("RGB", (160, 120), (128, 128, 128))
    picture.paste(noise(size=(160, 60)), (0, 0))
    return picture.convert(mode)


JPEGS = {
    "baseline": encode(broad(), "JPEG"),
    "fine": encode(broad(), "JPEG", quality=100, subsampling=0),
    "grey": encode(broad("L"), "JPEG"),
    "cmyk": encode(broad("CMYK"), "JPEG"),
    "progressive": encode(broad(), "JPEG", progressive=True),
    "restarts": encode(broad(), "JPEG", restart_marker_rows=1),
    "progressive restarts": encode(broad(), "JPEG", progressive=True, restart_marker_rows=1),
    "one pixel": encode(noise(size=(1, 1)), "JPEG"),
    "flat": encode(Image.new("RGB", (160, 120), (128, 128, 128)), "JPEG"),
    "two pictures": encode(broad(), "MPO", save_all=True, append_images=[broad()]),
}
JPEGS["with a thumbnail"] = JPEGS["baseline"][:2] + b"\xff\xed\x40\x02" + (JPEG * 9)[:16384] + JPEGS["baseline"][2:]
JPEGS["padded"] = JPEGS["baseline"][:-2] + b"\xff" * 5 + b"\xff\xd9" + b"\0" * 30


@pytest.mark.parametrize("name", JPEGS)
def test_decoding_finds_no_fault_in_whole_jpegs(name):
    height, width = image_size(JPEGS[name], decode=True)
    assert (width, height) == open_image(JPEGS[name]).size


@pytest.mark.parametrize("name", [name for name in JPEGS if name not in ("one pixel", "two pictures")])
@pytest.mark.parametrize("share", [0.5, 0.75, 0.95])
def test_decoding_finds_cut_jpegs_that_end_well(name, share):
    content = JPEGS[name]
    start = content.rindex(b"\xff\xda") + 14
    position = int(start + share * (content.rindex(b"\xff\xd9") - start))
    content = content[:position].rstrip(b"\xff") + b"\xff\xd9"
    assert image_size(content)  # the grey that a decoder fills up with has to be looked for
    with pytest.raises(DataError, match="unreadable image: .*: it is cut: its data end before its last pixel"):
        image_size(content, decode=True)


def test_decoding_finds_damage_that_checksums_do_not_know():
    half = zlib.compress(noise().tobytes()[:3000])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 48, 8, 2, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", half) + chunk(b"IEND", b"")
    assert image_size(content) == (48, 64)
    with pytest.raises(DataError, match="unreadable image"):
        image_size(content, decode=True)
    with pytest.raises(DataError, match="checksum"):
        image_size(PNG[:-20] + b"\0" * 4 + PNG[-16:], decode=True)
