"""Adapters merged into their base: the same logits, complete folders, and nothing where something is wrong."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from puma_trl import run
from puma_trl.checkpoints.command import main
from puma_trl.checkpoints.merge import merge_adapter
from puma_trl.errors import MergeError
from puma_trl.mini import build_model, build_processor


VARIANTS = {
    "lora": {},
    "whole": {"lora_modules_to_save": "aligner", "use_rslora": True},
    "dora": {"lora_modules_to_save": "aligner", "use_dora": True},
    "qlora": {"lora_modules_to_save": "aligner", "load_in_4bit": True, "use_bnb_nested_quant": True},
    "head": {"lora_modules_to_save": "lm_head"},
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, pairs):
    folder, processor = tmp_path_factory.mktemp("merge"), build_processor("qwen2_vl")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "vision_embed_dim": 32, "vision_depth": 2}
    for name, tie in (("base", False), ("tied", True)):
        model = build_model("qwen2_vl", processor, tie_word_embeddings=tie, **sizes)
        model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id, max_new_tokens=7)
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    rows = [
        {name: value for name, value in row.items() if name != "row_id"}
        | {name: [image["path"] for image in row[name]] for name in ("image_url", "image_url_2")}
        for row in pairs(4)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def train(workspace):
    """Returns a function that trains adapters with the run script, once for each variant."""

    def train(variant, base="base"):
        out = workspace / f"{variant}-{base}"
        if not out.exists():
            flags = VARIANTS[variant] | {
                "model_name_or_path": workspace / base,
                "dataset_name": workspace / "pairs.jsonl",
                "output_dir": out,
                "bf16": False,
                "dataset_num_proc": 1,
                "dtype": "float32",
                "gradient_checkpointing": False,
                "learning_rate": 1e-2,
                "lora_r": 4,
                "max_steps": 3,
                "report_to": "none",
                "save_strategy": "no",
                "use_cpu": True,
                "use_peft": True,
            }
            run.main([str(piece) for key, value in flags.items() for piece in (f"--{key}", value)])
        return out

    return train


@pytest.fixture
def batch(processor, pairs):
    row = pairs(1)[0]
    content = [{"type": "image"}, {"type": "text", "text": row["instruction_2"]}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(text=[text], images=[Image.open(row["image_url_2"][0]["path"])], return_tensors="pt")


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize(
    ("variant", "base"), [*((variant, "base") for variant in VARIANTS), ("lora", "tied"), ("head", "tied")]
)
def test_logits_equal_those_of_the_adapters(train, workspace, tmp_path, batch, variant, base):
    adapter = train(variant, base)
    main(["merge", str(adapter), str(tmp_path / "merged")])
    merged, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values()), info
    whole = AutoModelForImageTextToText.from_pretrained(workspace / base)
    before = logits(whole, batch)
    expected = logits(PeftModel.from_pretrained(whole, adapter), batch)
    assert (expected - before).abs().max() > 1e-2  # the adapters do something
    assert_close(logits(merged, batch), expected, rtol=0, atol=1e-4)
    names = load_file(workspace / base / "model.safetensors").keys()
    extra = {"lm_head.weight"} if (variant, base) == ("head", "tied") else set()
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == names | extra


def test_the_folder_is_complete(train, workspace, tmp_path):
    adapter = train("whole")
    merge_adapter(str(adapter), tmp_path / "merged")
    merged = tmp_path / "merged"
    assert AutoProcessor.from_pretrained(merged).chat_template == AutoProcessor.from_pretrained(adapter).chat_template
    assert GenerationConfig.from_pretrained(merged).max_new_tokens == 7
    assert not (merged / "adapter_config.json").exists()
    assert (merged / "recipe.yaml").read_bytes() == (adapter / "recipe.yaml").read_bytes()
    assert json.loads((merged / "provenance.json").read_text())["merged_adapters"]["r"] == 4
    card = (merged / "README.md").read_text()
    assert "library_name: transformers" in card and "These are adapters" not in card and "by adapters, merged" in card
    assert f'model="{merged}"' in card and f"# {merged.name}\n" in card  # loads before a push
    assert merged.stat().st_mode & 0o777 == 0o755


def test_shards(train, workspace, tmp_path, batch):
    adapter = train("lora")
    model = merge_adapter(str(adapter), tmp_path / "merged", max_shard_size="200KB")
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 1
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(loaded, batch), logits(model, batch))


def test_the_dtype_of_the_base_is_kept(train, workspace, tmp_path):
    adapter = train("qlora")
    copy = tmp_path / "adapter"
    shutil.copytree(adapter, copy)
    half = tmp_path / "half"
    shutil.copytree(workspace / "base", half)
    AutoModelForImageTextToText.from_pretrained(half, dtype="bfloat16").save_pretrained(half)
    edit(copy / "adapter_config.json", base_model_name_or_path=str(half))
    merge_adapter(str(copy), tmp_path / "merged")
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def lose_a_tensor(adapter):
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors.pop(next(iter(tensors)))
    save_file(tensors, adapter / "adapter_model.safetensors")


def spoil(adapter):
    tensors = load_file(adapter / "adapter_model.safetensors")
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, adapter / "adapter_model.safetensors")


def cut(adapter):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda adapter: (adapter / "adapter_config.json").unlink(), "holds no adapters"),
        (
            lambda adapter: edit(adapter / "adapter_config.json", base_model_name_or_path="no/where/base"),
            "no/where/base",
        ),
        (lose_a_tensor, "do not have the same 1 tensors"),
        (spoil, "not finite"),
        (cut, "damaged"),
        (lambda adapter: edit(adapter / "adapter_config.json", r=8), "do not fit"),
    ],
    ids=["no-config", "no-base", "lost-tensor", "nan", "cut", "other-rank"],
)
def test_nothing_is_written_on_failure(train, tmp_path, damage, message):
    adapter = tmp_path / "adapter"
    shutil.copytree(train("lora"), adapter)
    damage(adapter)
    with pytest.raises(MergeError, match=message):
        merge_adapter(str(adapter), tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_write_that_fails_leaves_nothing(train, tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    adapter = train("lora")
    monkeypatch.setattr(type(AutoProcessor.from_pretrained(adapter)), "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        merge_adapter(str(adapter), tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_a_quantised_base_is_refused(train, workspace, tmp_path):
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    shutil.copytree(train("lora"), adapter)
    shutil.copytree(workspace / "base", base)
    edit(base / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(base))
    with pytest.raises(MergeError, match="stored quantised"):
        main(["merge", str(adapter), str(tmp_path / "merged")])


OWN_CODE = """
from transformers import Qwen2Config, Qwen2ForCausalLM

class OwnConfig(Qwen2Config):
    model_type = "own_model"

class OwnModel(Qwen2ForCausalLM):
    config_class = OwnConfig
"""


def test_a_base_with_code_of_its_own(processor, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Qwen2Config(vocab_size=len(processor.tokenizer), num_hidden_layers=1, **sizes)
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(base)
    processor.tokenizer.save_pretrained(base)
    edit(base / "tokenizer_config.json", processor_class=None)  # set by tests that saved the whole processor
    edit(
        base / "config.json",
        model_type="own_model",
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    )
    (base / "own.py").write_text(OWN_CODE)
    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    tuned = get_peft_model(model, lora).eval()
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    tuned.save_pretrained(adapter)

    with pytest.raises(MergeError, match="trust_remote_code"):
        main(["merge", str(adapter), str(tmp_path / "merged")])
    main(["merge", str(adapter), str(tmp_path / "merged"), "--trust_remote_code"])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", trust_remote_code=True).eval()
    assert type(merged).__name__ == "OwnModel"
    tokens = {"input_ids": torch.arange(8)[None]}
    assert_close(logits(merged, tokens), logits(tuned, tokens), atol=1e-4, rtol=0)


def test_a_folder_in_use_is_left_alone(train, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        main(["merge", str(train("lora")), str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
