"""The mini models: real processors and models, saved and loaded by the automatic classes, and their data."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from puma_trl.mini import (
    KINDS,
    MODEL_CLASSES,
    SPECIAL_TOKENS,
    build_model,
    build_processor,
    build_tokenizer,
    write_data,
)
from puma_trl.models.families import get_family


SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "vision_embed_dim": 32, "vision_depth": 2}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  two  spaces ",
        "x = 12.5\n\n\t- 3\r\n",
        "12345",
        "ångström e\u0301 \u00a0",
        "角度是 47°，√2 ≤ π",
        "🎉👩‍👩‍👧",
        "\x00\x7f",
        "<|im_end|>a",
    ],
)
def test_tokenizer_round_trip(text):
    tokenizer = build_tokenizer()
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_every_digit_is_a_token_and_words_are_whole():
    tokenizer = build_tokenizer()
    pieces = [tokenizer.decode([token]) for token in tokenizer("the triangle is 180 - 47 = 133.")["input_ids"]]
    assert pieces == ["the ", "triangle ", "is ", "1", "8", "0", " - ", "4", "7", " = ", "1", "3", "3", "."]


@pytest.mark.parametrize("family_name", MODEL_CLASSES)
def test_save_and_load(family_name, tmp_path):
    processor = build_processor(family_name)
    model = build_model(family_name, processor, **SIZES)
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    loaded_processor = AutoProcessor.from_pretrained(tmp_path)
    loaded_model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded_processor) is type(processor) and type(loaded_model) is type(model)
    assert loaded_model.config.model_type == family_name
    tokenizer = loaded_processor.tokenizer
    special_tokens = SPECIAL_TOKENS[family_name]
    assert (tokenizer.eos_token, tokenizer.pad_token) == (special_tokens["eos_token"], special_tokens["pad_token"])
    assert loaded_model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert loaded_model.generation_config.pad_token_id == tokenizer.pad_token_id

    text = f"{get_family(model.config).image_text or processor.image_token}What is 12 + 30?"
    picture = Image.linear_gradient("L").resize((84, 56)).convert("RGB")
    batch = processor(images=[picture], text=[text], return_tensors="pt")
    loaded_batch = loaded_processor(images=[picture], text=[text], return_tensors="pt")
    assert batch.keys() == loaded_batch.keys()
    assert all(torch.equal(batch[name], loaded_batch[name]) for name in batch)
    num_image_tokens = {"qwen2_vl": 3 * 2, "qwen2_5_vl": 3 * 2, "math_puma_qwen2": 35, "deepseek_vl_hybrid": 9}
    assert (batch["input_ids"] == model.config.image_token_id).sum() == num_image_tokens[family_name]
    with torch.no_grad():
        logits, loaded_logits = model.eval()(**batch).logits, loaded_model.eval()(**batch).logits
        batch["pixel_values"] = -batch["pixel_values"]
        other_picture = model(**batch).logits
    assert torch.equal(logits, loaded_logits)
    assert (logits[0, -1] - other_picture[0, -1]).abs().max() > 1e-5  # the picture reaches the last token
    assert logits.shape[-1] == len(tokenizer)


def test_seed_decides_the_weights_and_nothing_else():
    processor = build_processor()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, same, other = (build_model("qwen2_vl", processor, seed=seed, **SIZES).state_dict() for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.parametrize("family_name", MODEL_CLASSES)
def test_tied_embeddings(family_name):
    model = build_model(family_name, build_processor(family_name), tie_word_embeddings=True, **SIZES)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


@pytest.mark.parametrize("family_name", MODEL_CLASSES)
def test_every_part_has_parameters(family_name):
    model = build_model(family_name, build_processor(family_name), **SIZES)
    parts = get_family(model.config).parts
    names = [name for name, _ in model.named_parameters()]
    for part, prefixes in parts.items():
        assert any(name.startswith(prefixes) for name in names), part


def test_chat_template_puts_pictures_first():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Which angle?"}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "47"}]},
        {"role": "user", "content": "Why?"},
    ]
    text = build_processor().apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Which angle?<|im_end|>\n"
        "<|im_start|>assistant\n47<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("family_name", "sizes", "match"),
    [("llava", {}, "no mini model of the family 'llava'"), ("qwen2_vl", {"hidden_size": 40}, "multiple of 32")],
)
def test_bad_arguments(family_name, sizes, match):
    with pytest.raises(ValueError, match=match):
        build_model(family_name, build_processor(), **sizes)


def _rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_data_of_the_stages(tmp_path):
    write_data(tmp_path, num_rows=60, num_heldout=12, seed=3, num_proc=1)
    stage1, stage2, stage3, heldout = (
        _rows(tmp_path / f"{name}.jsonl") for name in ("stage1", "stage2", "stage3", "heldout")
    )
    assert [len(rows) for rows in (stage1, stage2, stage3, heldout)] == [60, 60, 60, 12]
    assert all(row["image_url"] == "" and "image_url_2" not in row for row in stage1)
    assert all(row["image_url"] == "" and row["image_url_2"] for row in stage2 + heldout)
    assert all("image_url_2" not in row for row in stage3)
    drawn = [row for row in stage3 if row["image_url"]]
    assert len(drawn) == 48
    assert {row["kind"] for row in stage3 if not row["image_url"]} == {row["kind"] for row in drawn} == set(KINDS)
    assert not any(character.isdigit() for row in drawn for character in row["instruction"])
    for path in [row["image_url_2"] for row in stage2 + heldout] + [row["image_url"] for row in drawn]:
        with Image.open(tmp_path / path) as picture:
            assert picture.size == (84, 84)
    seen = {row["instruction"] for row in stage1 + stage2 + [row for row in stage3 if not row["image_url"]]}
    assert not seen & {row["instruction"] for row in heldout}


@pytest.mark.slow
def test_command_line(tmp_path):
    command = [sys.executable, "-m", "puma_trl.mini", "--output_dir", str(tmp_path), "--n", "12", "--heldout", "6"]
    subprocess.run(command, check=True)
    assert AutoProcessor.from_pretrained(tmp_path / "model").chat_template
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode != 0 and "stage1.jsonl exists" in again.stderr
