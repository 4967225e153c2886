"""A text model and a vision tower become one model that stage 2 can train."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionModel,
)

from puma_trl.checkpoints.assemble import assemble, main
from puma_trl.config import PumaKLConfig
from puma_trl.errors import CheckpointError
from puma_trl.mini import build_tokenizer
from puma_trl.models.families import get_family
from puma_trl.models.families.math_puma_qwen2 import CHAT_TEMPLATE, MathPumaQwen2ForConditionalGeneration
from puma_trl.models.parts import set_trainable_parts
from puma_trl.train.trainer import PumaKLTrainer


SIZES = {"intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
TOWER = {"hidden_size": 32, "image_size": 28, "patch_size": 14, **SIZES}


TEXT_TEMPLATE = (  # as those of text models: the content of a turn is a string
    "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def write_language_model(folder, extra_rows=0, tie=False):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEXT_TEMPLATE
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=64,
        num_key_value_heads=2,
        vocab_size=len(tokenizer) + extra_rows,
        tie_word_embeddings=tie,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        **SIZES,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_tower(folder, kind):
    torch.manual_seed(1)
    if kind == "clip":
        CLIPVisionModel(CLIPVisionConfig(**TOWER)).save_pretrained(folder)
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
        return str(folder)
    model = SiglipModel(SiglipConfig(text_config={"hidden_size": 32, "vocab_size": 50, **SIZES}, vision_config=TOWER))
    (model if kind == "siglip" else model.vision_model).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("aligner", "kind", "num_tokens"),
    [("gated_mlp", "siglip", 3), ("gated_mlp", "siglip tower", 3), ("mlp", "siglip", 4), ("mlp", "clip", 4)],
)
def test_what_is_kept_and_what_trains(tmp_path, pairs, aligner, kind, num_tokens):
    text, tower = write_language_model(tmp_path / "text"), write_tower(tmp_path / "tower", kind)
    assemble(text, tower, aligner, tmp_path / "model")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    assert isinstance(model, MathPumaQwen2ForConditionalGeneration) == (aligner == "gated_mlp")

    # the text model answers as before, and the tower is the one that was given
    original = AutoModelForCausalLM.from_pretrained(text)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[..., : original.vocab_size]
        assert_close(logits, original(input_ids=ids).logits, rtol=0, atol=1e-6)
    source = (CLIPVisionModel if kind == "clip" else SiglipVisionModel).from_pretrained(tower).state_dict()
    assert all(torch.equal(model.model.vision_tower.state_dict()[key], value) for key, value in source.items())
    picture = Image.new("RGB", (40, 30), "red")
    inputs = processor(images=[[picture]], text=["<|image|>"], return_tensors="pt", add_special_tokens=False)
    assert inputs["input_ids"].shape == (1, num_tokens)

    family = get_family(model.config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    set_trainable_parts(model, ["aligner"], family)
    args = PumaKLConfig(
        str(tmp_path / "out"),
        bf16=False,
        gradient_checkpointing=False,
        max_steps=2,
        learning_rate=0.1,
        per_device_train_batch_size=2,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
    )
    PumaKLTrainer(model=model, args=args, train_dataset=pairs(4), processing_class=processor).train()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if key.startswith("model.multi_modal_projector.")}


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("extra_rows", [0, 6])
def test_the_image_token_gets_a_row(tmp_path, extra_rows, tie):
    """The embedding grows by one row, or not at all where padding rows are left; a tied head stays tied."""
    text = write_language_model(tmp_path / "text", extra_rows, tie)
    model = assemble(text, write_tower(tmp_path / "tower", "siglip"), "gated_mlp", tmp_path / "model")
    old = AutoModelForCausalLM.from_pretrained(text).vocab_size
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    for each in (model, loaded):
        rows = each.get_input_embeddings().num_embeddings
        assert rows == each.config.text_config.vocab_size == each.lm_head.out_features == old + (extra_rows == 0)
        assert (each.lm_head.weight is each.get_input_embeddings().weight) == tie
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "model").tokenizer
    assert tokenizer.convert_tokens_to_ids("<|image|>") == old - extra_rows == loaded.config.image_token_id
    assert loaded.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_the_aligner_is_seeded(tmp_path):
    text, tower = write_language_model(tmp_path / "text"), write_tower(tmp_path / "tower", "siglip")
    models = [
        assemble(text, tower, "gated_mlp", tmp_path / f"{index}", seed=seed) for index, seed in enumerate((3, 3, 4))
    ]
    first, same, other = (model.model.multi_modal_projector.gate_proj.weight for model in models)
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert first.std().item() == pytest.approx(models[0].config.text_config.initializer_range, rel=0.1)


def test_errors_leave_nothing_behind(tmp_path, capsys):
    text, tower = write_language_model(tmp_path / "text"), write_tower(tmp_path / "tower", "siglip")
    small = write_language_model(tmp_path / "small")
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(small)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    cases = [
        (small, tower, "new", "goes up to id .* but the embedding has .* rows only"),
        (tower, tower, "new", "which is no text language model"),
        (text, text, "new", "Known towers: siglip_vision_model, clip_vision_model"),
        (text, str(tmp_path / "none"), "new", "could not load"),
        (text, tower, "full", "not empty"),
    ]
    for language_model, vision_tower, destination, message in cases:
        with pytest.raises((CheckpointError, FileExistsError), match=message):
            assemble(language_model, vision_tower, "mlp", tmp_path / destination)
    (tmp_path / "text" / "model.safetensors").rename(tmp_path / "text" / "pytorch_model.bin")
    with pytest.raises(SystemExit) as error:
        main(["--language_model", text, "--vision_tower", tower, "--aligner", "mlp", str(tmp_path / "new")])
    assert "pickled ones are not read" in str(error.value)
    path = tmp_path / "tower" / "model.safetensors"
    tensors = load_file(path)
    del tensors["vision_model.encoder.layers.0.mlp.fc1.bias"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 1 tensors of SiglipVisionModel.*fc1.bias"):
        assemble(write_language_model(tmp_path / "text"), tower, "mlp", tmp_path / "new")
    with path.open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(CheckpointError, match=r"AutoModel\w* could not load .*tower.*whole safetensors"):
        assemble(write_language_model(tmp_path / "text"), tower, "mlp", tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"text", "tower", "small", "full"}


def test_another_prompt(tmp_path):
    """A tokenizer without ChatML tokens needs a template."""
    text, tower = write_language_model(tmp_path / "text"), write_tower(tmp_path / "tower", "siglip")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        path = tmp_path / "text" / file
        path.write_text(path.read_text().replace("<|im_end|>", "</s>"))
    with pytest.raises(CheckpointError, match="--chat_template"):
        assemble(text, tower, "gated_mlp", tmp_path / "model")
    template = CHAT_TEMPLATE.replace("<|im_end|>", "</s>")
    assemble(text, tower, "gated_mlp", tmp_path / "model", chat_template=template)
    assert AutoProcessor.from_pretrained(tmp_path / "model").chat_template == template
