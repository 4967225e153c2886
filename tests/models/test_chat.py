"""Where the chat templates of this package put the pictures of a turn."""

import pytest

from puma_trl.mini import build_processor


IMAGES = {
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "math_puma_qwen2": "<|image|>\n",
    "deepseek_vl_hybrid": "<image_placeholder>",
}


@pytest.mark.parametrize("family_name", IMAGES)
@pytest.mark.parametrize(
    ("parts", "written"),
    [
        (("image", "Why?"), "{image}Why?"),
        (("Why?", "image"), "{image}Why?"),
        (("In ", "image", " and ", "image", ", why?"), "In {image} and {image}, why?"),
        (("In ", "image", ", why?", "image", "image"), "{image}{image}In {image}, why?"),
        (("image", "image"), "{image}{image}"),
    ],
)
def test_pictures_stand_in_the_text_or_before_it(family_name, parts, written):
    content = [{"type": "image"} if part == "image" else {"type": "text", "text": part} for part in parts]
    text = build_processor(family_name).apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    marker, end = ("User: ", "\n\n") if family_name == "deepseek_vl_hybrid" else ("user\n", "<|im_end|>\n")
    assert text.rpartition(marker)[2] == written.format(image=IMAGES[family_name]) + end
