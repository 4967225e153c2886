import json

import pytest
from peft import get_peft_model
from trl import ModelConfig

from puma_trl.config import PumaKLConfig
from puma_trl.models.adapters import build_peft_config
from puma_trl.models.families import get_family
from puma_trl.models.load import load_config, load_model, load_processor
from puma_trl.models.parts import count_parameters, select_parts, set_trainable_parts


@pytest.fixture
def training_args(tmp_path):
    return PumaKLConfig(str(tmp_path / "out"), bf16=False, use_cpu=True)


@pytest.fixture
def checkpoint(tiny_model, processor, tmp_path):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


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


def test_explicit_prefix(tiny_model):
    model = tiny_model()
    set_trainable_parts(model, ["model.visual.blocks.1."], get_family(model.config))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable and all(name.startswith("model.visual.blocks.1.") for name in trainable)


@pytest.mark.parametrize("part", ["visoin", "model.nothing."])
def test_unknown_part_lists_the_parts_and_modules(tiny_model, part):
    model = tiny_model()
    with pytest.raises(ValueError, match=part) as error:
        set_trainable_parts(model, [part], get_family(model.config))
    assert "aligner, language_model, vision_tower_low" in str(error.value)
    assert "model.visual" in str(error.value)


def test_load_round_trip(checkpoint, training_args):
    model_args = ModelConfig(model_name_or_path=str(checkpoint), dtype="float32")
    config = load_config(model_args, training_args)
    model = load_model(model_args, training_args, config, get_family(config))
    assert type(model).__name__ == "Qwen2VLForConditionalGeneration"
    assert load_processor(model_args, training_args).tokenizer.pad_token == "<|endoftext|>"


def test_folder_without_weights(checkpoint, training_args):
    (checkpoint / "model.safetensors").unlink()
    model_args = ModelConfig(model_name_or_path=str(checkpoint))
    config = load_config(model_args, training_args)
    with pytest.raises(ValueError, match="No usable weights"):
        load_model(model_args, training_args, config, get_family(config))


def test_folder_with_another_models_weights(checkpoint, training_args):
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["num_hidden_layers"] = 3
    config["text_config"].pop("layer_types", None)
    path.write_text(json.dumps(config))
    model_args = ModelConfig(model_name_or_path=str(checkpoint))
    loaded = load_config(model_args, training_args)
    with pytest.raises(ValueError, match="lacks .* tensors"):
        load_model(model_args, training_args, loaded, get_family(loaded))


def test_no_model_folder(tmp_path, training_args):
    with pytest.raises(ValueError, match="No model configuration"):
        load_config(ModelConfig(model_name_or_path=str(tmp_path / "nothing")), training_args)


def test_folder_without_processor(checkpoint, training_args):
    for path in checkpoint.iterdir():
        if "token" in path.name or "process" in path.name or "template" in path.name:
            path.unlink()
    with pytest.raises(ValueError, match="No processor or tokenizer"):
        load_processor(ModelConfig(model_name_or_path=str(checkpoint)), training_args)


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


def test_adapter_on_the_head_is_refused(tiny_model):
    model = tiny_model()
    model_args = ModelConfig(use_peft=True, lora_target_modules=["q_proj", "lm_head"])
    with pytest.raises(ValueError, match="`lm_head`"):
        build_peft_config(model, model_args, ["all"], get_family(model.config))
