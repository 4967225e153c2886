"""Rows one behind the other give what padded rows give: loss, metrics, gradients, weights, evaluation."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import AttentionInterface, AutoModelForImageTextToText, PreTrainedConfig

from puma_trl.config import PumaKLConfig
from puma_trl.data.collator import DataCollatorForPumaPairs
from puma_trl.data.padding_free import OnHost
from puma_trl.models.attention import varlen_attention
from puma_trl.models.families import get_family
from puma_trl.train.sampling import mask_repeated_rows
from puma_trl.train.trainer import PumaKLTrainer

from ..models.family_models import MINI, OTHERS, build_family


FAMILIES = [name for name in (*MINI, *OTHERS) if name != "gemma3"]
# Of these transformers looks at pictures on the device: at blank ones, or where they are between tokens
WAITING = ("idefics3", "smolvlm", "qwen3_vl")
LORA = LoraConfig(r=4, lora_dropout=0.0, target_modules=r".*(fc1|fc2|q_proj|v_proj)")
ATTENTION = {True: "varlen", False: "sdpa"}


@pytest.fixture(scope="module")
def data(pairs):
    """Sides of none, one and two pictures; the first batch has none on the text-rich side, the last has one row."""
    return pairs(
        7, text_rich_images=lambda index: index >= 3 and index % 2, vision_rich_images=lambda index: index % 3
    )


@pytest.fixture
def make(tmp_path, data):
    """Returns a function that makes a trainer for three rows at a time."""

    def make(padding_free, name="qwen2_vl", peft_config=None, **kwargs):
        processor, model = build_family(name)
        model.set_attn_implementation(ATTENTION[padding_free])
        arguments = {
            "bf16": False,
            "gradient_checkpointing": False,
            "lambda_kl": 0.5,
            "learning_rate": 0.1,
            "logging_steps": 1,
            "max_steps": 3,
            "optim": "sgd",
            "output_dir": str(tmp_path / f"{padding_free}"),
            "padding_free": padding_free,
            "per_device_train_batch_size": 3,
            "per_device_eval_batch_size": 3,
            "report_to": "none",
            "save_strategy": "no",
            "trainable_parts": None if peft_config else ["all"],
            "use_cpu": True,
        }
        args = PumaKLConfig(**arguments | kwargs)
        return PumaKLTrainer(
            model, args, train_dataset=data, eval_dataset=data, processing_class=processor, peft_config=peft_config
        )

    return make


def gradients(trainer):
    """Returns loss and gradients of the first batch."""
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(20.0))
    loss.backward()
    named = {name: each.grad for name, each in trainer.model.named_parameters() if each.requires_grad}
    trainer.model.zero_grad()
    return loss.detach(), {name: each for name, each in named.items() if each is not None}


def compare(make, **kwargs):
    torch.manual_seed(0)  # adapters begin at random
    padded = make(False, **kwargs)
    torch.manual_seed(0)
    free = make(True, **kwargs)
    (loss, expected), (free_loss, found) = gradients(padded), gradients(free)
    assert_close(free_loss, loss, rtol=0, atol=1e-5)
    assert expected and found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value, rtol=0, atol=1e-5, msg=name)
    for trainer in (padded, free):
        trainer.train()
    weights = dict(free.model.named_parameters())
    for name, value in padded.model.named_parameters():
        assert_close(weights[name], value, rtol=0, atol=1e-6, msg=name)
    names = {"loss", "kl", "ce", "teacher_ce", "entropy", "mean_token_accuracy", "grad_norm", "num_tokens"}
    for logs, free_logs in zip(padded.state.log_history, free.state.log_history, strict=True):
        shared = names & logs.keys()
        assert {name: free_logs[name] for name in shared} == pytest.approx({name: logs[name] for name in shared}, 1e-5)
    assert free.state.log_history[0]["padding_share"] == 0 < padded.state.log_history[0]["padding_share"]
    metrics, free_metrics = padded.evaluate(), free.evaluate()
    assert free_metrics["eval_loss"] == pytest.approx(metrics["eval_loss"], abs=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_free(make, name):
    compare(make, name=name)


@pytest.mark.parametrize("name", ["qwen2_vl", "llava"])
def test_stages_1_and_3(make, name):
    compare(make, name=name, use_kl=False)


@pytest.mark.parametrize("teacher", ["live", "frozen", "ema"])
@pytest.mark.parametrize("peft_config", [None, LORA], ids=["whole", "lora"])
def test_teachers_and_adapters_with_checkpointing(make, teacher, peft_config):
    compare(make, teacher=teacher, peft_config=peft_config, gradient_checkpointing=True)


@pytest.mark.parametrize("name", ["qwen2_vl", "llava"])
def test_flash_attention_is_told_the_rows(make, name, monkeypatch):
    """What stands in for its package sees no mask, and where rows and pictures begin."""
    calls = []

    def flash(module, query, key, value, attention_mask, **kwargs):
        calls.append(kwargs.get("cu_seq_lens_k"))
        assert attention_mask is None
        return varlen_attention(module, query, key, value, None, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", flash)
    varlen, flashed = make(True, name=name), make(True, name=name)
    for module in flashed.model.modules():
        if isinstance(config := getattr(module, "config", None), PreTrainedConfig):
            config._attn_implementation_internal = "flash_attention_2"
    (loss, expected), (flash_loss, found) = gradients(varlen), gradients(flashed)
    assert_close(flash_loss, loss)
    for key, value in expected.items():
        assert_close(found[key], value, msg=key)
    rows = [call is not None for call in calls]
    assert all(rows) if name == "qwen2_vl" else any(rows)


def test_resume_is_exact(make, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1}
    whole, rest = make(True, **options), make(True, **options | {"output_dir": str(tmp_path / "rest")})
    whole.train()
    rest.train(resume_from_checkpoint=str(tmp_path / "True" / "checkpoint-1"))
    for name, value in whole.model.named_parameters():
        assert torch.equal(rest.model.get_parameter(name), value), name


def test_saved_models_are_plain(make, tmp_path):
    """Nothing that is saved names the attention, which transformers alone does not know."""
    trainer = make(True, max_steps=1)
    trainer.train()
    trainer.save_model()
    texts = [path.read_text() for path in (tmp_path / "True").glob("*.json")]
    assert texts and not any("varlen" in text for text in texts)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "True")
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("process", [0, 1])
def test_repeated_rows_do_not_count(data, process):
    """Of 4 rows for two processes with 3 each, the second process has one real row."""
    processor, model = build_family("qwen2_vl")
    loader = SimpleNamespace(dataset=range(4))
    state = SimpleNamespace(end_of_dataloader=True, active_dataloader=loader)
    accelerator = SimpleNamespace(gradient_state=state, num_processes=2, process_index=process)
    options = {"processor": processor, "family": get_family(model.config), "config": model.config}
    rows, batches = list(data)[:3], []
    for padding_free in (False, True):
        batch = DataCollatorForPumaPairs(**options, padding_free=padding_free)(rows)
        mask_repeated_rows(batch, accelerator, drops_last=False, padding_free=False)
        batches.append(batch)
    padded, free = batches
    for side in ("", "teacher_"):
        labels = free[f"{side}labels"]
        expected = padded[f"{side}labels"][padded[f"{side}labels"] != -100]
        assert torch.equal(labels[labels != -100], expected)
        assert torch.equal(labels[0, free[f"{side}answer_positions"] + 1], expected)
    kept = padded["labels"].ne(-100).any(1).tolist()
    assert kept == [True, process == 0, process == 0]


class OnGpu(TorchDispatchMode):
    """Runs what is on a GPU without one, under [`FakeTensorMode`], where no value can be read; the rest as ever."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        leaves = tree_leaves((args, kwargs or {}))
        if any(isinstance(each, FakeTensor) or getattr(each, "type", None) == "cuda" for each in leaves):
            return func(*args, **(kwargs or {}))
        with unset_fake_temporarily():
            return func(*args, **(kwargs or {}))


def compute_loss_on_gpu(trainer):
    """Runs `compute_loss` on a GPU that is not there; every look from the CPU at a value on it is an error."""
    loader = iter(trainer.get_train_dataloader())
    trainer.compute_loss(trainer.model, next(loader), num_items_in_batch=torch.ones(()))  # as any first pass
    batch, gpu = next(loader), torch.device("cuda")
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def move(value):
        value = value.bfloat16() if value.is_floating_point() else value
        return mode.from_tensor(value).to(gpu)

    with mode, OnGpu():
        for module in trainer.model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, value in tensors.items():
                    if value is not None:
                        tensors[name] = type(value)(move(value.detach()))
        trainer._step_metrics = type(trainer._step_metrics)(gpu)
        batch = {name: value if isinstance(value, OnHost) else tree_map_only(torch.Tensor, move, value)
                 for name, value in batch.items()}  # fmt: skip
        return trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.ones((), device=gpu))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in WAITING])
def test_nothing_waits_for_the_device(make, name):
    assert compute_loss_on_gpu(make(True, name=name)).is_cuda


def test_padded_batches_wait_for_the_device(make):
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        compute_loss_on_gpu(make(False))
