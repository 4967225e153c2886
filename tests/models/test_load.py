import json

import pytest
from trl import ModelConfig

from puma_trl.config import PumaKLConfig
from puma_trl.models.families import get_family
from puma_trl.models.load import load_config, load_model, load_processor


@pytest.fixture
def training_args(tmp_path):
    return PumaKLConfig(str(tmp_path / "out"), bf16=False, use_cpu=True)


@pytest.fixture
def checkpoint(tiny_model, processor, tmp_path):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


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
