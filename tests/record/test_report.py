import math

import pytest
from PIL import Image
from transformers import TrainerControl, TrainerState

from puma_trl.config import PumaKLConfig
from puma_trl.record.report import PANELS, CurvesCallback, collect_curves, count_steps, describe_stage, draw_curves


HISTORY = [
    {"step": 1, "loss": 2.0, "kl": 0.5, "forward_kl": 0.6, "reverse_kl": 0.4, "ce": 3.0, "teacher_ce": 2.0}
    | {"mean_token_accuracy": 0.5, "teacher_mean_token_accuracy": 0.75, "modality_gap": 0.25},
    {"step": 2, "loss": 1.0, "kl": 0.4, "ce": 2.0, "mean_token_accuracy": 0.625, "teacher_mean_token_accuracy": 0.75}
    | {"modality_gap": 0.125},
    {"step": 2, "eval_loss": 1.5, "eval_kl": 0.3, "eval_ce": 1.0}
    | {"eval_mean_token_accuracy": 0.25, "eval_teacher_mean_token_accuracy": 0.75, "eval_modality_gap": 0.5},
    {"step": 2, "train_runtime": 1.0},
]


def test_curves_of_training_and_evaluation():
    curves = {title: collect_curves(HISTORY, names) for title, names in PANELS}
    assert curves["Loss"] == {"loss": [(1, 2.0), (2, 1.0)], "eval_loss": [(2, 1.5)]}
    assert list(curves["KL per answer token"]) == ["kl", "eval_kl", "forward_kl", "reverse_kl"]
    assert list(curves["Cross-entropy per answer token"]) == ["ce", "eval_ce", "teacher_ce"]
    gap = curves["Modality gap (teacher - student accuracy)"]
    assert gap == {"modality_gap": [(1, 0.25), (2, 0.125)], "eval_modality_gap": [(2, 0.5)]}
    assert len(curves["Token accuracy"]) == 4


def test_steps_are_in_order_and_count_once():
    history = [
        {"step": 3, "loss": 9.0},
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": math.nan},
        {"step": 3, "loss": 1.0},
    ]
    assert collect_curves(history, ("loss",)) == {"loss": [(1, 3.0), (3, 1.0)]}


def test_picture_has_a_panel_for_each_kind(tmp_path):
    draw_curves(HISTORY, tmp_path / "pairs.png")
    draw_curves([{"step": 1, "loss": 1.0, "mean_token_accuracy": 0.5}], tmp_path / "sft.png")
    draw_curves([{"step": 1, "train_runtime": 1.0}], tmp_path / "nothing.png")
    pairs, sft = Image.open(tmp_path / "pairs.png"), Image.open(tmp_path / "sft.png")
    assert pairs.width == pytest.approx(sft.width / 2 * 5, rel=0.01) and len(set(pairs.convert("L").tobytes())) > 10
    assert not (tmp_path / "nothing.png").exists()


@pytest.mark.parametrize("is_main", [True, False])
def test_curves_are_drawn_at_each_save(tmp_path, is_main):
    args = PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True)
    state = TrainerState(log_history=HISTORY, is_world_process_zero=is_main)
    CurvesCallback().on_save(args, state, TrainerControl())
    assert (tmp_path / "curves.png").exists() == is_main


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
    assert describe_stage(PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True, **settings)) == words


@pytest.mark.parametrize(
    ("settings", "steps"), [({"max_steps": 7}, 7), ({"num_train_epochs": 2}, 6), ({"num_train_epochs": 1.5}, 5)]
)
def test_count_steps(tmp_path, settings, steps):
    args = PumaKLConfig(
        str(tmp_path),
        bf16=False,
        use_cpu=True,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        **settings,
    )
    assert count_steps(args, 9) == steps  # five batches, the last step of an epoch of one
