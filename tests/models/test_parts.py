"""The parts of a model: one vocabulary for all settings, what trains, how much of it, and how fast."""

import re

import pytest
import torch
from peft import get_peft_model
from trl import ModelConfig

from puma_trl.config import PumaKLConfig
from puma_trl.errors import ModelError
from puma_trl.models.adapters import build_peft_config
from puma_trl.models.families import get_family
from puma_trl.models.families.deepseek_vl_hybrid import DEEPSEEK_VL_HYBRID
from puma_trl.models.families.family import Family
from puma_trl.models.families.qwen import QWEN_VL
from puma_trl.models.parts import (
    check_parts,
    count_parameters,
    resolve_part,
    select_parts,
    set_trainable_parts,
    split_groups,
)

from .family_models import build_family


@pytest.mark.parametrize("family_name", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("tie", [False, True])
def test_every_parameter_belongs_to_one_part(tiny_model, family_name, tie):
    model = tiny_model(family_name=family_name, tie_word_embeddings=tie)
    parts = select_parts(model, ["all"], get_family(model.config))
    assert set(parts) == {"language_model", "aligner", "vision_tower_low"}
    names = [name for members in parts.values() for name in members]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert all(".merger." in name for name in parts["aligner"])
    assert all("visual" in name and ".merger." not in name for name in parts["vision_tower_low"])
    assert ("lm_head.weight" in parts["language_model"]) is not tie


def test_set_trainable_parts(tiny_model):
    model = tiny_model()
    counts = set_trainable_parts(model, ["aligner", "vision_tower_low", "vision_tower_high"], get_family(model.config))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if name.startswith("model.visual.")}
    assert sum(counts.values()) == sum(p.numel() for p in model.model.visual.parameters())
    # one tower under two names is counted once
    assert set(counts) == {"aligner", "vision_tower_low"}


def test_names_as_text_and_no_name(tiny_model):
    model = tiny_model()
    family = get_family(model.config)
    expected = set_trainable_parts(model, ["aligner", "language_model"], family)
    assert set_trainable_parts(model, "aligner, language_model", family) == expected
    for nothing in ([], None, " "):
        with pytest.raises(ModelError, match=f"`parts` is {re.escape(repr(nothing))}, so nothing would train"):
            set_trainable_parts(model, nothing, family)


def test_explicit_prefix(tiny_model):
    model = tiny_model()
    set_trainable_parts(model, ["model.visual.blocks.1."], get_family(model.config))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable and all(name.startswith("model.visual.blocks.1.") for name in trainable)


@pytest.mark.parametrize("part", ["visoin", "model.nothing."])
def test_unknown_part_lists_the_parts_and_modules(tiny_model, part):
    model = tiny_model()
    with pytest.raises(ModelError, match=part) as error:
        set_trainable_parts(model, [part], get_family(model.config))
    assert "language_model, aligner, vision_tower_low, vision_tower_high, vision_tower, or `all`" in str(error.value)
    assert "model.visual" in str(error.value)


@pytest.mark.parametrize(
    ("family", "name", "parts"),
    [
        (QWEN_VL, "vision_tower", ["vision_tower_low"]),
        (QWEN_VL, "vision_tower_high", ["vision_tower_low"]),
        (DEEPSEEK_VL_HYBRID, "vision_tower", ["vision_tower_low", "vision_tower_high"]),
        (DEEPSEEK_VL_HYBRID, "vision_tower_high", ["vision_tower_high"]),
        (QWEN_VL, "aligner", ["aligner"]),
    ],
)
def test_names_mean_the_same_in_every_setting(family, name, parts):
    """In what trains, at what rate, and what is trained whole beside adapters."""
    assert resolve_part(name, family, "trainable_parts") == parts
    _, model = build_family(family.model_types[0])
    assert list(select_parts(model, [name], family)) == parts

    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    split_groups(optimizer, model.named_parameters(), family, {name: 0.5})
    assert {group["part"] for group in optimizer.param_groups if group["lr"] == 0.5} == set(parts)

    args = ModelConfig(use_peft=True, lora_modules_to_save=[name])
    try:
        paths = build_peft_config(model, args, ["all"], family).modules_to_save
    except ModelError as error:  # a tower whose last parameters lie beside its modules cannot be wrapped by PEFT
        assert name in str(error) and "Name the modules instead" in str(error)
    else:
        whole = {key for key, _ in model.named_parameters() if key.startswith(tuple(f"{path}." for path in paths))}
        assert whole == {key for names in select_parts(model, [name], family).values() for key in names}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("vision_towers", "vision_tower"),
        ("vision", "vision_tower"),
        ("alligner", "aligner"),
        ("lang_model", "language_model"),
    ],
)
def test_the_nearest_name_is_told_before_anything_is_loaded(tmp_path, name, nearest):
    for settings in ({"trainable_parts": ["aligner", name]}, {"part_learning_rates": {name: 1e-4}}):
        args = PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True, **settings)
        with pytest.raises(ModelError, match=f"`{next(iter(settings))}` names '{name}'.*Did you mean `{nearest}`"):
            check_parts(args, QWEN_VL)
        # whose parts are its modules, which are looked up later
        check_parts(args, Family(("unheard_of",), {}))
    _, model = build_family("qwen2_vl")
    args = ModelConfig(use_peft=True, lora_modules_to_save=[name])
    with pytest.raises(ModelError, match=f"`lora_modules_to_save` names '{name}'.*Did you mean `{nearest}`"):
        build_peft_config(model, args, ["all"], QWEN_VL)


def test_a_prefix_without_its_dot(tiny_model):
    with pytest.raises(ModelError, match="End it with a dot: `model.visual.blocks.`"):
        select_parts(tiny_model(), ["model.visual.blocks"], QWEN_VL)


def rates(model, family, part_learning_rates, parts=("all",)):
    set_trainable_parts(model, list(parts), family)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    split_groups(optimizer, model.named_parameters(), family, part_learning_rates)
    return {group["part"]: group["lr"] for group in optimizer.param_groups}


def test_learning_rates_of_towers():
    _, model = build_family("deepseek_vl_hybrid")
    found = rates(model, DEEPSEEK_VL_HYBRID, {"vision_tower_high": 0.2, "vision_tower": 0.1})
    assert (found["vision_tower_low"], found["vision_tower_high"], found["aligner"]) == (0.1, 0.2, 1.0)
    _, model = build_family("qwen2_vl")
    assert rates(model, QWEN_VL, {"vision_tower_high": 0.2})["vision_tower_low"] == 0.2
    assert rates(model, QWEN_VL, {"vision_tower": 0.1, "vision_tower_low": 0.2})["vision_tower_low"] == 0.2
    same = {"vision_tower_low": 0.1, "vision_tower_high": 0.1}
    assert rates(model, QWEN_VL, same)["vision_tower_low"] == 0.1
    with pytest.raises(ModelError, match="one vision tower. Keep one of them"):
        rates(model, QWEN_VL, same | {"vision_tower_high": 0.2})


def test_learning_rates_of_prefixes(tiny_model):
    """The longest one decides, and a part only where none does."""
    wanted = {"model.visual.blocks.": 0.2, "model.visual.blocks.1.": 0.3, "vision_tower": 0.1}
    found = rates(tiny_model(), QWEN_VL, wanted)
    assert found | {"vision_tower": found["vision_tower_low"]} == found | wanted


def test_a_learning_rate_of_what_does_not_train(tiny_model):
    for name in ("language_model", "model.visual.patch_embed.", "model.nothing."):
        with pytest.raises(
            ModelError, match=f"names {name}, of which no parameter trains; what trains is of: aligner"
        ):
            rates(tiny_model(), QWEN_VL, {name: 0.1}, parts=["aligner"])


def test_adapters_go_on_the_trainable_parts(tiny_model):
    model = tiny_model()
    family = get_family(model.config)
    model_args = ModelConfig(use_peft=True, lora_r=2, lora_modules_to_save=["merger"])
    config = build_peft_config(model, model_args, ["aligner", "vision_tower_low"], family)
    model = get_peft_model(model, config)
    adapted = {name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_" in name}
    whole = {name for name, parameter in model.named_parameters() if parameter.requires_grad} - adapted
    assert adapted and all(".visual.blocks." in name for name in adapted)
    assert whole and all(".visual.merger." in name for name in whole)
    counts = count_parameters(model, family)
    assert counts["language_model"][0] == 0
    assert counts["aligner"][0] > 0
    # what trains whole counts once, without the original that PEFT keeps
    merger = model.get_base_model().model.visual.merger
    num_whole = sum(p.numel() for p in merger.modules_to_save.parameters())
    assert counts["aligner"] == (num_whole, num_whole)


def test_adapter_on_the_head_is_refused(tiny_model):
    model = tiny_model()
    model_args = ModelConfig(use_peft=True, lora_target_modules=["q_proj", "lm_head"])
    with pytest.raises(ValueError, match="`lm_head`"):
        build_peft_config(model, model_args, ["all"], get_family(model.config))
