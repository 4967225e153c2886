"""How far a model's answer distributions on both sides of a pair are apart, per answer token, without generation."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from ..data.collator import DataCollatorForPumaPairs, split_sides
from ..errors import EvaluationError
from ..models.families import Family
from ..step.reference import puma_loss
from .progress import Progress


def shuffle_teachers(rows: Dataset, seed: int) -> list[int]:
    """Returns, for each row, the position of another one whose text-rich side replaces its own in the control."""
    if len(rows) < 2:
        raise EvaluationError("The shuffled-teacher control needs at least two pairs.")
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return [other for _, other in sorted(zip(order, order[1:] + order[:1], strict=True))]


@torch.inference_mode()
def measure_divergence(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    family: Family,
    rows: Dataset,
    batch_size: int,
    title: str,
    seed: int = 0,
) -> list[dict[str, float]]:
    """
    Measures the divergence between both sides' answer distributions, teacher = text-rich side.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, which reads both sides.
        processor ([`~transformers.ProcessorMixin`]):
            Its processor.
        family ([`Family`]):
            Its family.
        rows ([`~datasets.Dataset`]):
            Checked pairs.
        batch_size (`int`):
            Pairs in a batch.
        title (`str`):
            Words of the progress bar.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the control's shuffle.

    Returns:
        Per pair, means over its answer tokens in nats: `forward_kl` = KL(text-rich‖vision-rich), `reverse_kl`, the
        same with the text-rich side of another problem (`shuffled_…`), and `num_tokens`.
    """
    collator = DataCollatorForPumaPairs(processor, family, placeholder_sides=())
    others = shuffle_teachers(rows, seed)
    lengths = rows["length"][:]
    order = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)
    results: list[dict[str, float]] = [{}] * len(rows)
    with Progress(f"{title}, divergence", len(rows)) as progress:
        for start in range(0, len(order), batch_size):
            positions = order[start : start + batch_size]
            pairs = [rows[position] for position in positions]
            strangers = [
                pair | {name: rows[others[position]][name] for name in ("image_url", "instruction", "history")}
                for pair, position in zip(pairs, positions, strict=True)
            ]
            student, teacher = split_sides(collator(pairs))
            _, stranger = split_sides(collator(strangers))
            student_logits = answer_logits(model, student)
            divergences = divergence_per_pair(student_logits, answer_logits(model, teacher))
            controls = divergence_per_pair(student_logits, answer_logits(model, stranger))
            for position, divergence, control in zip(positions, divergences, controls, strict=True):
                shuffled = {f"shuffled_{name}": control[name] for name in ("forward_kl", "reverse_kl")}
                results[position] = divergence | shuffled
            progress.advance(len(positions))
    return results


def answer_logits(model: PreTrainedModel, inputs: dict[str, Any]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """
    Runs one side and keeps what predicts the answer.

    Returns:
        Per row the logits (N, V) at the positions that predict its answer tokens, and these tokens (N,).
    """
    inputs = {name: value.to(model.device) for name, value in inputs.items() if torch.is_tensor(value)}
    labels = inputs.pop("labels")[:, 1:]
    is_answer = labels != -100
    # only the columns where some row has an answer are projected to the vocabulary
    columns = is_answer.any(dim=0).nonzero()[:, 0]
    logits = model(**inputs, use_cache=False, logits_to_keep=columns).logits
    return [
        (row[keep].float(), row_labels[keep])
        for row, row_labels, keep in zip(logits, labels[:, columns], is_answer[:, columns], strict=True)
    ]


def divergence_per_pair(
    student: Sequence[tuple[torch.Tensor, torch.Tensor]], teacher: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> list[dict[str, float]]:
    """Returns forward and reverse KL per answer token of each row, in nats, and the number of these tokens."""
    divergences = []
    for (student_logits, labels), (teacher_logits, _) in zip(student, teacher, strict=True):
        loss = puma_loss(student_logits, teacher_logits, labels, alpha_kl=0.5, lambda_kl=1.0, temp_kl=1.0)
        divergences.append(
            {
                "num_tokens": loss.num_tokens,
                "forward_kl": loss.forward_kl.item() / loss.num_tokens,
                "reverse_kl": loss.reverse_kl.item() / loss.num_tokens,
            }
        )
    return divergences
