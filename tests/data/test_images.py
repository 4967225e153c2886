"""Pictures of every kind become RGB; those that cannot are found from their headers."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from puma_trl.data.images import image_size, image_stamp, open_image
from puma_trl.errors import DataError


def encode(image, image_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png_header(width, height):
    """Returns a small file whose header claims any size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def noise(mode="RGB", size=(64, 48)):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


PALETTE = Image.new("P", (8, 8), 1)
PALETTE.putpalette([0, 0, 0, 10, 200, 30])
GIF_FRAMES = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
SIXTEEN_BITS = Image.fromarray(np.full((8, 8), 0x8000, dtype=np.uint16))

CONVERTED = {
    "rgb": (encode(Image.new("RGB", (8, 8), (10, 200, 30)), "PNG"), (10, 200, 30)),
    "grey": (encode(Image.new("L", (8, 8), 77), "PNG"), (77, 77, 77)),
    "black and white": (encode(Image.new("1", (8, 8), 1), "PNG"), (255, 255, 255)),
    "palette": (encode(PALETTE, "PNG"), (10, 200, 30)),
    "palette with transparency": (encode(PALETTE, "PNG", transparency=1), (255, 255, 255)),
    "transparent": (encode(Image.new("RGBA", (8, 8), (10, 200, 30, 0)), "PNG"), (255, 255, 255)),
    "half transparent": (encode(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "PNG"), (127, 127, 127)),
    "grey with alpha": (encode(Image.new("LA", (8, 8), (0, 0)), "PNG"), (255, 255, 255)),
    "one transparent colour": (
        encode(Image.new("RGB", (8, 8), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
        (255, 255, 255),
    ),
    "16 bits": (encode(SIXTEEN_BITS, "PNG"), (128, 128, 128)),
    "16 bits, tiff": (encode(SIXTEEN_BITS, "TIFF"), (128, 128, 128)),
    "cmyk": (encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
    "animated": (encode(GIF_FRAMES[0], "GIF", save_all=True, append_images=GIF_FRAMES[1:]), (255, 0, 0)),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_open_image_converts_to_rgb(name):
    content, colour = CONVERTED[name]
    image = open_image({"bytes": content, "path": None})
    assert image.mode == "RGB"
    assert image_size({"bytes": content, "path": None}) == (image.height, image.width) == (8, 8)
    assert np.abs(np.asarray(image).astype(int) - colour).max() <= 1


def test_open_image_scales_16_bits_without_clipping():
    ramp = Image.fromarray(np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16))
    levels = np.asarray(open_image(encode(ramp, "PNG")))[..., 0].reshape(-1).astype(int)
    assert np.abs(levels - np.arange(256)).max() <= 1


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_size_and_pixels_follow_the_exif_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(noise(), "JPEG", exif=exif)
    image = open_image(content)
    assert image.size == ((48, 64) if orientation in (6, 8) else (64, 48))
    assert image_size(content) == (image.height, image.width)


def test_open_image_takes_paths_bytes_structs_and_images(tmp_path):
    picture = noise()
    path = tmp_path / "picture.png"
    picture.save(path)
    content = path.read_bytes()
    for value in (
        str(path),
        content,
        {"bytes": None, "path": str(path)},
        {"bytes": content, "path": "elsewhere.png"},
        picture,
    ):
        assert np.array_equal(np.asarray(open_image(value)), np.asarray(picture))


PNG, JPEG, GIF, WEBP, BMP = (encode(noise(), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP"))
BROKEN = {
    "truncated PNG": (PNG[: len(PNG) // 2], "unreadable image"),
    "PNG without its last bytes": (PNG[:-12], None),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "unreadable image"),
    "truncated GIF": (GIF[: len(GIF) // 2], "unreadable image"),
    "truncated WebP": (WEBP[: len(WEBP) // 2], "unreadable image"),
    "truncated BMP": (BMP[: len(BMP) // 2], "unreadable image"),
    "header only": (PNG[:40], "unreadable image"),
    "text named .png": (b"not a picture at all", "unreadable image"),
    "empty file": (b"", "unreadable image"),
    "bomb": (png_header(30_000, 30_000), "image too large"),
    "below Pillow's error, above its warning": (png_header(10_000, 10_000), "image too large"),
    "floating-point pixels": (encode(Image.new("F", (8, 8), 0.5), "TIFF"), "floating-point"),
}


@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_are_found_before_training(name, as_file, tmp_path, recwarn):
    content, message = BROKEN[name]
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    value = {"bytes": None, "path": str(path)} if as_file else {"bytes": content, "path": None}
    if message is None:  # Pillow can read it, so training can
        assert image_size(value) == (48, 64)
        assert open_image(value).size == (64, 48)
        return
    with pytest.raises(DataError, match=message) as caught:
        image_size(value)
    if as_file:
        assert str(path) in str(caught.value)
    with pytest.raises(DataError, match=message):
        open_image(value)
    assert not recwarn.list


def test_missing_images_and_folders_are_found(tmp_path):
    with pytest.raises(DataError, match="missing image: .*nothing.png' does not exist"):
        image_size(str(tmp_path / "nothing.png"))
    with pytest.raises(DataError, match="unreadable image: .*directory"):
        image_size(str(tmp_path))


@pytest.mark.parametrize("content", [PNG, JPEG], ids=["png", "jpeg"])
def test_header_check_decodes_no_pixels(content, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("pixels were decoded"))
    assert image_size(content) == (48, 64)
    assert image_size(content + b"\0" * 16) == (48, 64)


def test_image_stamp_changes_with_the_file(tmp_path):
    path = tmp_path / "picture.png"
    value = {"bytes": None, "path": str(path)}
    assert image_stamp(value) == -1
    path.write_bytes(PNG)
    stamp = image_stamp(value)
    assert stamp > 0 and stamp == image_stamp(value)
    path.write_bytes(PNG + b"\0")
    assert image_stamp(value) not in (stamp, -1)
    assert image_stamp({"bytes": PNG, "path": None}) == 0
