"""Tokens are counted from the headers of pictures as they are collated."""

from functools import cache

import pytest
from PIL import Image

from puma_trl.data.checks import TokenCounter
from puma_trl.data.collator import DataCollatorForPumaPairs
from puma_trl.data.images import ORIENTATION, image_size
from puma_trl.data.render import prompt_of
from puma_trl.models.families import get_family

from ..models.family_models import MINI, OTHERS, build_family


HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "See <image>\nWhich?"},
    {"role": "assistant", "content": "This."},
]
ROWS = [
    {"instruction": "<image>\nWhy?"},
    {"instruction": "Why?\n<image>", "output": " So. "},
    {"instruction": "In <image>, why?"},
    {"instruction": "Why?", "history": HISTORY},
    {"instruction": "Why?", "history": HISTORY[:1]},
    {"instruction": "<image> Why {control}?", "output": "So {control}."},
    {"instruction": " {control}{control} ", "image_url": [], "history": [{"role": "system", "content": "{control}"}]},
]


@cache
def read_family(name):
    """Returns processor and family."""
    processor, model = build_family(name)
    return processor, get_family(model.config)


@pytest.mark.parametrize("name", [*MINI, *OTHERS])
def test_places_turns_and_escaped_tokens(name, tmp_path):
    processor, family = read_family(name)
    Image.new("RGB", (100, 60)).save(tmp_path / "a.png")
    control = "".join(token for token in processor.tokenizer.all_special_tokens if token != "<image>")
    counter = TokenCounter(processor, family, "escape")
    collator = DataCollatorForPumaPairs(processor, family, use_kl=False, placeholder_sides=(), special_tokens="escape")
    for row in ROWS:
        row = {"image_url": [str(tmp_path / "a.png")], "output": "So.", "history": []} | row
        row |= {name: row[name].replace("{control}", control) for name in ("instruction", "output")}
        row["history"] = [turn | {"content": turn["content"].replace("{control}", control)} for turn in row["history"]]
        assert counter.renderer.find_problem(row, "") is None
        texts = [*counter.renderer.prompts([prompt_of(row, "")]), counter.renderer.answer(row["output"])]
        counted = sum(counter.count_texts(texts))
        counted += sum(counter.count_image(image_size(image)) for image in row["image_url"])
        batch = collator([row])
        assert counted == batch["attention_mask"].sum(), row
        text = processor.tokenizer.decode(batch["labels"][batch["labels"] != -100])
        assert text == row["output"] + counter.renderer.end


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
def test_turned_pictures(name, turned):
    processor, family = read_family(name)
    row = {"image_url": [turned], "instruction": "Why?", "output": "So."}
    collator = DataCollatorForPumaPairs(processor, family, use_kl=False)
    counter = TokenCounter(processor, family)
    texts = [*counter.renderer.prompts([prompt_of(row, "")]), counter.renderer.answer(row["output"])]
    counted = sum(counter.count_texts(texts)) + counter.count_image(image_size(turned))
    assert counted == collator([row])["attention_mask"].sum()
