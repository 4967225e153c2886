"""The page that says how to add a family: its example is a family, and what it points at is there."""

import re
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, Mistral3Config

from puma_trl.models.families import FAMILIES, family, get_family
from puma_trl.models.parts import part_of, set_trainable_parts


PAGE = Path(__file__).parents[2] / "docs" / "adding_a_family.md"


def test_the_example_names_every_parameter():
    code = {}
    exec(re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1], code)
    example = code["MISTRAL3"]
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | {"model_type": "mistral", "vocab_size": 64, "num_key_value_heads": 1, "head_dim": 16}
    vision = sizes | {"model_type": "pixtral", "image_size": 28, "patch_size": 14, "head_dim": 16}
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(Mistral3Config(text_config=text, vision_config=vision))
    assert model.config.model_type in example.model_types
    assert get_family(model.config).parts == {}, "It is registered: the page needs another example."
    named = {part_of(name, example) for name, _ in model.named_parameters()}
    assert named == {"language_model", "aligner", "vision_tower_low"}
    set_trainable_parts(model, ["aligner"], example)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith("model.multi_modal_projector.") for name in trained)


def test_the_table_has_every_field():
    fields = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert fields == list(family.Family.__dataclass_fields__)
    assert all(type(each) is family.Family for each in FAMILIES)
