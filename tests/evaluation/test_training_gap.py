"""The gap by generation in a run: measured on held-out pairs, logged, drawn, and what the best model is chosen by."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from puma_trl import run
from puma_trl.config import PumaKLConfig, PumaScriptArguments
from puma_trl.data import files as data_files
from puma_trl.data.load import load_data
from puma_trl.data.policy import DataReport
from puma_trl.data.shared import DIGESTS
from puma_trl.errors import ConfigError, DataError
from puma_trl.evaluation import training_gap
from puma_trl.evaluation.training_gap import METRICS, GapCallback, load_gap_pairs
from puma_trl.models.families import get_family
from puma_trl.record.curves import PANELS
from puma_trl.train.whole_model import describe_generation


NOTHING = DataReport(0, 0, digests=dict.fromkeys(DIGESTS, np.array([], np.int64)))


@pytest.fixture
def folder(tmp_path, tiny_model, processor):
    tiny_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    for name, count in (("train", 6), ("held_out", 4)):
        rows = []
        for index in range(count):
            Image.new("RGB", (28 + 28 * (index % 2), 28), (40 * index, 0, 0)).save(tmp_path / f"{name}{index}.png")
            answer = f"It is {index}."
            row = {"instruction": f"Is {index} it?", "output": answer, "instruction_2": "What?", "output_2": answer}
            rows.append(row | {"image_url_2": f"{name}{index}.png"})
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def flags(folder, **more):
    values = {
        "model_name_or_path": folder / "model",
        "dataset_name": folder / "train.jsonl",
        "gap_dataset_name": folder / "held_out.jsonl",
        "gap_eval_steps": 2,
        "output_dir": folder / "out",
        "bf16": False,
        "dataset_num_proc": 1,
        "dtype": "float32",
        "logging_steps": 1,
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
    } | more
    return [str(piece) for key, value in values.items() for piece in (f"--{key}", value)]


def measured(folder):
    """Returns step → what was logged of the gap, in the run's own state file."""
    history = json.loads((folder / "out" / "trainer_state.json").read_text())["log_history"]
    return {logs["step"]: logs for logs in history if "eval_gap" in logs}


@pytest.mark.parametrize("use_kl", [True, False])
def test_gap_is_logged_and_changes_nothing_that_is_learned(folder, use_kl):
    run.main(flags(folder, use_kl=use_kl))
    found = measured(folder)
    assert list(found) == [2, 3]  # every second step, and the last one
    for logs in found.values():
        assert {f"eval_{name}" for name in METRICS} <= logs.keys()
        assert logs["eval_gap"] == logs["eval_text_rich_accuracy"] - logs["eval_vision_rich_accuracy"]
        assert logs["eval_gap_low"] <= logs["eval_gap"] <= logs["eval_gap_high"]
    history = json.loads((folder / "out" / "trainer_state.json").read_text())["log_history"]
    training = [logs for logs in history if "loss" in logs]
    assert [logs["step"] for logs in training] == [1, 2, 3]  # also where the gap is measured at the same step
    assert training[0].keys() == training[1].keys() and not training[1].keys() & found[2].keys() - {"epoch", "step"}
    assert (folder / "out" / "curves.png").is_file()
    with_gap = (folder / "out" / "model.safetensors").read_bytes()
    run.main(flags(folder, use_kl=use_kl, gap_eval_steps=1, output_dir=folder / "out2"))
    assert (folder / "out2" / "model.safetensors").read_bytes() == with_gap


def test_curves_show_what_is_logged():
    assert {"vision_rich_accuracy", "text_rich_accuracy", "gap"} <= {
        name for names in PANELS.values() for name in names
    }


def test_best_model_by_the_gap(folder, monkeypatch):
    """The measurement says that the model of step 2 is the best, whatever it answers."""
    accuracy = {1: 0.25, 2: 0.75, 3: 0.5}

    def measure(trainer, pairs):
        rich = accuracy[trainer.state.global_step]
        return {"text_rich_accuracy": 1.0, "vision_rich_accuracy": rich, "gap": 1 - rich, "agreement": 0.5} | {
            "gap_interval": (0.0, 1.0),
            "text_rich_tokens": 3.0,
            "vision_rich_tokens": 3.0,
        }

    monkeypatch.setattr(training_gap, "measure_gap", measure)
    best = {"metric_for_best_model": "vision_rich_accuracy", "load_best_model_at_end": True}
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    run.main(flags(folder, **best, **steps, eval_dataset_name=folder / "held_out.jsonl"))
    state = json.loads((folder / "out" / "trainer_state.json").read_text())
    assert (state["best_metric"], state["best_global_step"]) == (0.75, 2)
    # each evaluation measures what the best model is chosen by
    assert list(measured(folder)) == [1, 2, 3]


def test_state_of_the_model_is_given_back(processor, tiny_model, pairs):
    model = tiny_model().train()
    config, side = model.generation_config, processor.tokenizer.padding_side
    accelerator = SimpleNamespace(
        unwrap_model=lambda model: model, process_index=0, num_processes=1, wait_for_everyone=lambda: None, state=None
    )
    args = SimpleNamespace(per_device_eval_batch_size=3, gradient_checkpointing_kwargs=None)
    trainer = SimpleNamespace(model_wrapped=model, accelerator=accelerator, args=args, processing_class=processor)
    trainer.generation_seen = describe_generation(config)
    state = torch.get_rng_state()
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr("trl.distributed.DistributedBackend", lambda accelerator: SimpleNamespace(is_zero3=False))
        rows = pairs(5).add_column("history", [[]] * 5).add_column("history_2", [[]] * 5)
        summary = training_gap.measure_gap(trainer, rows)
    assert summary["pairs"] == 5
    assert model.training and model.generation_config is config and processor.tokenizer.padding_side == side
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("data", "args", "kind", "message"),
    [
        (
            {"gap_dataset_name": None},
            {"metric_for_best_model": "eval_gap"},
            ConfigError,
            "name them with `gap_dataset",
        ),
        ({"gap_dataset_name": "train"}, {}, DataError, "is trained on"),
        ({"gap_dataset_name": "missing"}, {}, DataError, "missing.jsonl"),
        ({"gap_dataset_name": "unanswered"}, {"on_policy_share": 1}, DataError, "unanswered.jsonl:1: no answer"),
    ],
)
def test_refusals(folder, processor, tiny_model, data, args, kind, message):
    row = {"instruction": "1 + 1?", "output": None, "instruction_2": "Add.", "output_2": None}
    (folder / "unanswered.jsonl").write_text(json.dumps(row) + "\n")
    names = {"dataset_name": "train", "gap_dataset_name": "held_out"} | data
    paths = {name: value and [str(folder / f"{value}.jsonl")] for name, value in names.items()}
    script = PumaScriptArguments(**paths, gap_eval_steps=paths["gap_dataset_name"] and 1)
    training = PumaKLConfig(str(folder / "out"), bf16=False, use_cpu=True, report_to="none", **args)
    with pytest.raises(kind, match=message):
        load_gap_pairs(script, training, processor, get_family(tiny_model().config), NOTHING)


@pytest.mark.parametrize("use_kl", [True, False])
@pytest.mark.parametrize("shared", [1, 4])
def test_pairs_that_are_trained_on(folder, processor, tiny_model, caplog, use_kl, shared):
    """Known by texts and pictures, in whatever file; also where one side of them is trained on."""
    held_out = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
    rows = held_out[:shared]
    if not use_kl:
        names = ("instruction", "output", "image_url")
        rows = [{name: row[f"{name}_2"] for name in names} for row in rows]
    (folder / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = PumaScriptArguments(
        dataset_name=str(folder / "other.jsonl"), gap_dataset_name=str(folder / "held_out.jsonl"), gap_eval_steps=1
    )
    values = {"bf16": False, "use_cpu": True, "report_to": "none", "dataset_num_proc": 1}
    training = PumaKLConfig(str(folder / "out"), use_kl=use_kl, **values)
    family = get_family(tiny_model().config)
    _, reports = load_data(script, training, processor, family)
    if shared == 4:
        with pytest.raises(DataError, match="All 4 rows of the gap data are among the train data.* Name pairs that"):
            load_gap_pairs(script, training, processor, family, reports["train"])
    else:
        assert len(load_gap_pairs(script, training, processor, family, reports["train"])) == 4
        assert "1 of the 4 rows of the gap data are among the train data too" in caplog.text


def test_pairs_of_the_hub(folder, processor, tiny_model, monkeypatch):
    """Of the same configuration, and of the split to evaluate on."""
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return Dataset.from_json(str(folder / ("train.jsonl" if split == "train" else "held_out.jsonl")))

    monkeypatch.setattr(data_files, "load_dataset", load_dataset)
    values = {"dataset_name": "a/b", "gap_dataset_name": "a/b", "dataset_config": "hard", "dataset_test_split": "held"}
    script = PumaScriptArguments(**values, gap_eval_steps=1)
    values = {"bf16": False, "use_cpu": True, "report_to": "none", "dataset_num_proc": 1, "image_root": str(folder)}
    training = PumaKLConfig(str(folder / "out"), **values)
    pairs = load_gap_pairs(script, training, processor, get_family(tiny_model().config), NOTHING)
    assert len(pairs) == 4 and set(asked[1:]) == {("a/b", "hard", "held")}
    assert asked[0] == ("a/b", "hard", "train")


@pytest.mark.parametrize("given", [{"gap_eval_steps": 5}, {"gap_dataset_name": "pairs.jsonl"}])
def test_one_of_both_settings_alone(given):
    with pytest.raises(ConfigError, match="is set without"):
        PumaScriptArguments(dataset_name="train.jsonl", **given)


def test_metrics_of_another_step_do_not_count():
    callback = GapCallback(None, None, 5)
    callback.measured = (4, {"eval_gap": 0.5})
    metrics = {"eval_loss": 1.0}
    args, state = SimpleNamespace(metric_for_best_model="loss"), SimpleNamespace(global_step=5)
    callback.on_evaluate(args, state, None, metrics=metrics)
    assert metrics == {"eval_loss": 1.0}
    callback.on_evaluate(args, SimpleNamespace(global_step=4), None, metrics=metrics)
    assert metrics == {"eval_loss": 1.0, "eval_gap": 0.5}
