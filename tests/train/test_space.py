"""How much room checkpoints take, by what really is written, and when that is too little."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig

from puma_trl.config import PumaKLConfig
from puma_trl.errors import ConfigError
from puma_trl.train import space
from puma_trl.train.space import count_kept, estimate_space, require_space, word_bytes


SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}


@pytest.mark.parametrize(
    ("flags", "peft_config"),
    [
        ({"optim": "sgd"}, None),
        ({"optim": "adamw_torch"}, None),
        ({"optim": "adamw_torch", "teacher": "ema"}, None),
        ({"optim": "adamw_torch"}, LoraConfig(r=64, target_modules="all-linear")),
        ({"optim": "adamw_torch", "save_only_model": True}, None),
        ({"optim": "rmsprop"}, None),
    ],
    ids=["sgd", "adam", "ema", "adapters", "model-only", "rmsprop"],
)
def test_estimate_is_what_is_written(train, tiny_model, pairs, tmp_path, monkeypatch, flags, peft_config):
    monkeypatch.setattr(space, "REST", 0)
    model = tiny_model(hidden_size=128)
    trainer = train(model, pairs(2), run=False, peft_config=peft_config, **SAVING | flags)
    checkpoint, saved = estimate_space(trainer)
    trainer.train()
    folder = tmp_path / "out" / "checkpoint-1"
    files = [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".pt")]
    assert sum(path.stat().st_size for path in files) == pytest.approx(checkpoint, rel=0.05)
    weights = list(folder.glob("*.safetensors"))
    assert sum(path.stat().st_size for path in weights) == pytest.approx(saved, rel=0.05)


@pytest.mark.parametrize(
    ("engine", "dtype", "optim", "checkpoint"),
    [  # bytes per number that trains: weights as often as they are saved, copies, states
        (None, torch.float32, "adamw_torch", 4 + 8),
        (None, torch.bfloat16, "adamw_torch", 2 + 4),
        (None, torch.float32, "adamw_8bit", 4 + 2),
        (None, torch.float32, "lion_32bit", 4 + 4),
        ("deepspeed", torch.bfloat16, "adamw_torch", 2 * 2 + 4 + 8),
        ("deepspeed", torch.float32, "adamw_torch", 2 * 4 + 8),
        ("fsdp", torch.bfloat16, "adamw_torch", 2 * 4 + 8),
    ],
)
def test_engines(engine, dtype, optim, checkpoint):
    args = SimpleNamespace(optim=optim, save_only_model=False, teacher="live", bf16=True, fp16=False)
    trainer = SimpleNamespace(model=torch.nn.Linear(100, 100, bias=False, dtype=dtype), args=args)
    trainer.is_deepspeed_enabled, trainer.is_fsdp_enabled = engine == "deepspeed", engine == "fsdp"
    assert estimate_space(trainer)[0] == checkpoint * 10_000 + space.REST


@pytest.mark.parametrize(
    ("flags", "count"),
    [
        ({"save_strategy": "no"}, 0),
        ({"save_steps": 10}, 10),
        ({"save_steps": 30}, 4),
        ({"save_steps": 0.25}, 4),
        ({"save_steps": 1000}, 1),
        ({"save_strategy": "epoch", "num_train_epochs": 3}, 3),
        ({"save_steps": 10, "save_total_limit": 2}, 3),
        ({"save_steps": 60, "save_total_limit": 2}, 2),
        ({"save_steps": 10, "save_total_limit": 1, "load_best_model_at_end": True, "eval_strategy": "steps"}, 3),
    ],
    ids=str,
)
def test_checkpoints_that_are_there_at_once(tmp_path, flags, count):
    flags = {"bf16": False, "use_cpu": True, "report_to": "none", "save_strategy": "steps"} | flags
    args = PumaKLConfig(str(tmp_path), **flags)
    assert count_kept(args, 100) == count


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """A run whose checkpoints take 10 GB, and whose model takes 2 GB."""
    monkeypatch.setattr(space, "estimate_space", lambda _: (10 * 10**9, 2 * 10**9))
    args = SimpleNamespace(save_strategy="steps", save_steps=10, save_total_limit=2, load_best_model_at_end=False)
    args.output_dir, args.num_train_epochs = str(tmp_path / "out"), 1
    return SimpleNamespace(args=args)


def require(trainer, monkeypatch, gigabytes):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=gigabytes * 10**9))
    return require_space(trainer, 100)


def test_one_more_than_the_limit_is_needed(trainer, monkeypatch, tmp_path):
    assert require(trainer, monkeypatch, 33) is None
    with pytest.raises(ConfigError, match=r"has 31.0 GB left, but .* about 32.0 GB: 3 × 10.0 GB .* and 2.0 GB for"):
        require(trainer, monkeypatch, 31)
    (tmp_path / "out" / "checkpoint-10").mkdir(parents=True)  # which has its room already
    assert require(trainer, monkeypatch, 31) is None


def test_without_a_limit_all_are_counted(trainer, monkeypatch):
    trainer.args.save_total_limit = None
    assert require(trainer, monkeypatch, 103) is None
    assert "write 10 checkpoints of about 10.0 GB, and the disk" in require(trainer, monkeypatch, 50)
    with pytest.raises(ConfigError, match="1 × 10.0 GB"):
        require(trainer, monkeypatch, 11)


def test_the_model_alone(trainer, monkeypatch):
    trainer.args.save_strategy = "no"
    assert require(trainer, monkeypatch, 3) is None
    with pytest.raises(ConfigError, match="0 × 10.0 GB for checkpoints and 2.0 GB for the model"):
        require(trainer, monkeypatch, 1)


def test_words():
    words = ["12 bytes", "1.2 kB", "3.2 GB", "15,000.0 TB"]
    assert [word_bytes(count) for count in (12, 1200, 3.25e9, 1.5e16)] == words
