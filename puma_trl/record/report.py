"""What a person sees: the table at the start of a run and the curves at its end."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback

from ..config import PumaKLConfig, rows_per_step
from ..data.images import image_size
from ..data.policy import ONE_SIDED, DataReport
from ..errors import printable
from ..models.pixels import cropped_share
from .charts import chart
from .hub import CURVES


# A processor that cuts away more of the pixels is told of; so many rows are looked at
MAX_CROPPED, CROP_SAMPLE = 0.01, 1000
PANELS = (
    ("Loss", ("loss",)),
    ("KL per answer token", ("kl", "forward_kl", "reverse_kl")),
    ("Cross-entropy per answer token", ("ce", "teacher_ce")),
    ("Token accuracy", ("mean_token_accuracy", "teacher_mean_token_accuracy")),
    ("Modality gap (teacher - student accuracy)", ("modality_gap",)),
)


def describe_stage(args: PumaKLConfig) -> str:
    """Returns one line that says what the step does."""
    if not args.use_kl:
        return "SFT (cross-entropy on the answer)"
    return (
        f"PUMA: {args.lambda_kl:g} · [{args.alpha_kl:g} forward KL + {1 - args.alpha_kl:g} reverse KL] + "
        f"{1 - args.lambda_kl:g} · CE, temperature {args.temp_kl:g}"
        + (", standardised logits" if args.standardize_logits else "")
    )


def count_steps(args: PumaKLConfig, num_rows: int) -> int:
    """Returns the number of optimizer steps of a run over `num_rows` rows, counted as Trainer counts them."""
    if args.max_steps > 0:
        return args.max_steps
    batches = math.ceil(num_rows / (args.per_device_train_batch_size * args.world_size))
    return math.ceil(args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps))


def print_startup(
    args: PumaKLConfig,
    model_name: str,
    parts: dict[str, tuple[int, int]],
    reports: dict[str, DataReport],
    num_rows: int,
    more: dict[str, str],
) -> None:
    """
    Prints the table that opens a run.

    Args:
        args ([`PumaKLConfig`]):
            Training arguments.
        model_name (`str`):
            Class and source of the model.
        parts (`dict[str, tuple[int, int]]`):
            Part → (trainable, all) numbers of parameters.
        reports (`dict[str, DataReport]`):
            What [`load_data`] tells of each split.
        num_rows (`int`):
            Number of training rows; with packing, of what they are packed into.
        more (`dict[str, str]`):
            Further lines; those without a text are left out.
    """
    table = Table(title="Math-PUMA", show_header=False)
    table.add_row("Model", model_name)
    if args.trust_remote_code:
        table.add_row("Remote code", "[bold]runs code from the model's repository[/bold]")
    table.add_row("Step", describe_stage(args))
    if args.use_kl:
        table.add_row("Teacher", args.teacher)
    for part, (trainable, total) in sorted(parts.items()):
        table.add_row(f"Trains: {part}", f"{trainable:,} of {total:,} parameters")
    trainable, total = (sum(counts) for counts in zip(*parts.values(), strict=True))
    table.add_row("Trains in all", f"{trainable:,} of {total:,} parameters ({trainable / total:.1%})")
    for split, report in reports.items():
        for name, value in describe_report(report):
            table.add_row(f"{name}: {split}", escape(printable(value)))
    rows = rows_per_step(args)
    table.add_row(
        "Global batch size",
        f"{rows} = {args.per_device_train_batch_size} per device × {args.gradient_accumulation_steps} accumulation × "
        f"{args.world_size} processes",
    )
    steps = count_steps(args, num_rows)
    table.add_row("Steps", f"{steps:,} ({steps * rows / num_rows:.2f} epochs)")
    for name, value in more.items():
        if value:
            table.add_row(name, value)
    Console().print(table)


def describe_report(report: DataReport) -> list[tuple[str, str]]:
    """Returns the lines of the table about a split: what, how many."""
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items()) or "none dropped"
    pictures = ", ".join(f"{side} {count:,}" for side, count in report.images.items() if side != ONE_SIDED)
    lines = [
        ("Rows", f"{report.rows_kept:,} of {report.rows_read:,} ({dropped})"),
        ("Pictures", pictures or f"{report.images.get(ONE_SIDED, 0):,}"),
        ("Answer tokens", f"{report.answer_tokens:,}"),
    ]
    return lines + ([("Columns not read", ", ".join(report.unread))] if report.unread else [])


def describe_cropping(rows: Dataset, processor: ProcessorMixin | PreTrainedTokenizerBase) -> str:
    """
    Returns what a processor cuts off pictures, if it is more than `MAX_CROPPED` of their pixels, else an empty text.

    Args:
        rows ([`~datasets.Dataset`]):
            Checked rows; the pictures of the first `CROP_SAMPLE` are looked at.
        processor ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`]):
            Processor of the model.
    """
    names = [name for name in ("image_url", "image_url_2") if name in rows.column_names]
    sample = rows.select(range(min(CROP_SAMPLE, len(rows)))).select_columns(names)
    share = cropped_share(processor, (image_size(image) for row in sample for name in names for image in row[name]))
    if share <= MAX_CROPPED:
        return ""
    return (
        f"the processor cuts away {share:.1%} of the pictures' pixels (first {len(sample):,} rows): it crops to the "
        "centre. Set `do_center_crop` to false in preprocessor_config.json"
    )


def draw_curves(log_history: list[dict[str, Any]], path: str | Path) -> None:
    """
    Draws loss, KL, cross-entropy, both accuracies and the modality gap over the steps of a run: the batches of
    training as lines, evaluations as dashed lines of the same colours. Nothing is written for a run without any of
    them.

    Args:
        log_history (`list[dict[str, Any]]`):
            `trainer.state.log_history`.
        path (`str` or `Path`):
            The PNG to write.
    """
    panels = [(title, curves) for title, names in PANELS if (curves := collect_curves(log_history, names))]
    if not panels:
        return
    with chart(path, len(panels), figsize=(4.5 * len(panels), 3.5)) as axes:
        for axis, (title, curves) in zip(axes, panels, strict=True):
            _draw_panel(axis, title, curves)


def _draw_panel(axis: Any, title: str, curves: dict[str, list[tuple[int, float]]]) -> None:
    colors: dict[str, str] = {}
    for name, points in curves.items():
        style = "--" if name.startswith("eval_") else "-"
        (line,) = axis.plot(
            *zip(*points, strict=True),
            style,
            color=colors.get(name.removeprefix("eval_")),
            label=name,
            marker="o" if len(points) < 20 else None,
        )
        colors[name.removeprefix("eval_")] = line.get_color()
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


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
