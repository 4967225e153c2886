import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tokenizers import Tokenizer
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from puma_trl.checkpoints import convert, originals
from puma_trl.checkpoints.command import main
from puma_trl.checkpoints.convert import convert_checkpoint
from puma_trl.checkpoints.originals import find_original
from puma_trl.errors import CheckpointError
from puma_trl.record.hub import push

from .original_forward import deepseek_logits, qwen_logits
from .original_models import (
    DEEPSEEK_IMAGE,
    QWEN_IMAGE,
    TINY_TOWERS,
    make_deepseek,
    make_qwen,
    write_checkpoint,
    write_tokenizer,
)


TIES = [(False, False), (True, False), (True, True)]
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


@pytest.fixture
def tiny_towers(monkeypatch):
    monkeypatch.setattr(originals, "TOWER_SIZES", TINY_TOWERS)


@pytest.fixture
def picture():
    colours = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((64, 48), Image.BICUBIC)


def convert_weights(folder, config, tensors):
    source = write_checkpoint(folder / "original", config, tensors)
    convert_checkpoint(str(source), str(folder / "native"), weights_only=True)
    return AutoModelForImageTextToText.from_pretrained(folder / "native")


def names_in(folder):
    files = [folder / "model.safetensors"] if (folder / "model.safetensors").exists() else folder.glob("model-*")
    return {name for file in files for name in safe_open(file, "pt").keys()}


def message(prompt, num_images):
    # the text first: the template puts images before it all the same
    return [{"role": "user", "content": [{"type": "text", "text": prompt}] + [{"type": "image"}] * num_images}]


# Weights


@pytest.mark.parametrize(("tied", "stored_head"), TIES)
@pytest.mark.parametrize("rope_theta", [None, 1e6])
@torch.no_grad()
def test_qwen_logits(tmp_path, tied, stored_head, rope_theta):
    config, tensors = make_qwen(tied=tied, stored_head=stored_head, rope_theta=rope_theta)
    model = convert_weights(tmp_path, config, tensors)
    assert model.config.tie_word_embeddings is tied
    assert model.config.text_config.rope_parameters["rope_theta"] == (rope_theta or 10000.0)

    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 290, (length,), generator=generator) for length in (9, 7, 20)]
    rows[0][3] = rows[1][2] = rows[1][5] = QWEN_IMAGE  # one image, two images, text alone
    pixels = torch.randn(3, 3, 56, 56, generator=generator)
    expected, mask = qwen_logits(config, tensors, rows, pixels)
    expanded = [
        torch.cat([token.repeat(model.config.image_seq_length if token == QWEN_IMAGE else 1) for token in row])
        for row in rows
    ]
    ids = torch.nn.utils.rnn.pad_sequence(expanded, batch_first=True)
    assert ids.shape == mask.shape
    logits = model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits
    assert_close(logits[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("tied", "stored_head"), TIES)
@torch.no_grad()
def test_deepseek_logits(tmp_path, tiny_towers, tied, stored_head):
    config, tensors = make_deepseek(tied=tied, stored_head=stored_head)
    model = convert_weights(tmp_path, config, tensors)
    model.config.image_token_id = DEEPSEEK_IMAGE
    assert model.config.tie_word_embeddings is tied

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 290, (2, 1170), generator=generator)
    ids[0, 5:581] = ids[0, 583:1159] = ids[1, 20:596] = DEEPSEEK_IMAGE
    mask = torch.ones_like(ids)
    mask[1, :11] = 0  # left padding, as in the original
    low, high = torch.randn(3, 3, 48, 48, generator=generator), torch.randn(3, 3, 64, 64, generator=generator)
    expected = deepseek_logits(tensors, ids, mask, low, high)
    logits = model(input_ids=ids, attention_mask=mask, pixel_values=low, high_res_pixel_values=high).logits
    assert_close(logits[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-4)


def test_tensors_known_as_unused_are_dropped(tmp_path, tiny_towers):
    config, tensors = make_deepseek()
    used = {
        name: tensor for name, tensor in tensors.items() if "_layer_norm." not in name and "attn_pool." not in name
    }
    assert len(used) < len(tensors)
    for name, given in (("used", used), ("all", tensors)):
        convert_weights(tmp_path / name, config, given)
    assert names_in(tmp_path / "used" / "native") == names_in(tmp_path / "all" / "native")


def test_sizes_of_the_released_deepseek():
    config, _ = make_deepseek()
    for tower, size in (("high_res_cfg", 1024), ("low_res_cfg", 384)):
        config["vision_config"]["params"][tower]["image_size"] = size
    config["language_config"] = {
        "max_position_embeddings": 16384,
        "model_type": "llama",
        "num_hidden_layers": 30,
        "vocab_size": 102400,
    }
    native = find_original(config).native_config(config)
    with torch.device("meta"):
        state_dict = AutoModelForImageTextToText.from_config(native).state_dict()
    assert len(state_dict) == 854
    assert sum(tensor.numel() for tensor in state_dict.values()) * 4 == pytest.approx(29.38e9, rel=2e-3)
    assert (native.text_config.bos_token_id, native.text_config.eos_token_id) == (100000, 100001)
    assert native.vision_config.hidden_act == native.high_res_vision_config.hidden_act == "gelu"


def test_a_tied_configuration_with_two_tensors_is_untied(tmp_path):
    config, tensors = make_qwen(tied=True, stored_head=True)
    tensors["language_model.lm_head.weight"] += 1
    with pytest.warns(UserWarning, match="two different tensors"):
        model = convert_weights(tmp_path, config, tensors)
    assert torch.equal(model.lm_head.weight, tensors["language_model.lm_head.weight"])
    assert torch.equal(model.get_input_embeddings().weight, tensors["language_model.model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda tensors: tensors.update({"aligner.extra.weight": torch.ones(2)}), "aligner.extra.weight"),
        (lambda tensors: tensors.update({"language_model.model.extra": torch.ones(2)}), "language_model.model.extra"),
        (lambda tensors: tensors.pop("aligner.up_proj.weight"), "multi_modal_projector.up_proj.weight"),
        (lambda tensors: tensors.pop("language_model.lm_head.weight"), "lm_head.weight"),
        (lambda tensors: tensors.update({"aligner.up_proj.weight": torch.ones(2, 3)}), r"up_proj.weight: \(2, 3\)"),
        (lambda tensors: tensors.clear(), "does not fill"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, change, complaint):
    config, tensors = make_qwen()
    change(tensors)
    with pytest.raises(CheckpointError, match=complaint):
        convert_weights(tmp_path, config, tensors)
    assert not (tmp_path / "native").exists()


# Checkpoints


@pytest.mark.parametrize(("tied", "stored_head"), TIES)
@pytest.mark.parametrize("num_shards", [1, 3])
@torch.no_grad()
def test_qwen_checkpoint(tmp_path, picture, tied, stored_head, num_shards):
    config, tensors = make_qwen(tied=tied, stored_head=stored_head)
    source = write_checkpoint(tmp_path / "original", config, tensors, num_shards)
    write_tokenizer(source, "qwen")
    main(["convert", str(source), str(tmp_path / "native")])

    assert ("lm_head.weight" in names_in(tmp_path / "native")) is not tied
    model, loading = AutoModelForImageTextToText.from_pretrained(tmp_path / "native", output_loading_info=True)
    assert not any(loading.values())
    processor = AutoProcessor.from_pretrained(tmp_path / "native", backend="pil")
    prompt = processor.apply_chat_template(message("What?", 1), add_generation_prompt=True, tokenize=False)
    assert prompt == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|image|>\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    )
    inputs = processor(images=[picture], text=[prompt], return_tensors="pt")
    original_ids = Tokenizer.from_file(str(source / "tokenizer.json")).encode(prompt).ids
    pixels = np.asarray(picture.resize((56, 56), Image.BICUBIC), dtype=np.float32) / 255
    pixels = torch.tensor((pixels - 0.5) / 0.5).permute(2, 0, 1)[None]
    assert_close(inputs["pixel_values"], pixels)
    expected, _ = qwen_logits(config, tensors, [torch.tensor(original_ids)], pixels)
    assert inputs["input_ids"].shape[1] == len(original_ids) - 1 + 15
    assert_close(model.eval()(**inputs).logits, expected, rtol=0, atol=1e-4)


def test_qwen_tokens_and_generation(tmp_path):
    source = write_checkpoint(tmp_path / "original", *make_qwen())
    write_tokenizer(source, "qwen")
    convert_checkpoint(str(source), str(tmp_path / "native"))
    processor = AutoProcessor.from_pretrained(tmp_path / "native")
    tokenizer = processor.tokenizer
    assert (processor.image_token, processor.image_token_id) == ("<|image|>", QWEN_IMAGE)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.model_max_length) == (
        "<|im_end|>",
        "<|endoftext|>",
        4096,
    )
    assert tokenizer.decode(tokenizer.encode("2<|im_end|>"), skip_special_tokens=True) == "2"
    two = processor.apply_chat_template(message("Q", 2), tokenize=False)
    assert two.endswith("<|im_start|>user\n<|image|>\n<|image|>\nQ<|im_end|>\n")
    generation = GenerationConfig.from_pretrained(tmp_path / "native")
    assert (generation.eos_token_id, generation.pad_token_id) == (QWEN_IMAGE - 1, QWEN_IMAGE - 3)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "native")
    text = processor.apply_chat_template(message("1 + 1", 0), add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=3).shape[1] <= inputs["input_ids"].shape[1] + 3
    # what a training run saves has the native names
    model.save_pretrained(tmp_path / "again")
    assert names_in(tmp_path / "again") == names_in(tmp_path / "native") == set(model.state_dict())


@pytest.mark.parametrize("num_shards", [1, 3])
@torch.no_grad()
def test_deepseek_checkpoint(tmp_path, tiny_towers, picture, num_shards):
    config, tensors = make_deepseek()
    source = write_checkpoint(tmp_path / "original", config, tensors, num_shards)
    write_tokenizer(source, "deepseek")
    main(["convert", str(source), str(tmp_path / "native")])

    model, loading = AutoModelForImageTextToText.from_pretrained(tmp_path / "native", output_loading_info=True)
    assert not any(loading.values()) and not model.config.tie_word_embeddings
    processor = AutoProcessor.from_pretrained(tmp_path / "native", backend="pil")
    prompt = processor.apply_chat_template(message("What?", 1), add_generation_prompt=True, tokenize=False)
    assert prompt == f"<｜begin▁of▁sentence｜>{SYSTEM}\n\nUser: <image_placeholder>What?\n\nAssistant:"
    inputs = processor(images=[picture], text=[prompt], return_tensors="pt")
    ids = Tokenizer.from_file(str(source / "tokenizer.json")).encode(prompt).ids
    where = ids.index(DEEPSEEK_IMAGE)
    assert inputs["input_ids"][0].tolist() == ids[:where] + 576 * [DEEPSEEK_IMAGE] + ids[where + 1 :]
    assert ids[0] == processor.tokenizer.bos_token_id

    square = Image.new("RGB", (64, 64), (122, 116, 104))
    square.paste(picture, (0, 8))
    high = torch.tensor(np.asarray(square)).permute(2, 0, 1)[None] / 255
    low = torch.nn.functional.interpolate(high, size=(48, 48), mode="bilinear", antialias=True)
    params = config["vision_config"]["params"]["high_res_cfg"]
    mean, std = (torch.tensor(params[name])[:, None, None] for name in ("pixel_mean", "pixel_std"))
    assert_close(inputs["high_res_pixel_values"], (high - mean) / std, rtol=0, atol=1e-5)
    assert_close(inputs["pixel_values"], (low - 0.5) / 0.5, rtol=0, atol=0.008)
    expected = deepseek_logits(
        tensors,
        inputs["input_ids"],
        inputs["attention_mask"],
        inputs["pixel_values"],
        inputs["high_res_pixel_values"],
    )
    assert_close(model.eval()(**inputs).logits, expected, rtol=0, atol=1e-4)


def test_deepseek_tokens_and_generation(tmp_path, tiny_towers):
    source = write_checkpoint(tmp_path / "original", *make_deepseek())
    write_tokenizer(source, "deepseek")
    convert_checkpoint(str(source), str(tmp_path / "native"))
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "native").tokenizer
    assert tokenizer.pad_token == tokenizer.eos_token == "<｜end▁of▁sentence｜>"
    assert tokenizer("2")["input_ids"] == tokenizer("2", add_special_tokens=False)["input_ids"]
    config = AutoConfig.from_pretrained(tmp_path / "native")
    assert config.image_token_id == DEEPSEEK_IMAGE
    generation = GenerationConfig.from_pretrained(tmp_path / "native")
    assert (generation.bos_token_id, generation.eos_token_id) == (DEEPSEEK_IMAGE - 2, DEEPSEEK_IMAGE - 1)


def test_weights_only(tmp_path):
    source = write_checkpoint(tmp_path / "original", *make_qwen())
    main(["convert", str(source), str(tmp_path / "native"), "--weights_only"])
    assert not AutoModelForImageTextToText.from_pretrained(tmp_path / "native", output_loading_info=True)[1][
        "missing_keys"
    ]
    assert not list((tmp_path / "native").glob("*token*"))


def test_the_widest_type_is_kept(tmp_path):
    config, tensors = make_qwen()
    tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    assert convert_weights(tmp_path / "half", config, tensors).dtype == torch.bfloat16
    tensors["aligner.up_proj.weight"] = tensors["aligner.up_proj.weight"].float()
    model = convert_weights(tmp_path, config, tensors)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_pickles_only_when_allowed(tmp_path):
    config, tensors = make_qwen()
    source = write_checkpoint(tmp_path / "original", config, tensors)
    (source / "model.safetensors").unlink()
    torch.save(tensors, source / "pytorch_model.bin")
    arguments = [str(source), str(tmp_path / "native"), "--weights_only"]
    with pytest.raises(CheckpointError, match="--allow_pickle"):
        main(["convert", *arguments])
    assert sorted(tmp_path.iterdir()) == [source]
    main(["convert", *arguments, "--allow_pickle"])
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "native")
    assert torch.equal(model.lm_head.weight, tensors["language_model.lm_head.weight"])


# Bad input


def truncate(source):
    file = source / "model-00002-of-00003.safetensors"
    os.truncate(file, file.stat().st_size - 100)


def set_config(**values):
    def change(source):
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(config | values))

    return change


def rewrite_tokenizer(**kwargs):
    def change(source):
        write_tokenizer(source, **kwargs)

    return change


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (truncate, "model-00002-of-00003.safetensors.*truncated"),
        (lambda source: (source / "model-00002-of-00003.safetensors").unlink(), "model-00002-of-00003.safetensors"),
        (lambda source: (source / "model-00002-of-00003.safetensors").write_bytes(b""), "model-00002"),
        (lambda source: (source / "model.safetensors.index.json").write_text("{"), "index.json is not valid JSON"),
        (lambda source: (source / "model.safetensors.index.json").write_text("{}"), "no `weight_map`"),
        (lambda source: (source / "model.safetensors.index.json").unlink(), "has no weights"),
        (lambda source: (source / "config.json").unlink(), "config.json is missing"),
        (lambda source: (source / "config.json").write_text("[]"), "not a JSON object"),
        (set_config(model_type="llama"), "'llama' is unknown"),
        (set_config(model_type="llava"), "native already"),
        (set_config(vision_config=None), "no section `vision_config`"),
        (set_config(image_token_index=7), "as id 300, but config.json says 7"),
        (lambda source: (source / "tokenizer.json").unlink(), "no tokenizer.json.*--weights_only"),
        (rewrite_tokenizer(family="qwen", image_token=False), r"no image token '<\|image\|>'"),
    ],
)
def test_bad_checkpoints(tmp_path, damage, complaint):
    source = write_checkpoint(tmp_path / "original", *make_qwen(), num_shards=3)
    write_tokenizer(source, "qwen")
    damage(source)
    with pytest.raises(CheckpointError, match=complaint):
        convert_checkpoint(str(source), str(tmp_path / "native"))
    assert sorted(tmp_path.iterdir()) == [source]


def test_index_and_files_that_disagree(tmp_path):
    config, tensors = make_qwen()
    source = write_checkpoint(tmp_path / "original", config, tensors, num_shards=2)
    index = json.loads((source / "model.safetensors.index.json").read_text())
    index["weight_map"]["aligner.other"] = "model-00001-of-00002.safetensors"
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="aligner.other"):
        convert_checkpoint(str(source), str(tmp_path / "native"), weights_only=True)


@pytest.mark.parametrize(
    ("tower", "values", "complaint"),
    [
        ("high_res_cfg", {"model_name": "sam_vit_h"}, "'sam_vit_h' is unknown"),
        ("low_res_cfg", {"select_layer": -2}, "select_layer: -2"),
    ],
)
def test_unknown_towers(tmp_path, tower, values, complaint):
    config, tensors = make_deepseek()
    config["vision_config"]["params"][tower] |= values
    with pytest.raises(CheckpointError, match=complaint):
        convert_weights(tmp_path, config, tensors)


def test_other_multi_modality_models(tmp_path):
    config, tensors = make_deepseek()
    config["vision_config"] = {"cls": "CLIPVisionTower", "params": {"model_name": "siglip_large_patch16_384"}}
    with pytest.raises(CheckpointError, match="CLIPVisionTower"):
        convert_weights(tmp_path, config, tensors)


def test_nothing_remains_of_a_failed_write(tmp_path, monkeypatch):
    source = write_checkpoint(tmp_path / "original", *make_qwen(), num_shards=2)

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(convert, "make_generation_config", fail)
    with pytest.raises(OSError, match="no space left"):
        convert_checkpoint(str(source), str(tmp_path / "native"), weights_only=True)
    assert sorted(tmp_path.iterdir()) == [source]


def test_destination_in_use(tmp_path):
    source = write_checkpoint(tmp_path / "original", *make_qwen())
    with pytest.raises(FileExistsError, match="not empty"):
        main(["convert", str(source), str(source), "--weights_only"])


def test_no_such_source(tmp_path):
    with pytest.raises(CheckpointError, match="is no folder"):
        main(["convert", str(tmp_path / "nowhere"), str(tmp_path / "native")])


def test_from_the_hub_and_to_it(tmp_path, server):
    """In a process of its own, where the client reads the server's address as it starts."""
    source = write_checkpoint(tmp_path / "original", *make_qwen())
    (source / "modeling_own.py").write_text("raise SystemExit")
    server.repositories["me/original"] = {path.name: path.read_bytes() for path in source.iterdir()}
    server.failures = {"preupload": 403}
    native = tmp_path / "native"
    command = [sys.executable, "-m", "puma_trl.convert", "me/original", str(native), "--weights_only", "--push_to_hub"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [*command, "--hub_model_id", "me/native"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and "could not be pushed" in done.stderr.splitlines()[-1]
    assert done.stderr.endswith(f"This pushes it: puma-trl push {native} --repo_id me/native\n")
    assert not list((tmp_path / "home").rglob("*.py"))
    server.failures = {}
    push(native, "me/native")
    assert server.repositories["me/native"]["model.safetensors"] == (native / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_peak_memory(tmp_path):
    """No more than a shard is held at a time."""
    config, tensors = make_qwen(intermediate_size=150_000)
    source = write_checkpoint(tmp_path / "original", config, tensors, num_shards=6)
    sizes = [file.stat().st_size for file in source.glob("*.safetensors")]
    # not `ru_maxrss`, which a process inherits from the one that started it
    code = (
        "import pathlib, sys; from puma_trl.checkpoints import command, convert; "
        "status = pathlib.Path('/proc/self/status'); "
        "print(status.read_text()); command.main(sys.argv[1:]); print(status.read_text())"
    )
    command = [sys.executable, "-c", code, "convert", str(source), str(tmp_path / "native"), "--weights_only"]
    status = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before, after = (1024 * int(value) for value in re.findall(r"VmHWM:\s+(\d+) kB", status))
    # the second comparison makes sure that reading everything at once would fail
    assert after - before < max(sizes) + 2**26 < sum(sizes), f"{after - before:,} bytes for shards of {sizes}"


def test_tower_sizes_name_both_towers():
    assert originals.TOWER_SIZES.keys() == TINY_TOWERS.keys()
    for name, sizes in originals.TOWER_SIZES.items():
        assert sizes.keys() == TINY_TOWERS[name].keys()
