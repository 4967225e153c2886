"""Tokens are counted from the headers of pictures as they are collated."""

import pytest
from PIL import Image

from puma_trl.data.checks import TokenCounter
from puma_trl.data.collator import DataCollatorForPumaPairs
from puma_trl.data.images import ORIENTATION, image_size
from puma_trl.data.render import prompt_of
from puma_trl.models.families import get_family

from ..models.family_models import build_family


@pytest.fixture(params=["png", "webp", "mpo", "jpg"])
def turned(request, tmp_path):
    """A high picture that lies on its side in the file."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = tmp_path / f"turned.{request.param}"
    Image.new("RGB", (200, 60), "navy").save(path, exif=exif)
    assert Image.open(path).size == (200, 60)
    return str(path)


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "idefics3", "smolvlm", "qwen2_vl"])
@pytest.mark.parametrize("special_tokens", ["error", "escape"])
def test_turned_pictures(name, special_tokens, turned):
    processor, model = build_family(name)
    family = get_family(model.config)
    row = {"image_url": [turned], "instruction": "Why?", "output": "So."}
    if special_tokens == "escape":
        row |= {"instruction": f"Why {processor.image_token}?", "output": "So<|im_end|>."}
    collator = DataCollatorForPumaPairs(processor, family, use_kl=False, special_tokens=special_tokens)
    counter = TokenCounter(processor, family, special_tokens)
    texts = [*counter.renderer.prompts([prompt_of(row, "")]), counter.renderer.answer(row["output"])]
    counted = sum(counter.count_texts(texts)) + counter.count_image(image_size(turned))
    assert counted == collator([row])["attention_mask"].sum()
