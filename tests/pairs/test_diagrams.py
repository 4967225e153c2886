"""Diagrams from other hands can be seen in the picture: transparent, huge, tiny, faint."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from puma_trl.data.images import open_image
from puma_trl.pairs.build import compose, fonts
from puma_trl.pairs.build.typeset import DoesNotFit


STYLE = compose.Style("DejaVu Sans", 18, 24, 1.4, diagram_first=True, turn=0.0, noise=0)


def composed(diagram):
    """Returns the picture, and the part of it above the words."""
    image = compose.compose("Find x.", diagram, STYLE, fonts.FontBook(), 0).image
    grey = np.asarray(image.convert("L")).astype(int)
    return grey, grey[24:-70]


def contrast(part):
    return int(part.max() - part.min())


def figure(size, ground, line, width=2, mode="RGB"):
    image = Image.new(mode, size, ground)
    ImageDraw.Draw(image).rectangle(
        (size[0] // 5, size[1] // 5, size[0] * 4 // 5, size[1] * 4 // 5), outline=line, width=width
    )
    return image


@pytest.mark.parametrize("line", ["black", "white", "#888888"])
def test_transparent_diagrams(tmp_path, line):
    figure((300, 200), (0, 0, 0, 0), line, mode="RGBA").save(tmp_path / "d.png")
    _, part = composed(open_image(str(tmp_path / "d.png")))
    assert contrast(part) > 100


@pytest.mark.parametrize(("ground", "line"), [("black", "#303030"), ("#808080", "#909090"), ("white", "#e8e8e8")])
def test_faint_diagrams_get_contrast(ground, line):
    _, part = composed(figure((300, 200), ground, line))
    assert contrast(part) > 240


def test_diagrams_with_contrast_keep_their_pixels():
    diagram = figure((300, 200), "black", "#c0c0c0")
    grey, _ = composed(diagram)
    assert np.array_equal(grey[24:224, 106:406], np.asarray(diagram.convert("L")))


@pytest.mark.parametrize(("ground", "line"), [("white", "black"), ("black", "white")])
def test_thin_lines_of_huge_diagrams_stay(ground, line):
    _, part = composed(figure((5000, 4000), ground, line, width=2))
    assert part.shape[1] == 1024
    dark = part[part.shape[0] // 2, 300:700] if ground == "black" else 255 - part[part.shape[0] // 2, 300:700]
    middle = part[: part.shape[0], 512 - 100 : 512 + 100]
    assert contrast(middle) > 110 and dark.max() < 60  # the lines, and nothing between them


def test_tiny_diagrams_are_enlarged():
    _, part = composed(figure((40, 30), "white", "black", width=1))
    rows, columns = np.nonzero(part < 128)
    assert columns.max() - columns.min() >= 90 and rows.max() - rows.min() >= 65


def test_a_sliver_is_refused():
    with pytest.raises(DoesNotFit, match="too wide: the diagram has 9000 x 40 pixels, of which"):
        composed(Image.new("RGB", (9000, 40), "black"))
