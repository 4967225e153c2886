"""What is logged: means over answer tokens whatever the batches are, by names of their own, nothing carried over."""

import re

import pytest
import torch

from puma_trl.config import PumaKLConfig
from puma_trl.mini import build_processor
from puma_trl.step.forward import SUMS
from puma_trl.train.completions import ON_POLICY_SUMS
from puma_trl.train.metrics import FIRST_STEPS, ON_POLICY, StepMetrics
from puma_trl.train.trainer import PumaKLTrainer


@pytest.fixture
def make_trainer(tmp_path, tiny_model):
    def make(train_dataset, eval_dataset=None, **values):
        values = {"bf16": False, "use_cpu": True, "report_to": "none", "max_steps": 2, "save_strategy": "no"} | values
        args = PumaKLConfig(str(tmp_path), learning_rate=0.01, logging_steps=1, **values)
        processor, model = build_processor("qwen2_vl"), tiny_model()
        model.set_attn_implementation("varlen" if args.padding_free else "sdpa")
        return PumaKLTrainer(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processor,
        )

    return make


def without_times(metrics):
    return {
        name: value for name, value in metrics.items() if not re.search("^epoch|runtime|per_second|preparation", name)
    }


@pytest.mark.parametrize("use_kl", [True, False])
def test_evaluation_does_not_depend_on_the_batch_size(make_trainer, pairs, use_kl):
    rows = pairs(7)
    results = [
        without_times(make_trainer(rows, rows, use_kl=use_kl, per_device_eval_batch_size=size).evaluate())
        for size in (1, 2, 7)
    ]
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        for name in results[0].keys() - {"eval_padding_share"}:
            assert other[name] == pytest.approx(results[0][name], rel=1e-5, abs=1e-7), name
    assert results[0].keys() >= {"eval_loss", "eval_entropy", "eval_mean_token_accuracy"}


@pytest.mark.parametrize("use_kl", [True, False])
def test_each_evaluation_set_has_its_names_and_values(make_trainer, pairs, use_kl):
    first, second = pairs(3), pairs(4, seed=1)
    trainer = make_trainer(first, {"a": first, "b": second}, use_kl=use_kl, eval_strategy="steps", eval_steps=1)
    both = without_times(trainer.evaluate())
    for name, rows in (("a", first), ("b", second)):
        alone = without_times(make_trainer(first, rows, use_kl=use_kl).evaluate())
        for key, value in alone.items():
            assert both[key.replace("eval_", f"eval_{name}_", 1)] == pytest.approx(value, rel=1e-6), key
    assert not {key for key in both if not key.startswith(("eval_a_", "eval_b_"))}
    trainer.train()
    logged = {key for logs in trainer.state.log_history for key in logs if key.startswith("eval_")}
    assert not {key for key in logged if not key.startswith(("eval_a_", "eval_b_"))}
    assert {"eval_a_loss", "eval_b_mean_token_accuracy"} <= logged


@pytest.mark.parametrize("use_kl", [True, False])
def test_predict_leaves_nothing_behind(make_trainer, pairs, use_kl):
    rows = pairs(5)
    trainer = make_trainer(rows, rows, use_kl=use_kl)
    before = without_times(trainer.evaluate())
    predicted = without_times(trainer.predict(pairs(6, seed=1)).metrics)
    assert without_times(trainer.evaluate()) == before
    assert {key.replace("test_", "eval_", 1) for key in predicted} == before.keys()
    same = without_times(trainer.predict(rows).metrics)
    assert {key.replace("test_", "eval_", 1): value for key, value in same.items()} == before


def test_an_evaluation_that_broke_leaves_nothing_behind(make_trainer, pairs, monkeypatch):
    rows = pairs(6)
    trainer = make_trainer(rows, rows, per_device_eval_batch_size=2)
    before = without_times(trainer.evaluate())
    step, calls = trainer.prediction_step, []

    def break_later(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("broken")
        return step(*args, **kwargs)

    monkeypatch.setattr(trainer, "prediction_step", break_later)
    with pytest.raises(RuntimeError, match="broken"):
        trainer.evaluate()
    monkeypatch.undo()
    assert without_times(trainer.evaluate()) == before


@pytest.mark.parametrize("settings", [{}, {"use_kl": False}, {"padding_free": True}])
def test_tokens_are_those_of_rows(make_trainer, pairs, settings):
    """A batch without a picture gets a blank one, which nobody has written and which depends on the batch size."""
    rows, counted = pairs(8, vision_rich_images=lambda index: index % 2), []
    for size in (1, 8):
        trainer = make_trainer(rows, per_device_train_batch_size=size, max_steps=-1, num_train_epochs=1, **settings)
        trainer.train()
        logs = [each for each in trainer.state.log_history if "loss" in each]
        counted.append(logs[-1]["num_tokens"])
        batches = list(trainer.get_train_dataloader())
        assert any("blank_tokens" in batch for batch in batches) == (size == 1)
    assert counted[0] == counted[1]
    if settings.get("padding_free"):  # without a blank picture every position is a token
        assert logs[0]["padding_share"] == 0


def test_losses_that_are_kept_hold_no_graph(make_trainer, pairs):
    trainer = make_trainer(pairs(2))
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    kept = [loss for _, loss in trainer._step_metrics._unchecked]
    assert loss.requires_grad and kept and not any(each.requires_grad for each in kept)


def test_gap_is_logged(make_trainer, pairs):
    trainer = make_trainer(pairs(4), pairs(4))
    trainer.train()
    for logs, prefix in ((trainer.state.log_history[0], ""), (trainer.evaluate(), "eval_")):
        gap = logs[f"{prefix}teacher_mean_token_accuracy"] - logs[f"{prefix}mean_token_accuracy"]
        assert logs[f"{prefix}modality_gap"] == gap


class OneProcess:
    def reduce(self, tensor, reduction):
        return tensor


def test_a_training_begins_anew():
    metrics = StepMetrics(torch.device("cpu"))
    for mode, names in (("train", SUMS), (ON_POLICY, ON_POLICY_SUMS)):  # of one that was interrupted
        metrics.add_sums(mode, torch.ones(len(names)))
    metrics.add_loss(["a"], torch.tensor(float("nan")))
    metrics.begin(7)
    assert metrics.reduce(OneProcess(), "train") == ({}, False) and metrics.total_train_tokens == 7


@pytest.mark.parametrize(
    ("teacher_ce", "teacher_correct", "is_worse"),
    [(11.0, 50.0, True), (7.0, 20.0, True), (7.0, 50.0, False), (7.6, 49.5, False), (7.0, 60.0, False)],
)
def test_one_warning_where_the_teacher_is_worse(teacher_ce, teacher_correct, is_worse):
    metrics = StepMetrics(torch.device("cpu"))
    values = dict.fromkeys(SUMS, 1.0) | {"ce": 750.0, "correct": 50.0, "num_tokens": 100.0}
    values |= {"teacher_ce": 100 * teacher_ce, "teacher_correct": teacher_correct}
    for step in range(FIRST_STEPS):
        metrics.add_sums("train", torch.tensor([values[name] for name in SUMS]))
        metrics.reduce(OneProcess(), "train")
        assert step + 1 == FIRST_STEPS or metrics.compare_sides(step + 1) is None
    warning = metrics.compare_sides(FIRST_STEPS)
    assert (warning is not None) == is_worse
    if is_worse:
        assert f"{teacher_ce:.3g}" in warning and "lower `lambda_kl`" in warning
    assert metrics.compare_sides(FIRST_STEPS + 1) is None


def test_exchanged_sides_are_told_in_a_run(make_trainer, pairs, monkeypatch):
    trainer = make_trainer(pairs(4))
    monkeypatch.setattr("puma_trl.train.metrics.MARGIN", -1.0)  # whatever the sides are
    with pytest.warns(UserWarning, match="The teacher predicts the answers worse") as told:
        trainer.train()
    assert sum("The teacher predicts" in str(warning.message) for warning in told) == 1
