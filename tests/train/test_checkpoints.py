"""Checkpoints of real runs: what is in them, when older ones go, and what a resumed run makes of them."""

import json
import re
import resource
import shutil
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from transformers import Trainer

from puma_trl.config import PumaKLConfig
from puma_trl.errors import CheckpointError, ConfigError
from puma_trl.record.provenance import read_provenance, save_provenance
from puma_trl.train import checkpoints
from puma_trl.train.checkpoints import naming_damage
from puma_trl.train.compare import describe_settings
from puma_trl.train.marker import BEGUN, COMPLETE_MARKER, find_problem, read_marker
from puma_trl.train.trainer import PumaKLTrainer

from .checkpoint_files import write_checkpoint
from .test_trainer import weights


SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "per_device_train_batch_size": 2}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_marker_of_a_run(train, tiny_model, pairs, out):
    trainer = train(tiny_model(), pairs(4), run=False, **SAVING, trainable_parts="aligner", eval_dataset=pairs(2))
    settings = describe_settings(trainer.args)
    trainer.train()
    marker = read_marker(out / "checkpoint-2")
    assert find_problem(out / "checkpoint-2") is None
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors", "trainer_state.json"} <= set(
        marker["files"]
    )
    facts = {"step": 2, "total_steps": 2, "num_processes": 1, "batch_size": 2, "rows_per_step": 2, "resumed": []}
    assert {name: marker[name] for name in facts} == facts
    assert marker["settings"] == settings  # training does not change what is compared
    assert marker["weights"]["engine"] == "one process or DDP"
    assert {split: rows["rows"] for split, rows in marker["data"].items()} == {"train": 4, "eval": 2}


@pytest.mark.parametrize("place", ["begin_checkpoint", "_save_optimizer_and_scheduler", "write_marker"])
def test_a_first_checkpoint_that_is_killed_at_any_point(train, tiny_model, pairs, out, monkeypatch, caplog, place):
    """Before its first file, between model and optimizer, and when all but the marker is there."""
    owner = PumaKLTrainer if place.startswith("_") else checkpoints
    run = getattr(owner, place)

    def kill(*args):
        if place == "begin_checkpoint":
            run(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, place, kill)
        train(tiny_model(), pairs(4), **SAVING)
    assert find_problem(out / "checkpoint-1").is_unfinished
    trainer = train(tiny_model(), pairs(4), **SAVING, resume_from_checkpoint="true")
    assert "checkpoint-1 was cut short while it was written" in caplog.text and trainer.state.global_step == 2
    assert [find_problem(out / f"checkpoint-{step}") for step in (1, 2)] == [None, None]
    assert not (out / "checkpoint-2" / BEGUN).exists()


def test_settings_are_compared_before_the_trainer_is_made_as_after(train, tiny_model, pairs, tmp_path):
    kwargs = {"bf16": False, "use_cpu": True, "report_to": "none", "gradient_checkpointing": False}
    before = describe_settings(PumaKLConfig(str(tmp_path), **kwargs))
    trainer = train(tiny_model(), pairs(2), run=False, **kwargs)
    after = describe_settings(trainer.args)
    given = {"learning_rate", "max_steps", "optim"}
    assert {name for name in before if before[name] != after[name]} == given


def test_data_that_has_changed_is_refused_or_recorded(train, tiny_model, pairs, out, caplog):
    train(tiny_model(), pairs(6), **SAVING | {"max_steps": 1})
    resume = str(out / "checkpoint-1")
    with pytest.raises(CheckpointError, match="The train data is not that of .*: it had 6 rows and now has 5"):
        train(tiny_model(), pairs(6).select(range(5)), resume=resume, **SAVING)
    swapped = pairs(6).select([1, 0, 2, 3, 4, 5])
    with pytest.raises(CheckpointError, match=r"as many rows \(6\), but other texts or pictures, or in another order"):
        train(tiny_model(), swapped, resume=resume, **SAVING)
    trainer = train(tiny_model(), swapped, resume=resume, **SAVING, allow_changed_data=True)
    assert "From step 1 on with other data: train" in caplog.text
    (entry,) = read_marker(out / "checkpoint-2")["resumed"]
    assert entry == trainer.resumed[0] and entry["step"] == 1
    old, new = entry["changed"]["train data"]
    assert old["rows"] == new["rows"] == 6 and old["fingerprint"] != new["fingerprint"]
    # from here on that is the data
    train(tiny_model(), swapped, resume=str(out / "checkpoint-2"), **SAVING | {"max_steps": 3})
    assert [each["step"] for each in read_marker(out / "checkpoint-3")["resumed"]] == [1, 2]


def test_settings_that_take_effect_are_named_and_recorded(train, tiny_model, pairs, out, caplog):
    train(tiny_model(), pairs(4), **SAVING | {"max_steps": 1})
    trainer = train(tiny_model(), pairs(4), resume=True, **SAVING, lambda_kl=0.5)
    assert "From step 1 on with another setting: `lambda_kl: 0.1 → 0.5`" in caplog.text
    assert trainer.resumed[0]["changed"] == {"lambda_kl": [0.1, 0.5], "max_steps": [1, 2]}
    logs = trainer.state.log_history[1]
    assert logs["loss"] == pytest.approx((logs["ce"] + logs["kl"]) / 2, rel=1e-4)  # it does


def test_other_adapters_are_refused(train, tiny_model, pairs, out):
    lora = {"r": 4, "target_modules": ["q_proj"], "lora_alpha": 8}
    train(tiny_model(), pairs(4), peft_config=LoraConfig(**lora), **SAVING | {"max_steps": 1})
    with pytest.raises(CheckpointError, match=r"other adapters \(`lora_alpha: 8 → 16`\)"):
        train(tiny_model(), pairs(4), peft_config=LoraConfig(**lora | {"lora_alpha": 16}), resume=True, **SAVING)


def test_a_longer_schedule_is_named(train, tiny_model, pairs, out, caplog):
    """The finished schedule has come to 0, and the first step is taken there."""
    flags = SAVING | {"max_steps": 2, "lr_scheduler_type": "linear"}
    train(tiny_model(), pairs(4), **flags)
    again = train(tiny_model(), pairs(4), resume=True, **flags | {"max_steps": 4})
    rates = [logs["learning_rate"] for logs in again.state.log_history if "learning_rate" in logs]
    assert rates[2:] == pytest.approx([0.0, 0.025])
    assert "(4 steps now, 2 then): step 3 is taken at 0, as" in caplog.text and "which has 0.05 there" in caplog.text
    caplog.clear()
    train(tiny_model(), pairs(4), resume=True, **SAVING | {"max_steps": 8, "lr_scheduler_type": "linear"})
    assert "(8 steps now, 4 then)" in caplog.text


def test_the_same_schedule_is_not_named(train, tiny_model, pairs, out, caplog):
    flags = SAVING | {"lr_scheduler_type": "cosine", "warmup_steps": 1, "max_steps": 3}
    train(tiny_model(), pairs(4), **flags)
    shutil.rmtree(out / "checkpoint-3")
    train(tiny_model(), pairs(4), resume=str(out / "checkpoint-2"), **flags)
    assert "Resuming" not in caplog.text and "schedule" not in caplog.text


def test_the_last_step_has_nothing_left(train, tiny_model, pairs, caplog):
    whole = train(tiny_model(), pairs(4), **SAVING)
    again = train(tiny_model(), pairs(4), resume=True, **SAVING)
    assert "checkpoint-2 is of the last step, 2: nothing is left to train" in caplog.text
    assert all(torch.equal(weights(again)[name], value) for name, value in weights(whole).items())


def test_no_checkpoint_in_python(train, tiny_model, pairs, tmp_path):
    with pytest.raises(CheckpointError, match="has no checkpoint to resume from"):
        train(tiny_model(), pairs(2), resume=True, output_dir=str(tmp_path / "new"))


def spoil(path):
    """Damages what a file holds and leaves its size and its end."""
    content = bytearray(path.read_bytes())
    place = bytes(content).index(b"data.pkl") + 20
    content[place : place + 60] = bytes(60)
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_damage_found_while_loading_names_the_file(train, tiny_model, pairs, out, name):
    train(tiny_model(), pairs(4), **SAVING)
    spoil(out / "checkpoint-1" / name)
    assert find_problem(out / "checkpoint-1") is None
    with pytest.raises(CheckpointError, match=rf"checkpoint-1/{name} is damaged .* Delete that folder and resume"):
        train(tiny_model(), pairs(4), resume=str(out / "checkpoint-1"), **SAVING, output_dir=str(out / "other"))


def test_errors_that_are_not_of_damage(tmp_path):
    checkpoint = str(write_checkpoint(tmp_path / "checkpoint-4"))
    for error in (RuntimeError("CUDA out of memory."), KeyError("state"), KeyboardInterrupt()):
        with pytest.raises(type(error)), naming_damage(checkpoint):
            raise error
    (tmp_path / "checkpoint-4" / "optimizer.pt").write_bytes(b"half")
    with pytest.raises(RuntimeError, match="out of memory"), naming_damage(checkpoint):
        raise RuntimeError("CUDA out of memory.")
    with pytest.raises(CheckpointError, match=r"optimizer.pt is damaged \(EOFError\)"), naming_damage(checkpoint):
        raise EOFError


def test_older_checkpoints_go_when_the_new_one_counts(train, tiny_model, pairs, out, monkeypatch):
    (out / "checkpoint-1.bak").mkdir(parents=True)
    (out / "checkpoint-9").mkdir()  # cut short
    seen = []

    def numbers():
        return " ".join(sorted(path.name.split("-")[1] for path in out.glob("checkpoint-*")))

    def watch(self, newest, limit):
        assert find_problem(newest) is None
        seen.append(numbers())
        delete(self, newest, limit)

    delete = PumaKLTrainer._delete_old
    monkeypatch.setattr(PumaKLTrainer, "_delete_old", watch)
    trainer = train(tiny_model(), pairs(6), **SAVING | {"max_steps": 3}, save_total_limit=2)
    assert seen == ["1 1.bak 9", "1 1.bak 2 9", "1 1.bak 2 3"]
    assert numbers() == "1.bak 2 3"
    assert trainer.args.save_total_limit == 2
    assert torch.load(out / "checkpoint-3" / "training_args.bin", weights_only=False).save_total_limit == 2


def test_the_best_checkpoint_stays(train, tiny_model, pairs, out):
    (out / "checkpoint-1.bak").mkdir(parents=True)
    flags = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "learning_rate": 30.0}
    train(tiny_model(), pairs(6), eval_dataset=pairs(2), **SAVING | {"max_steps": 3}, **flags, save_total_limit=1)
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-1.bak"]


def test_what_a_former_run_has_left_in_a_checkpoint_goes(train, tiny_model, pairs, out):
    train(tiny_model(), pairs(4), **SAVING)
    (out / "checkpoint-2" / "rng_state_1.pth").write_bytes(b"of two processes")
    (out / "checkpoint-2" / COMPLETE_MARKER).unlink()  # cut short while it was repeated
    train(tiny_model(), pairs(4), resume=str(out / "checkpoint-1"), **SAVING)
    assert find_problem(out / "checkpoint-2") is None
    assert not (out / "checkpoint-2" / "rng_state_1.pth").exists()


def test_checkpoints_of_the_model_alone_do_not_count(train, tiny_model, pairs, out):
    train(tiny_model(), pairs(4), **SAVING, save_only_model=True)
    assert find_problem(out / "checkpoint-2").reason == "holds the model only (`save_only_model`)"


def test_a_signal_that_not_all_processes_know_of_changes_no_checkpoint(train, tiny_model, pairs, out, monkeypatch):
    """Processes that save a model, and others that save all, would wait for each other for ever."""
    save = checkpoints.ExactCheckpoints._save_checkpoint

    def save_after_signal(self, *args):
        self.stop_requested = True
        save(self, *args)

    monkeypatch.setattr(checkpoints.ExactCheckpoints, "_save_checkpoint", save_after_signal)
    train(tiny_model(), pairs(4), **SAVING | {"max_steps": 3}, save_only_model=True)
    assert find_problem(out / "checkpoint-1").reason == "holds the model only (`save_only_model`)"
    assert find_problem(out / "checkpoint-2") is None and not (out / "checkpoint-3").exists()


def test_the_marker_is_pushed_with_its_checkpoint(train, tiny_model, pairs, monkeypatch):
    pushed = []
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda self, path: pushed.append(find_problem(path)))
    trainer = train(tiny_model(), pairs(4), run=False, **SAVING)
    trainer.args.push_to_hub = True
    trainer.train()
    assert pushed == [None, None]


def limit_memory(monkeypatch, num_rows):
    def compute_loss(self, model, inputs, *args, **kwargs):
        if len(inputs["labels"]) > num_rows:
            raise RuntimeError("CUDA out of memory.")
        return compute(self, model, inputs, *args, **kwargs)

    compute = PumaKLTrainer.compute_loss
    monkeypatch.setattr(PumaKLTrainer, "compute_loss", compute_loss)


def test_the_batch_size_that_was_found(train, tiny_model, pairs, out, monkeypatch, caplog):
    flags = SAVING | {"per_device_train_batch_size": 4, "auto_find_batch_size": True}
    monkeypatch.setattr(PumaKLTrainer, "create_model_card", lambda *args, **kwargs: None)
    save_provenance(out, {}, {"training": {"per_device_train_batch_size": 4, "global_batch_size": 4, "seed": 42}})
    with monkeypatch.context() as patch:
        limit_memory(patch, 2)
        train(tiny_model(), pairs(8), **flags)
        marker = read_marker(out / "checkpoint-2")
        assert (marker["batch_size"], marker["rows_per_step"]) == (2, 2)
        assert "3 rows per device do not fit into memory. From here on each has 2 and a step 2 in all" in caplog.text
        training = read_provenance(out)["training"]
        assert training == {"per_device_train_batch_size": 2, "global_batch_size": 2, "seed": 42}
        assert torch.load(out / "checkpoint-2" / "training_args.bin", weights_only=False).train_batch_size == 2
        trainer = train(tiny_model(), pairs(8), resume=True, **flags | {"max_steps": 3})
        assert trainer._train_batch_size == 2
        assert read_marker(out / "checkpoint-3")["batch_size"] == 2
    limit_memory(monkeypatch, 1)
    with pytest.raises(CheckpointError, match="The batch size of .*checkpoint-3, 2, .* does not fit into memory"):
        train(tiny_model(), pairs(8), resume=True, **flags | {"max_steps": 4})


def test_too_little_space_is_told_before_training(train, tiny_model, pairs, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(ConfigError, match="has 1.0 MB left, but the run needs about"):
        train(tiny_model(), pairs(4), **SAVING)


@pytest.mark.parametrize("limit", [100_000, 1_500_000])
def test_a_disk_that_is_full_while_saving(train, tiny_model, pairs, out, limit):
    """Weights do not fit, or the optimizer does not: one line with the folder, and the checkpoint does not count."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(CheckpointError, match="out/checkpoint-1 could not be written: .*disk has room"):
            train(tiny_model(), pairs(4), **SAVING | {"optim": "adamw_torch"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert find_problem(out / "checkpoint-1").is_unfinished


def test_a_run_in_python_holds_the_lock(train, tiny_model, pairs, out, monkeypatch):
    held = []
    monkeypatch.setattr(checkpoints, "hold_lock", held.append)
    train(tiny_model(), pairs(4), **SAVING)
    assert held == [str(out)]
    train(tiny_model(), pairs(4), max_steps=1)  # saves nothing
    assert held == [str(out)]


def test_a_run_in_python_overwrites_no_other(train, tiny_model, pairs, out):
    train(tiny_model(), pairs(4), **SAVING)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="holds checkpoint-2 of another run, which would be overwritten"):
        train(tiny_model(), pairs(4), **SAVING)
    with pytest.raises(ConfigError, match="checkpoint-1` is not the last one in"):
        train(tiny_model(), pairs(4), resume=str(out / "checkpoint-1"), **SAVING)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    other = str(out.parent / "other")
    assert train(tiny_model(), pairs(4), resume=str(out / "checkpoint-1"), output_dir=other, **SAVING).resumed


# The script


def test_script_refuses_changed_data_and_records_nothing_of_it(main, folder):
    flags = {"save_strategy": "steps", "save_steps": 1, "resume_from_checkpoint": True}
    out = main(**flags, max_steps=1)
    files = ("provenance.json", "recipe.yaml")
    before = [(out / name).read_bytes() for name in files]
    rows = (folder / "pairs.jsonl").read_text().splitlines()
    (folder / "pairs.jsonl").write_text("\n".join(rows[1:]))
    with pytest.raises(CheckpointError, match="it had 6 rows and now has 5"):
        main(**flags, max_steps=2)
    assert [(out / name).read_bytes() for name in files] == before
    main(**flags, max_steps=2, allow_changed_data=True)
    (entry,) = json.loads((out / "provenance.json").read_text())["resumed"]
    assert entry["step"] == 1 and set(entry["changed"]) == {"max_steps", "train data"}


def test_script_tells_what_checkpoints_take(main, folder, capsys):
    main(max_steps=1)
    assert re.search(r"Disk +│ about [\d.]+ MB for the model, [\d.]+ .B free", capsys.readouterr().out)
    main(max_steps=1, save_strategy="steps", output_dir=folder / "other")
    assert re.search(r"Disk +│ about [\d.]+ MB per checkpoint, [\d.]+ .B free", capsys.readouterr().out)


def test_script_leaves_a_finished_run_alone(main, caplog):
    flags = {"save_strategy": "steps", "save_steps": 1, "resume_from_checkpoint": True, "max_steps": 1}
    out = main(**flags)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert main(**flags) == out
    assert "has come to its end: nothing is left to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_script_does_not_overwrite_a_finished_model(main):
    main(max_steps=1)
    with pytest.raises(ConfigError, match="holds a model, and no checkpoint to go on from"):
        main(max_steps=1, resume_from_checkpoint=True)
