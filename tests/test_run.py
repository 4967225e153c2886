"""The run script: one small run end to end, and what it says to bad input before the first step."""

import json
import os
import signal
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from puma_trl import run
from puma_trl.errors import PumaError
from puma_trl.train.trainer import PumaKLTrainer


@pytest.fixture
def folder(tmp_path, tiny_model, processor):
    tiny_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    rows = []
    for index in range(6):
        name = f"{index}.png"
        Image.new("RGB", (56, 56), (40 * index, 0, 0)).save(tmp_path / name)
        answer = f"It is {index}."
        rows.append(
            {"instruction": f"Is {index} it?", "output": answer}
            | {"image_url_2": name, "instruction_2": "What is it?", "output_2": answer}
        )
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def main(folder):
    """Returns a function that runs the script on the folder, with flags changed or removed (`None`)."""

    def main(**flags):
        values = {
            "model_name_or_path": folder / "model",
            "dataset_name": folder / "pairs.jsonl",
            "output_dir": folder / "out",
            "bf16": False,
            "dataset_num_proc": 1,
            "dtype": "float32",
            "logging_steps": 1,
            "max_steps": 2,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
        } | flags
        run.main([str(piece) for key, value in values.items() if value is not None for piece in (f"--{key}", value)])
        return folder / "out"

    return main


@pytest.fixture
def no_training(monkeypatch):
    def train(self, *args, **kwargs):
        raise AssertionError("training started")

    monkeypatch.setattr(PumaKLTrainer, "train", train)


@pytest.mark.parametrize("use_kl", [True, False])
def test_a_stage_end_to_end(main, folder, capsys, use_kl):
    out = main(use_kl=use_kl, trainable_parts="aligner", eval_split_size=2, eval_strategy="steps", eval_steps=1)
    before, after = load_file(folder / "model" / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not (before[name] == after[name]).all()}
    assert changed and all(".merger." in name or "visual.merger" in name for name in changed)
    for name in ("README.md", "curves.png", "generation_config.json", "processor_config.json", "trainer_state.json"):
        assert (out / name).is_file(), name
    table = capsys.readouterr().out
    for text in (
        "Trains: aligner",
        "Trains: language_model",
        "4 of 4",
        "Answer tokens",
        "Global batch size",
        "Steps",
        "Written to",
        "Next: ",
    ):
        assert text in table, text


def write(folder, *rows):
    path = folder / "bad.jsonl"
    path.write_bytes(b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))
    return path


PAIR = {"instruction": "a", "output": "b", "image_url_2": "0.png", "instruction_2": "c", "output_2": "b"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model_name_or_path": "{folder}/nothing"}, "No model configuration"),
        ({"dataset_name": "{folder}/nothing.jsonl"}, "nothing.jsonl"),
        ({"alpha_kl": 1.5}, "`alpha_kl` is 1.5"),
        ({"temp_kl": 0}, "`temp_kl` is 0.0"),
        ({"trainable_parts": "visoin"}, "'visoin'"),
        ({"output_dir": "{folder}/pairs.jsonl/out"}, "cannot be written"),
        ({"output_dir": "{folder}/model"}, "is not empty"),
        ({"resume_from_checkpoint": "{folder}/checkpoint-9"}, "is not a folder"),
        ({"max_length": 3}, "max_length"),
        ({"attn_implementation": "flash_attention_2"}, "attn_implementation: varlen"),
        ({"dtype": "bfloat16", "teacher": "ema"}, "rounded away"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_arguments_stop_before_training(main, folder, no_training, flags, message):
    flags = {key: value.format(folder=folder) if isinstance(value, str) else value for key, value in flags.items()}
    with pytest.raises(PumaError, match=message):
        main(**flags)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "bad.jsonl"),
        ([PAIR, b'{"instruction": \n'], "bad.jsonl"),
        ([{key: value for key, value in PAIR.items() if key != "output_2"}], "output_2"),
        ([PAIR, PAIR | {"output_2": "c"}], "bad.jsonl:2"),
        ([PAIR, PAIR | {"output": " ", "output_2": " "}], "bad.jsonl:2"),
        ([PAIR, PAIR | {"image_url_2": "missing.png"}], "missing.png"),
        ([PAIR, PAIR | {"instruction_2": "c" * 3000}], "bad.jsonl:2"),
    ],
    ids=["empty", "broken-json", "no-output_2", "answers-differ", "empty-answer", "no-image", "over-long-side"],
)
def test_bad_rows_stop_before_training(main, folder, no_training, rows, message):
    with pytest.raises(ValueError, match=message):
        main(dataset_name=write(folder, *rows))


def test_dropped_rows_are_recorded(main, folder, capsys):
    out = main(
        dataset_name=write(folder, PAIR, PAIR | {"output": "", "output_2": ""}, PAIR), bad_rows="drop", max_steps=1
    )
    dropped = [json.loads(line) for line in (out / "dropped_rows.jsonl").read_text().splitlines()]
    assert [row["row_id"] for row in dropped] == ["bad.jsonl:2"]
    assert "2 of 3" in capsys.readouterr().out


def test_folder_without_weights(main, folder, no_training):
    (folder / "model" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="No usable weights"):
        main()


def test_truncated_weights(main, folder, no_training):
    with (folder / "model" / "model.safetensors").open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(ValueError, match=r"/model/model.safetensors cannot be read: .* is truncated"):
        main()


@pytest.mark.parametrize("has_code", [False, True])
def test_unknown_model_type(main, folder, no_training, has_code):
    """The error names the folder and the remedies, and code beside the configuration does not run."""
    config = {"model_type": "qwen2vlm"} | ({"auto_map": {"AutoConfig": "code.Config"}} if has_code else {})
    (folder / "model" / "config.json").write_text(json.dumps(config))
    (folder / "model" / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Config: pass\n")
    with pytest.raises(ValueError, match=r"/model` is not a model .*puma_trl.convert.*trust_remote_code: true"):
        main()
    assert not (folder / "ran").exists()


def test_remote_code_is_announced(main, capsys):
    main(trust_remote_code=True, max_steps=1)
    assert "Remote code" in capsys.readouterr().out


def test_resume_in_an_empty_folder_starts_afresh(main):
    assert (main(resume_from_checkpoint=True, max_steps=1) / "model.safetensors").is_file()


@pytest.mark.parametrize("cut", ["before the marker", "after the marker"])
def test_checkpoint_that_was_cut_short_is_passed_over(main, folder, caplog, cut):
    flags = {"save_strategy": "steps", "save_steps": 1, "resume_from_checkpoint": True}
    out = main(**flags, max_steps=2)
    (out / "trainer_state.json").unlink()  # it was killed before its end
    if cut == "before the marker":
        (out / "checkpoint-2" / "checkpoint_complete").unlink()
        (out / "checkpoint-2" / "trainer_state.json").unlink()
        (out / "checkpoint-2" / "model.safetensors").write_bytes(b"half")
        reason = "was cut short while it was written"
    else:
        (out / "checkpoint-2" / "trainer_state.json").write_text('{"best_')
        reason = "is torn: trainer_state.json has 7 of"
    main(**flags, max_steps=3)
    assert f"checkpoint-2 {reason}" in caplog.text
    assert f"Resuming from {out / 'checkpoint-1'}" in caplog.text
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert [logs["step"] for logs in history if "loss" in logs] == [1, 2, 3]


def test_a_kill_while_old_checkpoints_are_deleted(main, monkeypatch, caplog):
    """With one checkpoint to keep, the new one counts before the old one goes."""
    flags = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "resume_from_checkpoint": True}
    out = main(**flags, max_steps=1)

    def delete_and_die(*args):
        delete_old(*args)
        sys.exit("killed")

    delete_old = PumaKLTrainer._delete_old
    with monkeypatch.context() as patch:
        patch.setattr(PumaKLTrainer, "_delete_old", delete_and_die)
        with pytest.raises(SystemExit, match="killed"):
            main(**flags, max_steps=3)
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-2"]
    main(**flags, max_steps=3)
    assert f"Resuming from {out / 'checkpoint-2'}" in caplog.text


def test_resume_from_the_last_step_trains_no_further(main):
    flags = {"save_strategy": "steps", "save_steps": 1, "resume_from_checkpoint": True}
    flags |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_steps": 2}  # of 3 in the epoch
    flags |= {"lr_scheduler_type": "constant", "learning_rate": 1e-2}
    out = main(**flags)
    before = load_file(out / "model.safetensors")
    (out / "model.safetensors").unlink()  # killed between the last checkpoint and the end
    main(**flags)
    after = load_file(out / "model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 2


def test_resume_with_other_steps_is_refused(main, folder):
    flags = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "resume_from_checkpoint": True}
    main(**flags, per_device_train_batch_size=2, gradient_accumulation_steps=1)
    main(**flags, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="2 rows per optimizer step, but this one has 4: 4 .* × 1 .* × 1 processes"):
        main(**flags, per_device_train_batch_size=4, gradient_accumulation_steps=1)


@pytest.mark.parametrize(
    ("strategy", "only_model"), [("no", False), ("best", False), ("steps", True)], ids=["no", "best", "only model"]
)
def test_stopped_between_saves(main, monkeypatch, strategy, only_model):
    """
    A checkpoint to resume from is written whatever the save strategy, also where the step is evaluated and not the
    best, and where others hold the model only.
    """

    def ask_to_stop(self, *args, **kwargs):
        self.stop_requested = True
        return train(self, *args, **kwargs)

    train = PumaKLTrainer.train
    monkeypatch.setattr(PumaKLTrainer, "train", ask_to_stop)
    flags = {"eval_split_size": 2, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": strategy}
    flags |= {"save_only_model": only_model, "load_best_model_at_end": False}
    if strategy == "best":
        monkeypatch.setattr("transformers.Trainer._determine_best_metric", lambda *args, **kwargs: False)
        flags["metric_for_best_model"] = "loss"
    out = main(**flags)
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-1"]
    assert (out / "checkpoint-1" / "checkpoint_complete").is_file()


def test_a_run_that_failed_before_its_first_step_does_not_block_the_next(main, folder, monkeypatch):
    def fail(self, **kwargs):
        raise MemoryError

    data = write(folder, PAIR, PAIR | {"output": "", "output_2": ""})
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(PumaKLTrainer, "train", fail)
        main(dataset_name=data, bad_rows="drop")
    assert {path.name for path in (folder / "out").iterdir()} == {
        "_puma_lock",
        "dropped_rows.jsonl",
        "provenance.json",
        "recipe.yaml",
    }
    assert (main() / "model.safetensors").is_file()


def test_fsdp_on_a_cpu_is_refused(main, no_training, monkeypatch):
    """Accelerate would run DDP, or one process as here, and not say so."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="asks for FSDP, which accelerate does not run on a CPU"):
        main()


def test_the_average_of_a_teacher_is_in_checkpoints_only(main):
    out = main(teacher="ema", save_strategy="steps", save_steps=1, max_steps=1)
    assert (out / "checkpoint-1" / "ema_teacher" / "model.safetensors").is_file()
    assert not (out / "ema_teacher").exists()


def test_stopped_while_loading(main, monkeypatch):
    """A scheduler that preempts the job then may start it again: nothing is lost, and that is no failure."""
    monkeypatch.setattr(run, "load_data", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stopped:
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 0
