"""The lines of a run: what they say, and when there are none."""

import logging
import shutil

import pytest
from transformers import PrinterCallback
from transformers.trainer_callback import ProgressCallback

from puma_trl.config import PumaKLConfig
from puma_trl.mini import build_processor
from puma_trl.record import console
from puma_trl.record.console import BarsAndLines, Lines, describe_log, word_count, word_memory, word_time
from puma_trl.train.trainer import PumaKLTrainer


PAIRS = {"loss": 0.4312, "kl": 0.56, "ce": 0.3, "teacher_ce": 0.2, "modality_gap": 0.0789, "mean_token_accuracy": 0.9}
SPEED = {"perf/tokens_per_second": 1234.5, "perf/peak_memory_gib": 31.2, "learning_rate": 1e-5, "epoch": 0.5}


@pytest.mark.parametrize(
    ("logs", "line"),
    [
        (
            PAIRS | SPEED,
            "step 120/1000 · loss 0.43 · kl 0.56 · ce 0.30 · gap 7.9 pt · 1.2k tok/s · 31 GiB · 12 min left",
        ),
        ({"loss": 1.5, "mean_token_accuracy": 0.612}, "step 120/1000 · loss 1.50 · accuracy 61.2% · 12 min left"),
        (
            {"eval_geometry_loss": 0.02, "eval_geometry_mean_token_accuracy": 0.5, "eval_geometry_exact": 0.25}
            | {"eval_geometry_runtime": 3.0, "epoch": 1.0},
            "step 120/1000 · eval geometry · loss 0.02 · accuracy 50.0% · exact 0.25",
        ),
        ({"train_runtime": 754.0, "train_loss": 0.5}, "120 steps · 13 min in training · mean loss 0.50"),
        (
            {"loss": 0.03, "on_policy/kl": 0.03, "on_policy/entropy": 1.0}
            | {"completions/mean_length": 21.4, "completions/clipped_ratio": 0.0},
            "step 120/1000 · loss 0.03 · on-policy kl 0.03 · 21 tokens an answer · 12 min left",
        ),
        (
            {"loss": 0.0, "completions/mean_length": 512.0, "completions/clipped_ratio": 1.0},
            "step 120/1000 · loss 0 · 512 tokens an answer, 100% cut off · 12 min left",
        ),
        ({"mine": 3, "epoch": 1.0}, "step 120/1000 · mine 3"),
    ],
)
def test_line(logs, line):
    assert describe_log(logs, 120, 1000, 740) == line


def test_words():
    assert [word_count(value) for value in (950, 999.7, 1234, 12_345, 2.5e6)] == ["950", "1.0k", "1.2k", "12k", "2.5M"]
    assert [word_memory(value) for value in (0.63, 9.96, 31)] == ["0.6 GiB", "10 GiB", "31 GiB"]
    times = [word_time(value) for value in (45, 59.6, 750, 3599, 12_000, 100_000)]
    assert times == ["45 s", "1 min", "12 min", "1 h 0 min", "3 h 20 min", "1 d 3 h"]


@pytest.fixture
def make_trainer(tmp_path, tiny_model, pairs):
    def make(callbacks=None, **values):
        values = {"disable_tqdm": True, "max_steps": 4, "logging_steps": 1, "report_to": "none"} | values
        args = PumaKLConfig(str(tmp_path / "out"), bf16=False, use_cpu=True, **values)
        rows = pairs(4)
        return PumaKLTrainer(tiny_model(), args, None, rows, rows, build_processor(), callbacks=callbacks)

    return make


def kinds(trainer):
    return [
        type(each)
        for each in trainer.callback_handler.callbacks
        if isinstance(each, (PrinterCallback, ProgressCallback))
    ]


def test_what_prints(make_trainer):
    assert kinds(make_trainer()) == [Lines]
    assert kinds(make_trainer(disable_tqdm=False)) == [BarsAndLines]
    assert kinds(make_trainer([PrinterCallback()], disable_tqdm=False)) == [PrinterCallback, BarsAndLines]
    trainer = make_trainer()
    trainer.remove_callback(PrinterCallback)  # as TRL's users do
    assert kinds(trainer) == []


@pytest.mark.parametrize(("log_level", "num_lines"), [("passive", 5), ("warning", 5), ("error", 0)])
def test_lines_of_a_run(make_trainer, capsys, log_level, num_lines):
    level = logging.getLogger("transformers").level
    try:
        make_trainer(log_level=log_level, eval_strategy="steps", eval_steps=4, max_steps=3).train()
    finally:
        logging.getLogger("transformers").setLevel(level)
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if " · " in line]
    assert len(lines) == num_lines and "{" not in out
    if num_lines:
        assert lines[0].startswith("step 1/3 · loss ") and "tok/s" in lines[0]
        assert lines[3].startswith("step 3/3 · eval · loss ") and lines[4].startswith("3 steps · ")


def test_after_a_resume_numbers_are_those_of_the_session(make_trainer, capsys, monkeypatch):
    """The count of tokens goes on; time left and speed are of the steps since the resume."""
    whole = make_trainer(save_steps=2)
    whole.train()
    shutil.rmtree(whole.args.output_dir + "/checkpoint-4")
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    resumed = make_trainer(save_steps=2)
    capsys.readouterr()
    resumed.train(str(whole.args.output_dir) + "/checkpoint-2")
    for name in ("num_tokens", "loss"):
        values = [[logs[name] for logs in trainer.state.log_history if name in logs] for trainer in (whole, resumed)]
        assert values[0] == values[1]
    # one step in 10 seconds, one left
    assert "step 3/4" in (line := capsys.readouterr().out.splitlines()[0]) and line.endswith("10 s left")
    speed = [logs["perf/samples_per_second"] for logs in resumed.state.log_history if "loss" in logs]
    assert len(speed) == 4 and max(speed) < 1e5


def test_nothing_is_carried_to_the_next_training(make_trainer, monkeypatch):
    trainer = make_trainer(save_strategy="no")
    step = trainer.training_step

    def fail(*args, **kwargs):
        step(*args, **kwargs)
        raise RuntimeError("broken")

    monkeypatch.setattr(trainer, "training_step", fail)
    with pytest.raises(RuntimeError, match="broken"):
        trainer.train()
    monkeypatch.undo()
    trainer.train()
    fresh = make_trainer(save_strategy="no")
    fresh.train()
    again, first = (each.state.log_history[0] for each in (trainer, fresh))
    assert again["num_tokens"] == first["num_tokens"] and again["padding_share"] == first["padding_share"]
