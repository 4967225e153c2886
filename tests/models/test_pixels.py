"""The numbers of pixels of a recipe reach the tokens of every family that can, and the rest is refused in words."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessor, LlavaImageProcessor, LlavaNextImageProcessor

from puma_trl.data.checks import TokenCounter
from puma_trl.errors import ModelError
from puma_trl.mini import build_tokenizer
from puma_trl.models.families import get_family
from puma_trl.models.pixels import cropped_share, set_pixels

from .family_models import build_family


BIG, TINY = (1000, 800), (8, 8)

# family → the two numbers, and the tokens of a big and a tiny picture before and after
SETTINGS = {
    "qwen2_vl": (4 * 784, 9 * 784, (30, 1), (6, 4)),
    "qwen2_5_vl": (4 * 784, 9 * 784, (30, 1), (6, 4)),
    "qwen3_vl": (4 * 1024, 6 * 1024, (6, 1), (4, 4)),
    "llava_next": (2 * 784, 3 * 784, (24, 10), (10, 10)),
    "llava_onevision": (2 * 784, 3 * 784, (24, 10), (10, 10)),
    "internvl": (2 * 784, 5 * 784, (15, 3), (7, 7)),
    "idefics3": (None, 55 * 55, (19, 19), (4, 4)),
    "smolvlm": (None, 55 * 55, (19, 19), (4, 4)),
}


def blank(size):
    return Image.new("RGB", size[::-1], "white")


def count_tokens(processor, family, size):
    text = family.image_text or processor.image_token
    (ids,) = processor(images=[[blank(size)]], text=[text], add_special_tokens=False)["input_ids"]
    (around,) = processor.tokenizer([text], add_special_tokens=False)["input_ids"]
    return len(ids) - len(around) + 1


@pytest.mark.parametrize("name", SETTINGS)
def test_pixels_reach_the_tokens_and_are_saved(name, tmp_path):
    minimum, maximum, before, after = SETTINGS[name]
    processor, model = build_family(name)
    family = get_family(model.config)
    assert tuple(count_tokens(processor, family, size) for size in (BIG, TINY)) == before
    set_pixels(processor, model.config, minimum, maximum)
    set_pixels(processor, model.config, minimum, maximum)  # the script, then the trainer
    processor.save_pretrained(tmp_path)
    for current in (processor, AutoProcessor.from_pretrained(tmp_path)):
        assert tuple(count_tokens(current, family, size) for size in (BIG, TINY)) == after
        counter = TokenCounter(current, family)
        assert tuple(counter.count_image(size) + 1 for size in (BIG, TINY)) == after


@pytest.mark.parametrize("name", SETTINGS)
def test_model_takes_pictures_of_these_pixels(name):
    minimum, maximum, *_ = SETTINGS[name]
    processor, model = build_family(name)
    set_pixels(processor, model.config, minimum, maximum)
    text = get_family(model.config).image_text or processor.image_token
    inputs = processor(images=[[blank(BIG)]], text=[text], add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        assert model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]


def test_one_number_leaves_the_other_as_it_was():
    processor, model = build_family("qwen2_vl")
    size = dict(processor.image_processor.size)
    set_pixels(processor, model.config, None, None)
    assert dict(processor.image_processor.size) == size
    set_pixels(processor, model.config, None, 784 * 2)
    assert dict(processor.image_processor.size) == size | {"longest_edge": 784 * 2}


@pytest.mark.parametrize(
    "name, message",
    {
        "math_puma_qwen2": "SiglipImageProcessor resizes every picture to 84 x 84 pixels",
        "deepseek_vl_hybrid": "DeepseekVLHybridImageProcessor resizes every picture to 84 x 84 pixels",
        "llava": "CLIPImageProcessor resizes every picture to 28 x 28 pixels",
        "gemma3": "Gemma3ImageProcessor resizes every picture to 28 x 28 pixels.*; `do_pan_and_scan`",
    }.items(),
)
def test_processors_of_one_size_say_so(name, message):
    processor, model = build_family(name)
    with pytest.raises(ModelError, match=f"`max_pixels: 5000`: {message}.*Leave it out"):
        set_pixels(processor, model.config, None, 5000)


def test_processors_whose_option_of_several_parts_is_off():
    processor, model = build_family("idefics3")
    processor.image_processor.do_image_splitting = False
    with pytest.raises(ModelError, match="Idefics3ImageProcessor has no such setting as it is configured"):
        set_pixels(processor, model.config, None, 5000)
    processor, model = build_family("internvl")
    processor.images_kwargs = {"crop_to_patches": False}
    with pytest.raises(ModelError, match="GotOcr2ImageProcessor resizes every picture to 28 x 28 pixels"):
        set_pixels(processor, model.config, None, 5000)


@pytest.mark.parametrize(
    "name, minimum, maximum, message",
    [
        ("qwen2_vl", None, 783, "one token takes 28 x 28 pixels. Set `max_pixels` to 784 or more"),
        ("qwen2_vl", 30_000, None, "enlarge pictures to 30000 pixels and reduce them to 28224"),
        ("llava_next", None, 784, "of 1568 to 3136 pixels, would stay"),
        ("llava_next", 1569, 3135, "Set `min_pixels` to at most 3136, `max_pixels` to at least 1568"),
        ("internvl", None, 783, "at least 1 tiles of 28 x 28 pixels. Set `max_pixels` to 784 or more"),
        ("internvl", 3000, 3000, "at least 4 tiles of 28 x 28 pixels. Set `max_pixels` to 3136 or more"),
        ("idefics3", 784, None, "small ones too, to a longest edge of 56 pixels"),
        ("idefics3", None, 783, "tiles of 28 x 28 pixels. Set it to 784 or more"),
        ("smolvlm", None, 28**2 * 49, "7 x 7 tiles .* the tokenizer lacks. Set it to less than 38416"),
    ],
)
def test_numbers_that_a_processor_cannot_keep(name, minimum, maximum, message):
    processor, model = build_family(name)
    before = processor.image_processor.to_dict()
    with pytest.raises(ModelError, match=message):
        set_pixels(processor, model.config, minimum, maximum)
    assert processor.image_processor.to_dict() == before


def test_a_text_model_takes_no_pictures():
    with pytest.raises(ModelError, match="`min_pixels: 5` and `max_pixels: 9`: a text model takes no pictures"):
        set_pixels(build_tokenizer(), None, 5, 9)


def kept_by_running(processor, height, width):
    """Runs the image processor on a picture whose colours are its coordinates, and returns the share that it shows."""
    columns, rows = np.meshgrid(*((np.arange(edge) + 0.5) * 255 / edge for edge in (width, height)))
    picture = Image.fromarray(np.stack([columns, rows, np.full_like(rows, 200)], -1).astype(np.uint8))
    options = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
    pixels = processor.image_processor(images=picture, **options)["pixel_values"].flatten(0, -4)[0].float()
    shown = pixels[2] > 190  # not what is padded
    share = 1.0
    for coordinates, axis in ((pixels[0], 0), (pixels[1], 1)):
        values = coordinates[shown]
        count = int(shown.any(axis).sum())
        share *= min(1.0, float(values.max() - values.min()) / 255 * count / (count - 1))
    return share


@pytest.mark.parametrize("size", [(300, 300), (256, 1024), (1200, 400), (300, 310), (2000, 260)])
@pytest.mark.parametrize(
    "image_processor",
    [
        CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}),
        CLIPImageProcessor(size={"shortest_edge": 320}, crop_size={"height": 224, "width": 224}),
        CLIPImageProcessor(size={"height": 224, "width": 224}, crop_size={"height": 224, "width": 224}),
        CLIPImageProcessor(size={"height": 224, "width": 224}, do_center_crop=False),
        CLIPImageProcessor(do_resize=False, crop_size={"height": 224, "width": 160}),
        LlavaImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}, do_pad=True),
        LlavaImageProcessor(size={"shortest_edge": 320}, crop_size={"height": 224, "width": 224}, do_pad=True),
    ],
    ids=["clip", "clip larger", "clip square", "clip whole", "clip as it is", "llava padded", "llava padded larger"],
)
def test_cropped_share_is_what_the_processor_cuts(image_processor, size):
    processor, _ = build_family("llava")
    processor.image_processor = image_processor
    assert cropped_share(processor, [size]) == pytest.approx(1 - kept_by_running(processor, *size), abs=0.03)


def test_cropped_share_of_pictures_cut_into_squares():
    processor, _ = build_family("llava_next")
    assert cropped_share(processor, [(256, 1024)]) == 0
    crop = {"height": 224, "width": 224}
    processor.image_processor = LlavaNextImageProcessor(
        size={"shortest_edge": 320}, crop_size=crop, image_grid_pinpoints=[[224, 224]]
    )
    share = cropped_share(processor, [(256, 1024)])
    assert share == pytest.approx(1 - (224 / 320) ** 2)
    assert share == pytest.approx(1 - kept_by_running(processor, 256, 1024), abs=0.03)


def test_cropped_share_counts_pixels():
    processor, _ = build_family("llava")
    assert cropped_share(processor, []) == 0
    assert cropped_share(processor, [(100, 100)] * 3) == 0
    assert cropped_share(processor, [(100, 200)]) == pytest.approx(0.5)
    assert cropped_share(processor, iter([(100, 200), (100, 100)])) == pytest.approx(1 / 3)
    assert cropped_share(build_family("math_puma_qwen2")[0], [(100, 200)]) == 0
    assert cropped_share(build_tokenizer(), [(100, 200)]) == 0
