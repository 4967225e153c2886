"""The curves of a run, `curves.png`: what a person looks at to see whether it is healthy."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from .charts import chart
from .hub import CURVES


ACCURACIES = ("mean_token_accuracy", "teacher_mean_token_accuracy")
# Title → metric → its name in the legend; the colours are the same in all panels: the first is the student's
PANELS = {
    "Loss": {"loss": "loss"},
    "KL per answer token": {
        "kl": "weighted",
        "forward_kl": "forward",
        "reverse_kl": "reverse",
        "on_policy/kl": "sampled answers",
    },
    "Cross-entropy per answer token": {"ce": "student", "teacher_ce": "teacher"},
    "Token accuracy": dict(zip(ACCURACIES, ("student", "teacher"), strict=True)),
    "Sampled answers": {"completions/clipped_ratio": "cut off", "completions/repeated_ngrams": "repeated 4-grams"},
    "Length of sampled answers": {"completions/mean_length": "tokens"},
    "Accuracy by generation": {"vision_rich_accuracy": "vision-rich", "text_rich_accuracy": "text-rich"},
    "Modality gap by generation": {"gap": "text-rich - vision-rich"},
    "Gradient norm": {"grad_norm": "gradient norm"},
    "Learning rate": {"learning_rate": "learning rate"},
}
# Inches, and dots per inch: twice the pixels of a card that is 900 wide, where the smallest letters have 11 pixels
WIDTH, ROW_HEIGHT, DPI = 9.0, 2.6, 200
FONT_SIZE = 8


def draw_curves(log_history: list[dict[str, Any]], path: str | Path) -> None:
    """
    Draws loss, KL, cross-entropy, token accuracy with the gap between the sides, what sampled answers are like,
    accuracy and gap by generation, gradient norm and learning rate over the steps of a run: the batches of training as
    lines, evaluations as dashed lines of the same colours. A panel that has nothing is left out; nothing is written
    for a run without any of them.
    """
    panels = {title: collect_curves(log_history, names) for title, names in PANELS.items()}
    panels = {title: curves for title, curves in panels.items() if curves}
    if not panels:
        return
    columns = 2 if len(panels) in (2, 4) else min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    size = (WIDTH, ROW_HEIGHT * rows)
    with chart(path, columns, rows, DPI, figsize=size) as axes:
        for axis, (title, curves) in zip(axes, panels.items(), strict=False):
            _draw_panel(axis, title, curves)
        for axis in axes[len(panels) :]:
            axis.remove()


def _draw_panel(axis: Any, title: str, curves: dict[str, list[tuple[int, float]]]) -> None:
    labels, colors = PANELS[title], {}
    for name, points in curves.items():
        is_evaluation = name.startswith("eval_")
        metric = name.removeprefix("eval_")
        (line,) = axis.plot(
            *zip(*points, strict=True),
            "--" if is_evaluation else "-",
            color=colors.get(metric),
            label=labels[metric] + (", evaluation" if is_evaluation else ""),
            linewidth=1.2,
            marker="o" if len(points) < 20 else None,
            markersize=3,
        )
        colors[metric] = line.get_color()
    if set(ACCURACIES) <= curves.keys():
        student, teacher = (dict(curves[name]) for name in ACCURACIES)
        steps = sorted(student.keys() & teacher.keys())
        both = ([side[step] for step in steps] for side in (student, teacher))
        axis.fill_between(steps, *both, color="gray", alpha=0.2, label="gap")
    if title == "Token accuracy":
        low, high = axis.get_ylim()
        digits = 0 if high - low > 0.08 else 1  # else neighbouring ticks would read the same
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.{digits}%}")
    if title == "Learning rate":
        axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        axis.yaxis.get_offset_text().set_fontsize(FONT_SIZE)
    axis.set_title(title, fontsize=FONT_SIZE + 2)
    axis.set_xlabel("step", fontsize=FONT_SIZE)
    axis.tick_params(labelsize=FONT_SIZE)
    axis.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    axis.grid(alpha=0.3)
    if len(curves) > 1:
        axis.legend(fontsize=FONT_SIZE)


def collect_curves(log_history: list[dict[str, Any]], names: Iterable[str]) -> dict[str, list[tuple[int, float]]]:
    """
    Returns name → (step, value) of the metrics that were logged, in training and, with `eval_`, in evaluation.

    A value that is not finite is left out. A step that was logged twice, by a run and the one that resumed it, counts
    once.

    Args:
        log_history (`list[dict[str, Any]]`):
            `trainer.state.log_history`.
        names (`Iterable[str]`):
            Metrics, without `eval_`.
    """
    curves = {
        name: {logs["step"]: logs[name] for logs in log_history if name in logs and math.isfinite(logs[name])}
        for metric in names
        for name in (metric, f"eval_{metric}")
    }
    return {name: sorted(points.items()) for name, points in curves.items() if points}


class CurvesCallback(TrainerCallback):
    """Draws the curves of the run so far at every save, into the output folder."""

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            draw_curves(state.log_history, Path(args.output_dir) / CURVES)
