"""
`gap`: how much worse a model answers when the numbers of a problem are in the picture instead of the text.

Two measures on the same pairs. By generation: accuracy on the text-rich and on the vision-rich side, and their
difference. Without generation: the divergence between the model's answer distributions on both sides, per answer
token, beside a control in which the text-rich side belongs to another problem.
"""

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from ..config import PumaKLConfig, PumaScriptArguments
from ..data.collator import DataCollatorForPumaPairs, split_sides
from ..data.load import load_data
from ..data.render import prompt_of
from ..errors import EvaluationError
from ..models.families import Family, get_family
from ..step.reference import puma_loss
from .answers import final_answer
from .files import write_json, write_jsonl
from .gap_report import draw_gap, name_models, print_gap
from .local_model import Generator, Prompt, load_for_generation
from .progress import Progress
from .settings import GapSettings


SIDES = {"text_rich": "", "vision_rich": "_2"}


def same_answer(reply: str, gold: str) -> bool:
    """
    Returns whether a reply ends in the answer that the gold output ends in.

    Both go through the `final` rule (last boxed expression, else what follows the last answer phrase, else the last
    option letter or number). Two answers are the same if they are equal numbers, or equal texts without regard to case
    and spaces. A gold output that ends in no answer is compared whole.
    """
    expected = final_answer(gold, "text")
    answer = final_answer(reply, "text") if expected is not None else reply
    expected = gold if expected is None else expected
    if answer is None:
        return False
    try:
        return float(answer.replace(",", "")) == float(expected.replace(",", ""))
    except ValueError:
        return "".join(answer.casefold().split()) == "".join(expected.casefold().split())


def load_pairs(
    data: str, image_root: str | None, num_rows: int | None, processor: ProcessorMixin, family: Family
) -> Dataset:
    """
    Loads and checks a pair file by the rules of training; the text-rich side gets the vision-rich side's answer.

    Args:
        data (`str`):
            File, folder or Hub data set with the published columns.
        image_root (`str`, *optional*):
            Folder that relative image paths start from.
        num_rows (`int`, *optional*):
            How many rows to use, from the first.
        processor ([`~transformers.ProcessorMixin`]):
            Processor of the model.
        family ([`Family`]):
            The model family.
    """
    with tempfile.TemporaryDirectory() as folder:
        splits, _ = load_data(
            PumaScriptArguments(dataset_name=[data]),
            PumaKLConfig(
                output_dir=folder,
                image_root=image_root,
                answer_mismatch="student",
                max_length=None,
                report_to="none",
                bf16=False,
                use_cpu=True,
            ),
            processor,
            family,
        )
    rows = splits["train"]
    return rows if num_rows is None else rows.select(range(min(num_rows, len(rows))))


def answer_pairs(generator: Generator, rows: Dataset, title: str) -> list[dict[str, Any]]:
    """
    Answers every problem on both sides.

    Returns:
        One row per pair with `{side}_reply` and `{side}_correct`.
    """
    results = [{"row_id": row_id, "gold": gold} for row_id, gold in zip(rows["row_id"], rows["output_2"], strict=True)]
    for side, suffix in SIDES.items():
        texts = [prompt_of(row, suffix) for row in rows]
        prompts = [
            Prompt(text, images or (), history)
            for (text, _, history), images in zip(texts, rows[f"image_url{suffix}"], strict=True)
        ]
        with Progress(f"{title}, {side} replies", len(prompts)) as progress:
            for batch in generator.generate(prompts):
                for position, reply in batch:
                    results[position][f"{side}_reply"] = reply
                    results[position][f"{side}_correct"] = same_answer(reply, results[position]["gold"])
                progress.advance(len(batch), sum(results[position][f"{side}_correct"] for position, _ in batch))
    return results


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


def summarise(label: str, model: str, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns accuracies, gap and divergences per answer token (all tokens of all pairs weigh the same)."""
    count, tokens = len(pairs), sum(pair["num_tokens"] for pair in pairs)
    accuracies = {f"{side}_accuracy": sum(pair[f"{side}_correct"] for pair in pairs) / count for side in SIDES}
    divergences = {
        name: sum(pair[name] * pair["num_tokens"] for pair in pairs) / tokens
        for name in ("forward_kl", "reverse_kl", "shuffled_forward_kl", "shuffled_reverse_kl")
    }
    gap = accuracies["text_rich_accuracy"] - accuracies["vision_rich_accuracy"]
    names = {"label": label, "model": model, "pairs": count, "answer_tokens": tokens}
    return names | accuracies | {"gap": gap} | divergences


def measure_model(settings: GapSettings, path: str, label: str) -> list[dict[str, Any]]:
    """
    Measures one model.

    Args:
        settings ([`GapSettings`]):
            The pairs, and how they are answered.
        path (`str`):
            Folder of the model.
        label (`str`):
            What the model is called in the results.

    Returns:
        The results per pair.

    Raises:
        EvaluationError: if the model cannot be loaded, its family is unknown, or the pairs cannot be used.
    """
    model, processor = load_for_generation(path, settings.dtype)
    try:
        family = get_family(model.config)
        rows = load_pairs(settings.data, settings.image_root, settings.num_rows, processor, family)
    except ValueError as error:
        raise EvaluationError(str(error)) from error
    longest = settings.max_new_tokens
    if longest is None:
        # room for a quarter more than the longest gold answer; a model that never stops is cut off there
        longest = 8 + max(rows["num_answer_tokens"]) * 5 // 4
    replies = answer_pairs(Generator(model, processor, settings.batch_size, longest), rows, label)
    divergences = measure_divergence(model, processor, family, rows, settings.batch_size, label)
    return [{"label": label} | reply | divergence for reply, divergence in zip(replies, divergences, strict=True)]


def run_gap(settings: GapSettings, models: list[str], output: Path) -> list[dict[str, Any]]:
    """
    Runs the subcommand: measures every model, prints one table, writes json, a PNG and the per-pair values.

    Args:
        settings ([`GapSettings`]):
            The pairs, and how they are answered.
        models (`list[str]`):
            Folders of the models, a row each.
        output (`Path`):
            The json; chart and per-pair values are written beside it.

    Returns:
        One summary per model.
    """
    summaries, pairs = [], []
    for path, label in zip(models, name_models(models), strict=True):
        results = measure_model(settings, path, label)
        summaries.append(summarise(label, path, results))
        pairs += results
        # after every model, so that a long comparison loses nothing when it is stopped
        write_json(output, {"data": settings.data, "models": summaries})
        write_jsonl(output.with_suffix(".pairs.jsonl"), pairs)
    print_gap(summaries)
    draw_gap(summaries, output.with_suffix(".png"))
    return summaries
