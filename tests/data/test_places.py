"""Placeholders of pictures in any brackets are places; prose and LaTeX that look like them stay text."""

import pytest

from puma_trl.data.places import IMAGE_PLACE, check_places, mark_places, refuse_places
from puma_trl.errors import DataError


PLACEHOLDERS = (
    "<image/>|<image />|< image >|＜image＞|＜ｉｍａｇｅ＞|<im\u200bage>|<\u2060image\ufeff>|&lt;image&gt;|<image:1>"
    "|<image #1>"
    '|<image id=1>|<image id="1"/>|<fig1>|<Fig. 1>|<image token>|<dummy_image>|<images>|<media>|<visual>|<graphic>'
    "|{image}|{{image}}|{{ image_1 }}|‹图片>|<图片>|【图片】|[图1]"
    "|<изображение>|<Bild 1>|[Figure 1]|[image_placeholder]"
    "|[Insert image here]|\\includegraphics{p0.png}|\\includegraphics[width=5cm]{p0}|{image_path}|<image_url>"
).split("|")
PIPED = ["<|image_start|>", "<|media_pad|>", "<|vision|>", "<｜image｜>", "<|image_start|><|image_pad|><|image_end|>"]


@pytest.mark.parametrize("placeholder", PLACEHOLDERS + PIPED)
def test_any_brackets_make_a_place(placeholder):
    for text in ("{}\nFind it.", "Find {} it.", "如{}所示", "Find it.\n{}"):
        marked, places = mark_places(text.format(placeholder), "`instruction`")
        assert marked == text.format(IMAGE_PLACE) and len(places) == 1
        check_places(places, 1, "`instruction`")
        for count in (0, 2):
            with pytest.raises(DataError, match="image places: `instruction` has 1 for pictures"):
                check_places(places, count, "`instruction`")
        with pytest.raises(DataError, match="image places: `output` has '"):
            refuse_places(text.format(placeholder), "`output`")


@pytest.mark.parametrize("line", ["(image)", " (Image 1) ", "（图片）"])
def test_words_in_round_brackets_are_places_alone_on_a_line(line):
    marked, places = mark_places(f"Look.\n{line}\nFind it.", "`a`")
    assert len(places) == 1 and marked.replace(" ", "") == "Look.\n<image>\nFindit."
    assert mark_places(f"The range {line} of T", "`a`") == (f"The range {line} of T", [])


@pytest.mark.parametrize(
    "text",
    [
        r"$\text{image}(T)$ and $V_{image}$, $x^{image}$, \{image\}, \frac{a}{image}",
        "the [image] of T, {image} of f",
        "the photo (image) is a picture, <b>figure</b>, image > 1, [images of T]",
        "x[image_size], <imagery>, <pictured>, {imaginary}, <config>, <figment>, <|im_start|>",
        "an emoji of a family \U0001f468\u200d\U0001f469\u200d\U0001f467, （甲） and ＜１＞",
        "",
    ],
)
def test_prose_and_latex_stay(text):
    assert mark_places(text, "`a`") == (text, [])
    refuse_places(text, "`a`")


def test_several_files_of_latex_have_no_known_order():
    _, places = mark_places(r"\includegraphics{b.png} \includegraphics{a.png}", "`a`")
    with pytest.raises(DataError, match="whose order is not known; write '<image>' in each place"):
        check_places(places, 2, "`a`")


def test_numbers_in_any_brackets_are_the_order():
    for text in ("<image:2> [image 1]", "{image_2} <image #1>", "【图2】【图1】"):
        with pytest.raises(DataError, match="pictures are placed in their order"):
            check_places(mark_places(text, "`a`")[1], 2, "`a`")


@pytest.mark.parametrize("text", ["<|video_pad|>", "[figure](a.png)", "<image href='a.png'>", "![a](x/b.jpg)"])
def test_pictures_and_videos_inside_are_refused(text):
    with pytest.raises(DataError, match="in its text; pictures belong in a column of their own"):
        mark_places(text, "`a`")
