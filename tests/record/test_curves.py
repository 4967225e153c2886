"""The curves of a run: what is drawn, from training and evaluation, and how many panels there are."""

import math

import matplotlib.pyplot as plt
import pytest
from PIL import Image
from transformers import TrainerControl, TrainerState

from puma_trl.config import PumaKLConfig
from puma_trl.record import curves
from puma_trl.record.curves import PANELS, CurvesCallback, collect_curves, draw_curves


HISTORY = [
    {"step": 1, "loss": 2.0, "kl": 0.5, "forward_kl": 0.6, "reverse_kl": 0.4, "ce": 3.0, "teacher_ce": 2.0}
    | {"mean_token_accuracy": 0.5, "teacher_mean_token_accuracy": 0.75, "grad_norm": 1.5, "learning_rate": 1e-4},
    {"step": 2, "loss": 1.0, "kl": 0.4, "ce": 2.0, "mean_token_accuracy": 0.625, "teacher_mean_token_accuracy": 0.75},
    {"step": 2, "eval_loss": 1.5, "eval_kl": 0.3, "eval_ce": 1.0}
    | {"eval_mean_token_accuracy": 0.25, "eval_teacher_mean_token_accuracy": 0.75},
    {"step": 2, "train_runtime": 1.0},
]
SFT = [{"step": 1, "loss": 1.0, "mean_token_accuracy": 0.5, "grad_norm": 1.0, "learning_rate": 1e-3}]


def test_curves_of_training_and_evaluation():
    found = {title: collect_curves(HISTORY, names) for title, names in PANELS.items()}
    assert found["Loss"] == {"loss": [(1, 2.0), (2, 1.0)], "eval_loss": [(2, 1.5)]}
    assert list(found["KL per answer token"]) == ["kl", "eval_kl", "forward_kl", "reverse_kl"]
    assert list(found["Cross-entropy per answer token"]) == ["ce", "eval_ce", "teacher_ce"]
    assert len(found["Token accuracy"]) == 4
    assert found["Gradient norm"] == {"grad_norm": [(1, 1.5)]} and found["Learning rate"]["learning_rate"] == [
        (1, 1e-4)
    ]


def test_steps_are_in_order_and_count_once():
    history = [
        {"step": 3, "loss": 9.0},
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": math.nan},
        {"step": 3, "loss": 1.0},
    ]
    assert collect_curves(history, ("loss",)) == {"loss": [(1, 3.0), (3, 1.0)]}


@pytest.mark.parametrize(
    ("history", "columns", "rows", "panels"),
    [(HISTORY, 3, 2, 6), (SFT, 2, 2, 4), (HISTORY[1:3], 2, 2, 4), (SFT[:0], 0, 0, 0)],
)
def test_a_panel_for_each_kind_and_none_without(tmp_path, monkeypatch, history, columns, rows, panels):
    """The width is always the same, twice the 900 pixels of a card."""
    drawn, sizes = [], []
    real_chart, real_panel = curves.chart, curves._draw_panel
    monkeypatch.setattr(
        curves, "chart", lambda path, *size, **more: sizes.append(size[:2]) or real_chart(path, *size, **more)
    )
    monkeypatch.setattr(
        curves, "_draw_panel", lambda axis, title, found: drawn.append(title) or real_panel(axis, title, found)
    )
    draw_curves(history, tmp_path / "curves.png")
    assert len(drawn) == panels and sizes == ([(columns, rows)] if panels else [])
    assert (tmp_path / "curves.png").exists() == bool(panels)
    if panels:
        picture = Image.open(tmp_path / "curves.png")
        assert picture.width == 1800 and len(set(picture.convert("L").tobytes())) > 10


@pytest.mark.parametrize("is_main", [True, False])
def test_curves_are_drawn_at_each_save(tmp_path, is_main):
    args = PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True)
    state = TrainerState(log_history=HISTORY, is_world_process_zero=is_main)
    CurvesCallback().on_save(args, state, TrainerControl())
    assert (tmp_path / "curves.png").exists() == is_main


@pytest.mark.parametrize(("low", "high", "label"), [(0.0, 0.02, "1.0%"), (0.0, 0.9, "1%")])
def test_ticks_of_small_accuracies_differ(low, high, label):
    with plt.rc_context({"backend": "agg"}):
        axis = plt.figure().add_subplot()
        curves._draw_panel(axis, "Token accuracy", {"mean_token_accuracy": [(1, low), (2, high)]})
        assert axis.yaxis.get_major_formatter()(0.01, 0) == label
        plt.close("all")
