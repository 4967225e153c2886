import json

import pytest
import torch
from transformers import AutoTokenizer
from trl import ModelConfig

from puma_trl.config import PumaKLConfig
from puma_trl.errors import ModelError, first_line
from puma_trl.models import load
from puma_trl.models.families import get_family
from puma_trl.models.load import check_vocabulary, load_config, load_model, load_processor
from puma_trl.models.weights import check_finite

from ..checkpoints.test_assemble import write_language_model
from .family_models import MINI, OTHERS, build_family


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


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_quantised_weights_under_zero3(checkpoint, training_args, monkeypatch, bits):
    monkeypatch.setattr(load, "is_deepspeed_zero3_enabled", lambda: True)
    model_args = ModelConfig(model_name_or_path=str(checkpoint), use_peft=True, **{bits: True})
    config = load_config(model_args, training_args)
    with pytest.raises(ModelError, match="`load_in_4bit` and `load_in_8bit` do not go with ZeRO-3: .* Use DDP or"):
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


def test_weights_of_another_size(checkpoint, training_args):
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["intermediate_size"] *= 2
    path.write_text(json.dumps(config))
    model_args = ModelConfig(model_name_or_path=str(checkpoint))
    loaded = load_config(model_args, training_args)
    with pytest.raises(
        ModelError, match=r"tensors of another size than .* the first being .*mlp.*: \[.*\] instead of"
    ):
        load_model(model_args, training_args, loaded, get_family(loaded))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_finite_numbers(value, tiny_model):
    model = tiny_model()
    check_finite(model, "model")
    name, parameter = list(model.named_parameters())[-3]
    with torch.no_grad():
        parameter.view(-1)[-1] = value
    with pytest.raises(ModelError, match=f"`model` has 1 weights in {name} that are infinite or not a number"):
        check_finite(model, "model")


def test_a_checkpoint_with_a_broken_weight(checkpoint, training_args, tiny_model):
    model = tiny_model()
    model.get_input_embeddings().weight.data[1, 1] = float("nan")
    model.save_pretrained(checkpoint)
    model_args = ModelConfig(model_name_or_path=str(checkpoint))
    loaded = load_config(model_args, training_args)
    with pytest.raises(ModelError, match="embed_tokens.weight that are infinite or not a number"):
        load_model(model_args, training_args, loaded, get_family(loaded))


def test_no_model_folder(tmp_path, training_args):
    with pytest.raises(ValueError, match="No model configuration"):
        load_config(ModelConfig(model_name_or_path=str(tmp_path / "nothing")), training_args)


def test_a_model_of_the_hub_tells_why_it_was_not_found(monkeypatch, training_args):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"`model_name_or_path: me/nothing` \(.+\)\. It must be"):
        load_config(ModelConfig("me/nothing"), training_args)


def test_folder_without_processor(checkpoint, training_args):
    for path in checkpoint.iterdir():
        if "token" in path.name or "process" in path.name or "template" in path.name:
            path.unlink()
    with pytest.raises(ValueError, match="No processor or tokenizer"):
        load_processor(ModelConfig(model_name_or_path=str(checkpoint)), training_args)


@pytest.mark.parametrize("name", [*MINI, *OTHERS])
def test_the_vocabulary_of_every_family(name):
    processor, model = build_family(name)
    check_vocabulary(model.config, processor)
    image_id, model.config.image_token_id = model.config.image_token_id, processor.tokenizer.eos_token_id
    message = rf"\(id .*\b{image_id}\b.*\), but .* `image_token_id: {processor.tokenizer.eos_token_id}`"
    with pytest.raises(ModelError, match=message):
        check_vocabulary(model.config, processor)


@pytest.mark.parametrize(
    ("tokens", "special", "template", "found"),
    [
        (["sine"], False, "", "'sine'"),
        (["<unused>"], True, "", None),  # as those of Gemma 3 1B, which no text may contain
        (["<unused>", "<turn>"], True, "<turn>", "'<turn>'"),
        (["<unused>", "sine"], False, "", "'<unused>'"),
    ],
)
def test_tokens_beyond_the_embedding(tmp_path, tokens, special, template, found):
    text = write_language_model(tmp_path / "text")
    tokenizer = AutoTokenizer.from_pretrained(text)
    config = load_config(ModelConfig(text), PumaKLConfig(str(tmp_path / "out"), bf16=False, use_cpu=True))
    check_vocabulary(config, tokenizer)
    tokenizer.add_tokens(tokens, special_tokens=special)
    tokenizer.chat_template += template
    if found is None:
        check_vocabulary(config, tokenizer)
        tokenizer.pad_token, found = tokens[0], repr(tokens[0])  # which batches have
    last, rows = len(tokenizer) - 1, config.vocab_size
    with pytest.raises(
        ModelError, match=f"goes up to id {last}, but the embedding has {rows} rows only.*first being {found}"
    ):
        check_vocabulary(config, tokenizer)


def test_a_tokenizer_alone_of_a_model_that_reads_pictures(tiny_model, processor):
    with pytest.raises(ModelError, match="'qwen2_vl', which reads pictures, but beside it is a tokenizer alone"):
        check_vocabulary(tiny_model().config, processor.tokenizer)


def test_an_error_that_says_nothing_is_told_by_its_type():
    assert first_line(ValueError("\n a\n b")) == "a" and first_line(TimeoutError()) == "TimeoutError"
