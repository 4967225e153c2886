"""Which checkpoint a run goes on from, and what it refuses to overwrite."""

import json
import shutil

import pytest
from safetensors.torch import save_file

from puma_trl.config import PumaKLConfig
from puma_trl.errors import CheckpointError, ConfigError
from puma_trl.train import resume
from puma_trl.train.lock import LOCK
from puma_trl.train.resume import find_checkpoint, is_finished, list_checkpoints, require_free

from .checkpoint_files import write_checkpoint


@pytest.fixture
def make_args(tmp_path):
    """Returns a function that makes the settings of a run in the folder `out`, two rows per step."""

    def make(**kwargs):
        defaults = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_steps": 8}
        defaults |= {"resume_from_checkpoint": "true", "bf16": False, "report_to": "none", "use_cpu": True}
        return PumaKLConfig(str(tmp_path / "out"), **defaults | kwargs)

    return make


@pytest.fixture
def out(tmp_path, make_args):
    """An output folder with checkpoints at steps 2 and 4."""
    for step in (2, 4):
        write_checkpoint(tmp_path / "out" / f"checkpoint-{step}", make_args())
    return tmp_path / "out"


def finish(folder, step):
    """Writes what a run leaves at its end."""
    (folder / "config.json").write_text("{}")
    save_file({}, folder / "model.safetensors")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": step}))


def test_a_new_folder(tmp_path, make_args):
    assert find_checkpoint(make_args(resume_from_checkpoint=None)) is None
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]
    assert find_checkpoint(make_args(resume_from_checkpoint=None)) is None  # what it left does no harm


def test_a_new_run_in_a_folder_with_something(out, make_args):
    with pytest.raises(ConfigError, match="is not empty"):
        find_checkpoint(make_args(resume_from_checkpoint=None))


def test_what_a_kill_has_left_before_the_first_step(tmp_path, make_args):
    """The files of a run's start, whole or not, are no run that could be overwritten."""
    (tmp_path / "out").mkdir()
    for name in ("recipe.yaml", "recipe.yaml.tmp", "provenance.json.tmp", LOCK):
        (tmp_path / "out" / name).touch()
    assert find_checkpoint(make_args(resume_from_checkpoint=None)) is None
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"recipe.yaml", LOCK}


def test_the_last_one(out, make_args, caplog):
    assert find_checkpoint(make_args()) == str(out / "checkpoint-4")
    assert f"Resuming from {out / 'checkpoint-4'}" in caplog.text


def test_one_that_is_named(tmp_path, out, make_args):
    named = out.rename(tmp_path / "before") / "checkpoint-2"
    assert find_checkpoint(make_args(resume_from_checkpoint=str(named))) == str(named)


def test_only_names_with_a_number_and_nothing_more_count(out, make_args):
    for name in ("checkpoint-9.bak", "checkpoint-9 (copy)", "checkpoint-", "checkpoint-x", "old-checkpoint-9"):
        shutil.copytree(out / "checkpoint-4", out / name)
    (out / "checkpoint-10").write_text("a file")
    assert [path.name for path in list_checkpoints(out)] == ["checkpoint-4", "checkpoint-2"]
    assert find_checkpoint(make_args()) == str(out / "checkpoint-4")


def test_last_is_by_number(out, make_args):
    write_checkpoint(out / "checkpoint-10", make_args(), total_steps=20)
    assert find_checkpoint(make_args()) == str(out / "checkpoint-10")


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state_1.pth", "model.safetensors", "config.json"]
)
@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_one_that_is_not_whole_is_passed_over(out, make_args, caplog, name, damage):
    path = out / "checkpoint-4" / name
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:10])
    assert find_checkpoint(make_args()) == str(out / "checkpoint-2")
    reason = f"lacks {name}" if damage == "missing" else f"is torn: {name} has 10 of"
    assert f"{out / 'checkpoint-4'} {reason}" in caplog.text and "passed over" in caplog.text


@pytest.mark.parametrize("name", ["optimizer.pt", "config.json"])
def test_one_that_is_named_and_not_whole_is_refused(tmp_path, out, make_args, name):
    (out / "checkpoint-4" / name).unlink()
    with pytest.raises(CheckpointError, match=rf"checkpoint-4` lacks {name}"):
        find_checkpoint(make_args(resume_from_checkpoint=str(out / "checkpoint-4")))


def test_names_of_what_is_no_checkpoint(tmp_path, out, make_args):
    (tmp_path / "final").mkdir()
    finish(tmp_path / "final", 8)
    model_only = out / "checkpoint-4"
    for path in [*model_only.glob("*.pt"), *model_only.glob("*.pth"), model_only / "checkpoint_complete"]:
        path.unlink()
    (out / "checkpoint-2" / "checkpoint_complete").unlink()
    for folder, message in (
        (tmp_path / "nowhere", "is not a folder"),
        (tmp_path / "final", "holds a model, and no checkpoint to go on from"),
        (model_only, r"holds the model only \(`save_only_model`\)"),
        (out / "checkpoint-2", "it has no checkpoint_complete"),
    ):
        with pytest.raises(CheckpointError, match=message):
            find_checkpoint(make_args(resume_from_checkpoint=str(folder)))


def test_a_first_checkpoint_that_was_cut_short_is_no_loss(out, make_args, caplog):
    for step in (2, 4):
        for name in ("checkpoint_complete", "trainer_state.json"):
            (out / f"checkpoint-{step}" / name).unlink()
    assert find_checkpoint(make_args()) is None
    assert "checkpoint-4 was cut short while it was written" in caplog.text and "starting afresh" in caplog.text


def test_checkpoints_that_were_whole_once_are_not_overwritten(out, make_args):
    for step in (2, 4):
        (out / f"checkpoint-{step}" / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match="checkpoint-4 lacks optimizer.pt, and .* has no other checkpoint"):
        find_checkpoint(make_args())


def test_checkpoints_of_another_run_are_not_overwritten_either(out):
    for step in (2, 4):
        (out / f"checkpoint-{step}" / "optimizer.pt").unlink()
    with pytest.raises(ConfigError, match="holds checkpoint-4 of another run"):
        require_free(out, None)
    for step in (2, 4):  # cut short
        for name in ("checkpoint_complete", "trainer_state.json"):
            (out / f"checkpoint-{step}" / name).unlink()
    require_free(out, None)


def test_models_without_a_checkpoint_are_not_overwritten(tmp_path, out, make_args):
    """A finished run with `save_strategy: no`, adapters alone, and `save_only_model`."""
    for name in ("model.safetensors", "adapter_model.safetensors", "adapter_config.json"):
        shutil.rmtree(out)
        out.mkdir()
        (out / name).write_text("{}")
        with pytest.raises(ConfigError, match="holds a model, and no checkpoint to go on from"):
            find_checkpoint(make_args())
    (out / name).unlink()
    (out / "checkpoint-4").mkdir()
    finish(out / "checkpoint-4", 4)
    with pytest.raises(CheckpointError, match="holds the model only"):
        find_checkpoint(make_args())


def test_later_checkpoints_are_not_overwritten(out, make_args):
    earlier = make_args(resume_from_checkpoint=str(out / "checkpoint-2"), max_steps=6)
    with pytest.raises(ConfigError, match="overwrite checkpoint-4.*`output_dir`, or delete the later checkpoints"):
        find_checkpoint(earlier)
    assert find_checkpoint(make_args(resume_from_checkpoint=str(out / "checkpoint-4")))
    (out / "checkpoint-4" / "optimizer.pt").unlink()  # from which nothing can go on
    assert find_checkpoint(earlier) == str(out / "checkpoint-2")


def test_a_remedy_is_not_refused_in_turn(tmp_path, out, make_args):
    """Beside the model of a finished run it would not help to delete the later checkpoints."""
    finish(out, 4)
    earlier = str(out / "checkpoint-2")
    with pytest.raises(ConfigError, match="overwrite checkpoint-4. Choose another `output_dir`.$"):
        find_checkpoint(make_args(resume_from_checkpoint=earlier, max_steps=6))
    args = make_args(resume_from_checkpoint=earlier, max_steps=6)
    args.output_dir = str(tmp_path / "other")
    assert find_checkpoint(args) == earlier


def test_another_run_is_not_overwritten_by_one_from_elsewhere(tmp_path, out, make_args):
    elsewhere = shutil.copytree(out / "checkpoint-4", tmp_path / "checkpoint-4")
    with pytest.raises(ConfigError, match="is not empty"):
        find_checkpoint(make_args(resume_from_checkpoint=str(elsewhere)))


@pytest.mark.parametrize(
    ("end", "later"),
    [({"max_steps": 8}, {"max_steps": 16}), ({"max_steps": -1, "num_train_epochs": 1}, {"num_train_epochs": 2})],
)
def test_a_finished_run_has_nothing_left(out, make_args, end, later):
    args = make_args(**end)
    last = write_checkpoint(out / "checkpoint-8", args)
    assert find_checkpoint(args) == str(last) and not is_finished(last, args)  # killed before its model was saved
    finish(out, 8)
    assert find_checkpoint(args) == str(last) and is_finished(last, args)
    assert not is_finished(last, make_args(**end | later))
    assert find_checkpoint(make_args(**end | later)) == str(last)


def test_a_model_of_later_steps_than_the_last_checkpoint_is_not_overwritten(out, make_args):
    finish(out, 8)
    assert is_finished(find_checkpoint(make_args()), make_args())
    with pytest.raises(ConfigError, match="holds the model of step 8, and its last checkpoint is of step 4"):
        find_checkpoint(make_args(max_steps=16))


def test_other_settings_are_refused_before_anything_is_loaded(out, make_args):
    with pytest.raises(CheckpointError, match="`learning_rate"):
        find_checkpoint(make_args(learning_rate=0.5))


def test_rows_per_step(out, make_args):
    assert find_checkpoint(make_args(per_device_train_batch_size=1, gradient_accumulation_steps=2))
    with pytest.raises(CheckpointError, match="2 rows per optimizer step, but this one has 4"):
        find_checkpoint(make_args(per_device_train_batch_size=4))


def test_other_accumulation_drops_other_rows(tmp_path, make_args):
    """Of 5 rows two batches of 2 are a step each; as batches of 1 all stay, in three steps."""
    write_checkpoint(tmp_path / "out" / "checkpoint-4", make_args(dataloader_drop_last=True))
    parts = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "dataloader_drop_last": True}
    with pytest.raises(CheckpointError, match="`dataloader_drop_last: true` would drop other rows"):
        find_checkpoint(make_args(**parts))
    assert find_checkpoint(make_args(dataloader_drop_last=True))


def test_the_batch_size_that_was_found(tmp_path, make_args):
    """The run was given 4 rows and could hold 2."""
    write_checkpoint(tmp_path / "out" / "checkpoint-4", make_args())
    assert find_checkpoint(make_args(per_device_train_batch_size=4, auto_find_batch_size=True))
    with pytest.raises(CheckpointError, match="2 rows per optimizer step, but this one has 4"):
        find_checkpoint(make_args(per_device_train_batch_size=4))
    with pytest.raises(CheckpointError, match="2 rows per optimizer step, but this one has 4"):
        find_checkpoint(make_args(gradient_accumulation_steps=2, auto_find_batch_size=True))


def test_the_main_process_chooses(out, make_args, monkeypatch):
    """Another process gets what the main one has found or raised, and does not look for itself."""

    class Other:
        is_main_process = False

    def send(outcome):
        outcome[:] = sent
        return outcome

    monkeypatch.setattr(resume, "PartialState", Other)
    monkeypatch.setattr(resume, "broadcast_object_list", send)
    sent = [str(out / "checkpoint-2"), None]
    assert find_checkpoint(make_args()) == str(out / "checkpoint-2")
    sent = [None, ConfigError("in use")]
    with pytest.raises(ConfigError, match="in use"):
        find_checkpoint(make_args())
    sent = [str(out / "checkpoint-6"), None]
    with pytest.raises(CheckpointError, match="checkpoint-6, which does not exist on"):
        find_checkpoint(make_args())
