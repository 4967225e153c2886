"""The table that opens a run."""

import pytest

from puma_trl.config import PumaKLConfig
from puma_trl.data.policy import DataReport
from puma_trl.record.report import (
    count_steps,
    describe_report,
    describe_sampling,
    describe_stage,
    print_startup,
)


STEPS_OF_4 = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


def make_args(tmp_path, **settings):
    return PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True, **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_kl": False}, "SFT (cross-entropy on the answer)"),
        (
            {"lambda_kl": 0.25, "alpha_kl": 0.1, "temp_kl": 2.0},
            "PUMA: 0.25 · [0.1 forward KL + 0.9 reverse KL] + 0.75 · CE, temperature 2",
        ),
    ],
)
def test_describe_stage(tmp_path, settings, words):
    assert describe_stage(make_args(tmp_path, **settings)) == words


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"on_policy_share": 1}, "the student writes all answers (temperature 1, at most 512 tokens); KL alone there"),
        (
            {"on_policy_share": 0.25, "temperature": 0.7, "top_k": 50, "generation_kwargs": {"typical_p": 0.9}},
            "the student writes the answers of 25% of the micro-batches (temperature 0.7, top_k 50, typical_p 0.9, "
            "at most 512 tokens); KL alone there",
        ),
    ],
)
def test_describe_sampling(tmp_path, settings, words):
    assert describe_sampling(make_args(tmp_path, **settings)) == words


@pytest.mark.parametrize(
    ("settings", "steps"), [({"max_steps": 7}, 7), ({"num_train_epochs": 2}, 6), ({"num_train_epochs": 1.5}, 5)]
)
def test_count_steps(tmp_path, settings, steps):
    args = make_args(tmp_path, **STEPS_OF_4, **settings)
    assert count_steps(args, 9) == steps  # five batches, the last step of an epoch of one


@pytest.mark.parametrize(("settings", "words"), [({}, "2.00 epochs"), ({"dataloader_drop_last": True}, "3.00 epochs")])
def test_epochs_are_those_of_trainer(tmp_path, capsys, settings, words):
    """An epoch of 9 rows is 3 steps: of 4, 4 and 1 row, the last of which may be dropped."""
    args = make_args(tmp_path, max_steps=6, **STEPS_OF_4, **settings)
    print_startup(args, "model", {"all": (1, 1)}, {}, 9, {})
    assert words in capsys.readouterr().out


def test_steps_that_an_epoch_does_not_fill_are_told(tmp_path, capsys):
    args = make_args(tmp_path, gradient_accumulation_steps=100)
    print_startup(args, "model", {"all": (1, 1)}, {}, 9, {})
    assert "an epoch has 9" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("images", "use_kl", "words"),
    [
        ({"text-rich": 3, "vision-rich": 1200}, True, "text-rich 3, vision-rich 1,200"),
        ({"text-rich": 3, "vision-rich": 1200}, False, "1,200"),
        ({"one-sided": 7}, False, "7"),
    ],
)
def test_sides_are_named_where_both_are_read(images, use_kl, words):
    lines = dict(describe_report(DataReport(rows_read=9, rows_kept=8, dropped={"too long": 1}, images=images), use_kl))
    assert lines["Pictures"] == words and lines["Rows"] == "8 of 9 (1 too long)"
