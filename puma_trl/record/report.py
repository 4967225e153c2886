"""What a person sees at the start of a run: the table of what it is made of."""

import math

from datasets import Dataset
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..config import PumaKLConfig, rows_per_step
from ..data.images import image_size
from ..data.policy import DataReport
from ..errors import printable
from ..models.pixels import cropped_share
from .provenance import name_stage


# A processor that cuts away more of the pixels is told of; so many rows are looked at
MAX_CROPPED, CROP_SAMPLE = 0.01, 1000


def describe_stage(args: PumaKLConfig) -> str:
    """Returns one line that says what the step does."""
    if not args.use_kl:
        return "SFT (cross-entropy on the answer)"
    return (
        f"PUMA: {args.lambda_kl:g} · [{args.alpha_kl:g} forward KL + {1 - args.alpha_kl:g} reverse KL] + "
        f"{1 - args.lambda_kl:g} · CE, temperature {args.temp_kl:g}"
        + (", standardised logits" if args.standardize_logits else "")
    )


def describe_sampling(args: PumaKLConfig) -> str:
    """Returns one line that says how much is learned from answers of the student's own, and how it samples them."""
    which = (
        "all answers"
        if args.on_policy_share == 1
        else f"the answers of {100 * args.on_policy_share:g}% of the micro-batches"
    )
    limits = {"top_p": 1, "top_k": 0, "min_p": None, "repetition_penalty": 1}
    more = [f"{name} {getattr(args, name):g}" for name, plain in limits.items() if getattr(args, name) != plain]
    more += [f"{name} {value}" for name, value in (args.generation_kwargs or {}).items()]
    how = ", ".join([f"temperature {args.temperature:g}", *more, f"at most {args.max_completion_length:,} tokens"])
    return f"the student writes {which} ({how}); KL alone there"


def count_steps(args: PumaKLConfig, num_rows: int) -> int:
    """Returns the number of optimizer steps of a run over `num_rows` rows, counted as Trainer counts them."""
    if args.max_steps > 0:
        return args.max_steps
    return math.ceil(args.num_train_epochs * steps_per_epoch(args, num_rows))


def steps_per_epoch(args: PumaKLConfig, num_rows: int) -> int:
    """Returns the number of optimizer steps of an epoch, whose last one takes the rows that are left."""
    batches = num_rows / (args.per_device_train_batch_size * args.world_size)
    batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
    return math.ceil(batches / args.gradient_accumulation_steps)


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
    number, stage = name_stage(args.use_kl, args.trainable_parts)
    table = Table(title=f"Math-PUMA, stage {number} of 3: {stage}", show_header=False)
    table.add_row("Model", model_name)
    if args.trust_remote_code:
        table.add_row("Remote code", "[bold]runs code from the model's repository[/bold]")
    table.add_row("Step", describe_stage(args))
    if args.use_kl:
        table.add_row("Teacher", args.teacher)
    if args.on_policy_share:
        table.add_row("On-policy", describe_sampling(args))
    for part, (trainable, total) in sorted(parts.items()):
        table.add_row(f"Trains: {part}", f"{trainable:,} of {total:,} parameters")
    trainable, total = (sum(counts) for counts in zip(*parts.values(), strict=True))
    table.add_row("Trains in all", f"{trainable:,} of {total:,} parameters ({trainable / total:.1%})")
    for split, report in reports.items():
        for name, value in describe_report(report, args.use_kl, args.on_policy_share if split == "train" else 0):
            table.add_row(f"{name}: {split}", escape(printable(value)))
    rows = rows_per_step(args)
    table.add_row(
        "Global batch size",
        f"{rows} = {args.per_device_train_batch_size} per device × {args.gradient_accumulation_steps} accumulation × "
        f"{args.world_size} processes" + (f", but an epoch has {num_rows}: steps of fewer" if rows > num_rows else ""),
    )
    steps = count_steps(args, num_rows)
    table.add_row("Steps", f"{steps:,} ({steps / steps_per_epoch(args, num_rows):.2f} epochs)")
    for name, value in more.items():
        if value:
            table.add_row(name, value)
    Console().print(table)


def describe_report(report: DataReport, use_kl: bool, on_policy_share: float = 0) -> list[tuple[str, str]]:
    """
    Returns the lines of the table about a split: what, how many; both sides only where both are read, and rows without
    an answer only where answers are sampled.
    """
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items()) or "none dropped"
    pictures = ", ".join(f"{side} {count:,}" for side, count in report.images.items())
    lines = [
        ("Rows", f"{report.rows_kept:,} of {report.rows_read:,} ({dropped})"),
        ("Pictures", pictures if use_kl else f"{report.trained_images:,}"),
        ("Answer tokens", f"{report.answer_tokens:,}"),
    ]
    if on_policy_share == 1:
        lines.append(("Without answer", f"{report.rows_without_answer:,}; no answer of the data is trained on"))
    elif report.rows_without_answer:
        lines.append(("Without answer", f"{report.rows_without_answer:,}, trained on in on-policy micro-batches only"))
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
