"""Pictures of every kind become RGB; those that cannot are found before training."""

import base64
import io
import os
import re
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

import puma_trl
from puma_trl.data.images import FORMATS, image_size, image_stamp, open_image, read_address
from puma_trl.errors import DataError

from .pictures import chunk, encode, noise, png_header


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
    "GIF of one frame": (encode(GIF_FRAMES[0], "GIF"), (255, 0, 0)),
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


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def xmp(orientation):
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="{orientation}"/></x:xmpmeta>'


def png_texts(key, text):
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt(key, text)
    return texts


def raw_profile(orientation):
    content = b"Exif\0\0" + exif(orientation).tobytes().removeprefix(b"Exif\0\0")
    return f"\nexif\n{len(content):8}\n{content.hex()}\n"


def before_end(content, kind, data):
    return content[:-12] + chunk(kind, data) + content[-12:]


# where a format keeps the orientation → a picture with it
TURNED = {
    "JPEG, EXIF": lambda n: encode(noise(), "JPEG", exif=exif(n)),
    "JPEG, XMP": lambda n: encode(noise(), "JPEG", xmp=xmp(n).encode()),
    "MPO, EXIF": lambda n: encode(noise(), "MPO", save_all=True, append_images=[noise(size=(8, 8))], exif=exif(n)),
    "PNG, EXIF": lambda n: encode(noise(), "PNG", exif=exif(n)),
    "PNG, XMP": lambda n: encode(noise(), "PNG", pnginfo=png_texts("XML:com.adobe.xmp", xmp(n))),
    "PNG, profile": lambda n: encode(noise(), "PNG", pnginfo=png_texts("Raw profile type exif", raw_profile(n))),
    "PNG, EXIF at the end": lambda n: before_end(encode(noise(), "PNG"), b"eXIf", exif(n).tobytes()[6:]),
    "PNG, XMP at the end": lambda n: before_end(
        encode(noise(), "PNG"), b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(n).encode()
    ),
    "PNG, two": lambda n: before_end(encode(noise(), "PNG", exif=exif(1)), b"eXIf", exif(n).tobytes()[6:]),
    "WebP, EXIF": lambda n: encode(noise(), "WEBP", lossless=True, exif=exif(n)),
    "WebP, XMP": lambda n: encode(noise(), "WEBP", lossless=True, xmp=xmp(n).encode()),
    "TIFF": lambda n: encode(noise(), "TIFF", exif=exif(n)),
    "TIFF, compressed": lambda n: encode(noise(), "TIFF", exif=exif(n), compression="tiff_lzw"),
    "AVIF": lambda n: encode(noise(), "AVIF", exif=exif(n)),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kept", TURNED)
def test_size_and_pixels_follow_the_orientation_wherever_it_is_kept(kept, orientation):
    content = TURNED[kept](orientation)
    image = open_image(content)
    assert image.size == ((48, 64) if orientation > 4 else (64, 48))
    for decode in (False, True):
        assert image_size(content, decode=decode) == (image.height, image.width)
    # noise() is no brighter at one end; what Pillow makes of the file is the measure
    with Image.open(io.BytesIO(content)) as stored:
        assert np.array_equal(np.asarray(image), np.asarray(ImageOps.exif_transpose(stored).convert("RGB")))
    if kept.startswith(("PNG", "WebP", "TIFF")):
        undo = [1, 2, 3, 4, 5, 8, 7, 6][orientation - 1]
        again = open_image(encode(image, "PNG", exif=exif(undo)))
        assert np.array_equal(np.asarray(again), np.asarray(noise()))


def test_texts_behind_the_pixels_do_not_make_the_check_decode(monkeypatch):
    content = before_end(encode(noise(), "PNG"), b"tEXt", b"date:create\0" + b"2024")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("pixels were decoded"))
    assert image_size(content) == (48, 64)


def test_broken_orientation_is_found_by_the_check():
    content = encode(noise(), "PNG", pnginfo=png_texts("Raw profile type exif", "\nexif\n 4\nzz"))
    for read in (image_size, open_image):
        with pytest.raises(DataError, match="unreadable image: .*hexadecimal"):
            read(content)


def test_tags_that_cannot_be_written_again_do_no_harm():
    tags = exif(6)
    tags[0x011A] = 72.5  # the resolution, then said to be text
    content = encode(noise(), "JPEG", exif=tags.tobytes().replace(b"\x01\x1a\x00\x05", b"\x01\x1a\x00\x02"))
    with pytest.raises(TypeError), Image.open(io.BytesIO(content)) as image:
        ImageOps.exif_transpose(image)
    assert image_size(content) == (64, 48)
    assert open_image(content).size == (48, 64)


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
TIFF, PPM, AVIF, JPEG2000 = (encode(noise(), kind) for kind in ("TIFF", "PPM", "AVIF", "JPEG2000"))
EPS = encode(noise(), "EPS")
BROKEN = {
    "truncated PNG": (PNG[: len(PNG) // 2], "unreadable image"),
    "PNG without its last bytes": (PNG[:-12], None),
    "PNG, zeros at a part's beginning": (PNG[:33] + b"\0" * 8 + PNG[41:], "unreadable image"),
    "PNG, wrong header": (PNG[:20] + b"\x07" + PNG[21:], "unreadable image"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "unreadable image"),
    "truncated GIF": (GIF[: len(GIF) // 2], "unreadable image"),
    "truncated WebP": (WEBP[: len(WEBP) // 2], "unreadable image"),
    "WebP without its last bytes": (WEBP[:-3], "unreadable image"),
    "truncated BMP": (BMP[: len(BMP) // 2], "unreadable image"),
    "truncated TIFF": (TIFF[: len(TIFF) // 2], "unreadable image"),
    "truncated PPM": (PPM[: len(PPM) // 2], "unreadable image"),
    "truncated AVIF": (AVIF[: len(AVIF) // 2], "unreadable image"),
    "truncated JPEG 2000": (JPEG2000[: len(JPEG2000) // 2], "unreadable image"),
    "header only": (PNG[:40], "unreadable image"),
    "beginning of a header": (PNG[:12], "it begins like PNG, but its header is damaged"),
    "text named .png": (b"not a picture at all", "it is of an unknown format; pictures are PNG, JPEG, WEBP"),
    "empty file": (b"", "the file is empty"),
    "EPS": (EPS, r"it is PostScript \(EPS\); pictures are PNG"),
    "PDF": (encode(noise(), "PDF"), "it is PDF; pictures are PNG"),
    "WMF": (b"\xd7\xcd\xc6\x9a" + b"\0" * 60, "it is WMF or EMF; pictures are PNG"),
    "EMF": (b"\1\0\0\0" + b"\0" * 36 + b" EMF" + b"\0" * 60, "it is WMF or EMF; pictures are PNG"),
    "SVG": (b'<?xml version="1.0"?>\n<svg></svg>', "it is SVG or other XML; pictures are PNG"),
    "web page": (b"<!DOCTYPE html><html></html>", "it is a web page; pictures are PNG"),
    "HEIC": (b"\0\0\0\x18ftypheic" + b"\0" * 60, "it is HEIC; pictures are PNG"),
    "ICO": (encode(noise(), "ICO"), "it is ICO; pictures are PNG"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "it is a Git LFS pointer; pictures"),
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


def test_missing_images_are_found(tmp_path):
    for path in (tmp_path / "nothing.png", tmp_path / "a" / "b.png"):
        with pytest.raises(DataError, match=f"missing image: '{path}' does not exist"):
            image_size(str(path))


@pytest.mark.parametrize(
    "written", ["blatt 1/Übung.png", "Blatt 1\\U\u0308bung.PNG", "Blatt 1/\u00dcbung.PNG", "Blatt%201/U%CC%88bung.PNG"]
)
def test_a_missing_image_that_is_there_under_a_like_name(tmp_path, written):
    there = tmp_path / "Blatt 1" / "U\u0308bung.PNG"  # as macOS packs it
    there.parent.mkdir()
    there.write_bytes(PNG)
    with pytest.raises(DataError) as caught:
        image_size(str(tmp_path / written))
    assert f"does not exist, but {str(there)!r} does, which differs in" in str(caught.value)
    assert image_size(str(there)) == (48, 64)


def test_only_regular_files_are_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    kinds = {"pipe.png": "a named pipe", "link.png": "a named pipe", ".": "a folder", "socket.png": "a socket"}
    for path, kind in (
        {str(tmp_path / name): kind for name, kind in kinds.items()} | {os.devnull: "a device"}
    ).items():
        for read in (image_size, open_image):
            with pytest.raises(DataError) as caught:
                read({"bytes": None, "path": path})
            assert str(caught.value) == f"unreadable image: '{path}' is {kind}, not a file with a picture"


def test_links_to_files_are_opened(tmp_path):
    (tmp_path / "picture.png").write_bytes(PNG)
    (tmp_path / "link.png").symlink_to("picture.png")
    assert image_size(str(tmp_path / "link.png")) == (48, 64)


def test_names_are_printed_on_one_line_without_control_characters():
    with pytest.raises(DataError) as caught:
        image_size("a\n\x1b[31m.png")
    assert str(caught.value) == r"missing image: 'a\n\x1b[31m.png' does not exist"


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_the_list_is_read(name):
    content = encode(noise(), name)
    assert image_size(content) == image_size(content, decode=True) == (48, 64)
    assert open_image(content).size == (64, 48)


@pytest.mark.parametrize("content", [PNG, JPEG, WEBP, TURNED["MPO, EXIF"](1)], ids=["png", "jpeg", "webp", "mpo"])
def test_header_check_decodes_no_pixels(content, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("pixels were decoded"))
    assert image_size(content) == (48, 64)
    assert image_size(content + b"\0" * 16) == (48, 64)


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_pictures_of_several_frames_are_refused(name, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(encode(GIF_FRAMES[0], name, save_all=True, append_images=GIF_FRAMES[1:]))
    for read in (image_size, open_image):
        with pytest.raises(DataError) as caught:
            read(str(path))
        assert str(caught.value) == (
            f"several frames: '{path}' has 2, and only the first would be read; save the one that shows the problem "
            "as a PNG"
        )


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_drawn_in_white_on_nothing_is_laid_on_black(mode):
    picture = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    picture.putpixel((3, 3), (255, 255, 255, 255))
    image = open_image(encode(picture.convert(mode), "PNG"))
    assert image.getpixel((3, 3)) == (255, 255, 255) and image.getpixel((0, 0)) == (0, 0, 0)
    picture.putpixel((4, 4), (0, 0, 0, 255))
    image = open_image(encode(picture.convert(mode), "PNG"))
    assert image.getpixel((4, 4)) == (0, 0, 0) and image.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("line", "fill", "ground"),
    [
        ((250, 250, 250, 255), None, 0),
        ((235, 240, 230, 255), None, 0),
        ((255, 255, 255, 120), None, 0),
        ((200, 200, 200, 255), None, 255),
        ((255, 255, 0, 255), None, 255),
        ((0, 0, 0, 120), None, 255),
        ((0, 0, 0, 255), (255, 255, 255, 255), 255),  # lines in a white box
    ],
)
def test_drawings_are_laid_on_what_they_can_be_seen_on(line, fill, ground):
    picture = Image.new("RGBA", (32, 32), (255, 255, 255, 0))
    if fill:
        picture.paste(fill, (2, 2, 30, 30))
    picture.paste(line, (4, 4, 20, 6))
    image = open_image(encode(picture, "PNG"))
    assert image.getpixel((0, 0)) == (ground,) * 3
    assert max(abs(level - ground) for level in image.getpixel((5, 5))) > 32


def test_levels_of_32_bits_are_refused():
    content = encode(Image.fromarray(np.full((8, 8), 70_000, dtype=np.int32)), "TIFF")
    with pytest.raises(DataError, match="32-bit pixels; convert it to 8 or 16 bits"):
        image_size(content)


def test_addresses_with_the_picture_are_read(tmp_path):
    text = base64.b64encode(PNG).decode()
    lines = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    escaped = text.replace("+", "%2B").replace("=", "%3D")
    for body in (text, lines, escaped, text.rstrip("=")):
        for head in ("data:image/png;base64,", "DATA:;charset=utf-8;BASE64,"):
            assert read_address(head + body) == {"bytes": PNG, "path": None}
    path = tmp_path / "a b#1.png"
    path.write_bytes(PNG)
    for address in (path.as_uri(), f"file://localhost{path}", f"FILE:{path}"):
        assert read_address(address) == {"bytes": None, "path": str(path)}
        assert image_size(address) == (48, 64)
        assert open_image(address).size == (64, 48)


@pytest.mark.parametrize(
    "path",
    ["a.png", "/a/b.png", "C:\\a\\b.png", "a:b/c.png", "../x//y.png", "data/a.png", "file.png", "filed:x", "", "~"],
)
def test_paths_are_no_addresses(path):
    assert read_address(path) is None


@pytest.mark.parametrize(
    "address, message",
    {
        "https://host/a.png": "^image address: 'https://host/a.png' is no path, .*; download it and give its path$",
        "HTTP://host/a.png": "nothing is downloaded",
        "s3://bucket/a.png": "nothing is downloaded",
        "gs://bucket/a.png": "nothing is downloaded",
        "hf://datasets/a/b.png": "nothing is downloaded",
        "https://host/" + "a" * 99: "'https://host/a{47}…' is no path",
        "file://host/a.png": "names no absolute path of this machine",
        "file://a.png": "names no absolute path of this machine",
        "file:a.png": "names no absolute path of this machine",
        "data:image/svg+xml,<svg/>": "has no `;base64,`; encode the picture in base64",
        "data:image/png;base64": "holds no bytes",
        "data:image/png;base64,": "holds no bytes",
        "data:image/png;base64,a*b=": "is not base64",
        "data:image/png;base64,äöüß": "is not base64",
        "data:image/png;base64," + "A" * 10_001: "unreadable image: 'data:image/png;base64,A{38}…' is not base64",
    }.items(),
)
def test_other_addresses_are_refused_by_what_they_are(address, message):
    for read in (read_address, image_size, open_image):
        with pytest.raises(DataError, match=message) as caught:
            read(address)
        assert len(str(caught.value)) < 250


def test_pictures_of_addresses_are_checked_as_others():
    content = read_address("data:image/png;base64," + base64.b64encode(EPS).decode())
    with pytest.raises(DataError, match="PostScript"):
        image_size(content)
    bomb = "data:;base64," + base64.b64encode(png_header(30_000, 30_000)).decode()
    with pytest.raises(DataError, match="image too large"):
        image_size(bomb)


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


def test_pillow_opens_no_other_format_anywhere():
    package = Path(puma_trl.__file__).parent
    calls = [
        (path.name, call)
        for path in package.rglob("*.py")
        for call in re.findall(r"Image\.open\((?:[^()]|\([^()]*\))*\)", path.read_text(encoding="utf-8"))
    ]
    assert calls and all("formats=" in call for _, call in calls), calls
