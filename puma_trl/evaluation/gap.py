"""
`gap`: how much worse a model answers when the numbers of a problem are in the picture instead of the text.

Two measures on the same pairs. By generation: accuracy on the text-rich and on the vision-rich side, and their
difference. Without generation: the divergence between the model's answer distributions on both sides, per answer
token, beside a control in which the text-rich side belongs to another problem.
"""

import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import ProcessorMixin

from ..config import PumaKLConfig, PumaScriptArguments
from ..data.files import find_chunks, find_sources
from ..data.load import load_data
from ..data.readers import read_chunk
from ..errors import EvaluationError
from ..files import check_file
from ..models.families import Family, get_family
from .divergence import measure_divergence
from .files import write_json, write_jsonl
from .gap_answers import answer_pairs, longest_reply
from .gap_report import draw_gap, name_models, print_gap
from .gap_summary import GROUPS, compare_models, summarise
from .local_model import Generator, load_for_generation, load_for_prompts
from .settings import GapSettings, check_sampling


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


def read_groups(data: str, image_root: str | None) -> dict[str, dict[str, Any]]:
    """Returns row id → the `kind`, `level` and `modality` of a pair, of those rows that say them."""
    groups = {}
    sources = find_sources([data], image_root, None, "train")
    for chunk in find_chunks(sources):
        source = sources[chunk.source]
        for number, row in read_chunk(source, chunk, GROUPS):
            said = {name: row[name] for name in GROUPS if isinstance(row, dict) and row.get(name) is not None}
            if said:
                groups[source.row_id(number)] = said
    return groups


def check_pairs(settings: GapSettings, path: str) -> tuple[Dataset, Family]:
    """
    Checks the pairs with what reads them in a model, before its weights are loaded.

    Args:
        settings ([`GapSettings`]):
            The pairs.
        path (`str`):
            Folder of the model.

    Raises:
        EvaluationError: if the model's family is unknown or the pairs cannot be used.
    """
    config, processor = load_for_prompts(path)
    try:
        family = get_family(config)
        rows = load_pairs(settings.data, settings.image_root, settings.num_rows, processor, family)
    except ValueError as error:
        raise EvaluationError(str(error)) from error
    if len(rows) < 2:
        raise EvaluationError(f"{settings.data}: {len(rows)} pair. The shuffled-teacher control needs at least two.")
    return rows, family


def measure_model(
    settings: GapSettings, path: str, label: str, rows: Dataset, family: Family, groups: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """
    Measures one model.

    Args:
        settings ([`GapSettings`]):
            How the pairs are answered.
        path (`str`):
            Folder of the model.
        label (`str`):
            What the model is called in the results.
        rows ([`~datasets.Dataset`]):
            The pairs, checked for this model.
        family ([`Family`]):
            Its family.
        groups (`dict[str, dict[str, Any]]`):
            Row id → `kind`, `level` and `modality`.

    Returns:
        The results per pair.

    Raises:
        EvaluationError: if the model cannot be loaded.
    """
    model, processor = load_for_generation(path, settings.dtype)
    longest = longest_reply(rows, settings.max_new_tokens)
    replies = answer_pairs(Generator(model, processor, settings.batch_size, longest), rows, label)
    divergences = measure_divergence(model, processor, family, rows, settings.batch_size, label)
    return [
        {"label": label} | groups.get(reply["row_id"], {}) | reply | divergence
        for reply, divergence in zip(replies, divergences, strict=True)
    ]


def run_gap(settings: GapSettings, models: list[str], output: Path) -> list[dict[str, Any]]:
    """
    Runs the subcommand: checks the data, measures every model, prints one table, writes json, a PNG and the per-pair
    values.

    Args:
        settings ([`GapSettings`]):
            The pairs, and how they are answered.
        models (`list[str]`):
            Folders of the models, a row each.
        output (`Path`):
            The json; chart and per-pair values are written beside it.

    Returns:
        One summary per model.

    Raises:
        EvaluationError: if the pairs cannot be used or a model cannot be loaded.
    """
    if settings.num_rows is not None and settings.num_rows < 2:
        raise EvaluationError(f"`num_rows` is {settings.num_rows}, but the shuffled-teacher control needs two pairs.")
    check_sampling(settings.batch_size, 1 if settings.max_new_tokens is None else settings.max_new_tokens, 0.0, 1.0)
    for path in (output, output.with_suffix(".pairs.jsonl"), output.with_suffix(".png")):
        check_file(path)
    checked = [check_pairs(settings, path) for path in models]
    groups = read_groups(settings.data, settings.image_root)
    summaries: list[dict[str, Any]] = []
    pairs: dict[str, list[dict[str, Any]]] = {}
    for path, label, (rows, family) in zip(models, name_models(models), checked, strict=True):
        pairs[label] = measure_model(settings, path, label, rows, family, groups)
        summaries.append(summarise(label, path, pairs[label]))
        # after every model, so that a long comparison loses nothing when it is stopped
        comparisons = compare_models(pairs)
        write_json(output, {"data": settings.data, "models": summaries, "comparisons": comparisons})
        write_jsonl(output.with_suffix(".pairs.jsonl"), [pair for results in pairs.values() for pair in results])
    print_gap(summaries, comparisons)
    draw_gap(summaries, output.with_suffix(".png"))
    return summaries
