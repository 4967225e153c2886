"""
Data sets → checked rows: what training and evaluation read, and a report of what was dropped and why.

Everything is checked before training starts, in parallel, and kept in the cache of datasets. The cache is used again as
long as the data files, the processor, the settings and the size and time of every image file are the same.
"""

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import transformers
from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets
from datasets.exceptions import DatasetGenerationError
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..config import PumaKLConfig, PumaScriptArguments
from ..errors import DataError
from ..models.families import Family
from . import checks as data_checks
from . import files as data_files
from . import images
from .checks import FEATURES, SIDE_NAMES, RowChecker, TokenCounter, render_answer, render_prompt
from .files import DROPPED, PAIR_COLUMNS, SIDE_COLUMNS, Chunk, Source, find_chunks, find_sources
from .images import image_stamp, open_image


__all__ = ["DataError", "DataReport", "load_data", "open_image", "render_answer", "render_prompt"]

CHUNK_FEATURES = Features({name: Value("int64") for name in Chunk._fields})

# By default, cores up to this number check the data.
MAX_PROCESSES = 16

MISMATCH = "answers differ"
REMEDIES = {
    MISMATCH: "Set `answer_mismatch: student` to give the text-rich side the vision-rich side's answer, or `answer_mismatch: "
    "drop` to leave such pairs out.",
    "too long": "A larger `max_length` keeps long rows.",
    "missing image": "Relative image paths start from `image_root`, by default the folder of the data file.",
}


@dataclass
class DataReport:
    """
    What happened to the rows of a split.

    Args:
        rows_read (`int`):
            Number of rows in the data files.
        rows_kept (`int`):
            Number of rows to train or evaluate on.
        dropped (`dict[str, int]`):
            Reason → number of rows left out.
        answer_tokens (`int`):
            Number of answer tokens in the rows kept, end tokens included.
    """

    rows_read: int
    rows_kept: int
    dropped: dict[str, int] = field(default_factory=dict)
    answer_tokens: int = 0


def load_data(
    script_args: PumaScriptArguments,
    training_args: PumaKLConfig,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    family: Family,
) -> tuple[DatasetDict, dict[str, DataReport]]:
    """
    Loads and checks the training data and, if there is any, the evaluation data.

    With several processes the first one of each machine does the work, and the others read its cache. Rows that are
    dropped are written to `dropped_rows.jsonl` in `output_dir`.

    Args:
        script_args ([`PumaScriptArguments`]):
            Where the data is and what happens to bad rows.
        training_args ([`PumaKLConfig`]):
            `use_kl`, `max_length`, `seed`, `dataset_num_proc` (default: every core, up to 16) and `output_dir` are used.
        processor ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`]):
            Processor or tokenizer of the model.
        family ([`Family`]):
            The model family.

    Returns:
        `tuple[DatasetDict, dict[str, DataReport]]`: the splits `"train"` and, if asked for, `"eval"`, and what was
        dropped from each. The columns are `row_id` (`"file.jsonl:17"`, counted from 0), `image_url` (a list of
        `{"bytes", "path"}`, empty without images), `instruction`, `output`, for pairs the same with `_2`, `length`
        (tokens of prompt and answer with image tokens; of both sides together when both are trained on) and
        `num_answer_tokens`.

    Raises:
        DataError: if data cannot be read, is empty, lacks the columns that `use_kl` needs, or has rows that cannot be
            used and the policy is to stop.
    """
    splits, reports, dropped = {}, {}, []
    names = {"train": script_args.dataset_name, "eval": script_args.eval_dataset_name}
    with training_args.main_process_first(desc="loading and checking the data"):
        for split, split_names in names.items():
            if split_names:
                checked = _check_split(split, split_names, script_args, training_args, processor, family)
                splits[split], reports[split] = _apply_policy(checked, split, script_args, training_args, dropped)
    if dropped and training_args.process_index == 0:
        _write_dropped(dropped, Path(training_args.output_dir))
    if script_args.eval_split_size is not None:
        _hold_out(splits, reports, script_args.eval_split_size, training_args.seed)
    return DatasetDict(splits), reports


def _check_split(
    split: str,
    names: list[str],
    script_args: PumaScriptArguments,
    training_args: PumaKLConfig,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    family: Family,
) -> Dataset:
    """Returns the rows of a split, each with its `problem`, from the cache if nothing has changed."""
    sources = find_sources(names, script_args.image_root, script_args.dataset_config, script_args.dataset_train_split)
    checker = RowChecker(
        sources=sources,
        counter=TokenCounter(processor, family),
        use_kl=training_args.use_kl,
        max_length=training_args.max_length,
        student_answers=script_args.answer_mismatch == "student",
    )
    files = [(source.name, source.kind, source.root, source.version) for source in sources]
    code = [Path(module.__file__).read_text(encoding="utf-8") for module in (data_checks, data_files, images)]
    settings = (checker.use_kl, checker.max_length, checker.student_answers, family, _processor_digest(processor))
    chunks = _divide(sources, _digest(files, code))
    num_proc = min(training_args.dataset_num_proc or min(os.cpu_count(), MAX_PROCESSES), len(chunks))
    arguments = {
        "batched": True,
        "batch_size": 1,
        "features": FEATURES,
        "remove_columns": chunks.column_names,
        "num_proc": num_proc if num_proc > 1 else None,
        "new_fingerprint": _digest(files, code, settings, transformers.__version__),
        "desc": f"Checking the {split} data",
    }
    rows = chunks.map(checker, load_from_cache_file=True, **arguments)
    if _images_changed(rows):
        rows = chunks.map(checker, load_from_cache_file=False, **arguments)
    _require_rows(sources, rows, split)
    return rows


def _divide(sources: list[Source], fingerprint: str) -> Dataset:
    """Returns the chunks of all sources, from the cache if the files are the same."""
    try:
        return Dataset.from_generator(
            _chunk_rows,
            features=CHUNK_FEATURES,
            gen_kwargs={"sources": tuple(sources)},  # a list would be taken for shards
            fingerprint=fingerprint,
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from None
        raise


def _chunk_rows(sources: tuple[Source, ...]) -> Iterator[dict[str, int]]:
    for chunk in find_chunks(sources):
        yield chunk._asdict()


def _require_rows(sources: list[Source], rows: Dataset, split: str) -> None:
    """Stops if some source has no row."""
    filled = set(rows.data.column("source").unique().to_pylist())
    empty = [source.path or source.name for position, source in enumerate(sources) if position not in filled]
    if empty:
        raise DataError(f"The {split} data is empty: no row in {', '.join(empty)}. Name data with rows.")


def _digest(*values: Any) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:32]


def _processor_digest(processor: ProcessorMixin | PreTrainedTokenizerBase) -> str:
    """Hashes the files that a processor saves, because its objects do not hash the same in every process."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _images_changed(rows: Dataset) -> bool:
    """Whether an image file has appeared, changed or gone since the rows were checked."""
    stamps = {}
    for side in SIDE_NAMES:
        images = rows.data.column(f"image_url{side}").chunks
        for images_of_chunk, stamps_of_chunk in zip(
            images, rows.data.column(f"image_stamps{side}").chunks, strict=True
        ):
            paths = pc.struct_field(pc.list_flatten(images_of_chunk), "path")
            stamps.update(zip(paths.to_pylist(), pc.list_flatten(stamps_of_chunk).to_pylist(), strict=True))
    return any(stamp != 0 and stamp != image_stamp({"bytes": None, "path": path}) for path, stamp in stamps.items())


def _require_pairs(rows: Dataset, problems: np.ndarray, is_pair: np.ndarray, split: str, use_kl: bool) -> None:
    """Stops when `use_kl` needs pairs and a file has none; in files with pairs, rows without become problems."""
    sources = rows.data.column("source").to_numpy()
    good = ~problems.astype(bool)
    for source in np.unique(sources):
        single = (sources == source) & good & ~is_pair
        if not single.any():
            continue
        example = int(np.flatnonzero(single)[0])
        if ((sources == source) & good & is_pair).any():
            problems[single] = (
                "missing value: `instruction_2` and `output_2` are missing or null, unlike in other rows"
            )
        elif use_kl:
            raise DataError(
                f"`use_kl: true` trains on pairs, but '{rows[example]['row_id'].rsplit(':', 1)[0]}' of the {split} data "
                f"has no `instruction_2` and no `output_2`. Give pairs ({', '.join(SIDE_COLUMNS + PAIR_COLUMNS)}), or "
                "set `use_kl: false`."
            )


def _trained_rows(rows: Dataset, good: np.ndarray, is_pair: np.ndarray) -> Dataset:
    """
    Returns the good rows with the columns to train on: both sides of pairs, or the only side.

    When some files have pairs and others do not (which `use_kl` forbids), the vision-rich side of the pairs is taken as
    their only one.
    """
    measured = ("length", "num_answer_tokens")
    indices = np.flatnonzero(good)
    paired = is_pair[indices]
    parts = []
    for run in np.split(indices, np.flatnonzero(np.diff(paired)) + 1):
        if paired.all():
            names = SIDE_COLUMNS + PAIR_COLUMNS
        else:
            names = PAIR_COLUMNS if is_pair[run[0]] else SIDE_COLUMNS
        part = rows.select_columns(["row_id", *names, *measured]).select(run)
        if names == PAIR_COLUMNS:
            part = part.rename_columns(dict(zip(PAIR_COLUMNS, SIDE_COLUMNS, strict=True)))
        parts.append(part)
    return concatenate_datasets(parts)


def _apply_policy(
    rows: Dataset,
    split: str,
    script_args: PumaScriptArguments,
    training_args: PumaKLConfig,
    dropped: list[dict[str, Any]],
) -> tuple[Dataset, DataReport]:
    """Stops at, or leaves out, the rows that have a problem; those left out are added to `dropped`."""
    problems = np.array(rows.data.column("problem").to_pylist(), dtype=object)
    is_pair = rows.data.column("instruction_2").is_valid().to_numpy()
    _require_pairs(rows, problems, is_pair, split, training_args.use_kl)
    bad = np.flatnonzero(problems)
    kinds = Counter(problems[index].split(":", 1)[0] for index in bad)
    policies = dict.fromkeys(kinds, script_args.bad_rows)
    if MISMATCH in kinds:
        policies[MISMATCH] = script_args.answer_mismatch
    if "error" in policies.values():
        stopping = [index for index in bad if policies[problems[index].split(":", 1)[0]] == "error"]
        raise DataError(_explain(rows, problems, stopping, split, training_args.output_dir))
    if len(bad) == len(rows):
        raise DataError(
            f"No row of the {split} data can be used. "
            + _explain(rows, problems, bad, split, training_args.output_dir)
        )
    dropped += [{"split": split, "reason": problems[index], **_as_written(rows[int(index)])} for index in bad]
    kept = _trained_rows(rows, ~problems.astype(bool), is_pair)
    return kept, DataReport(len(rows), len(kept), dict(kinds.most_common()), _answer_tokens(kept))


def _answer_tokens(rows: Dataset) -> int:
    return int(np.sum(rows.with_format("numpy")["num_answer_tokens"][:]))


def _explain(rows: Dataset, problems: np.ndarray, bad: list[int], split: str, output_dir: str) -> str:
    """Words the count per reason, the first three rows, and the remedies."""
    kinds = Counter(problems[index].split(":", 1)[0] for index in bad)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    first = "\n".join(f"  {rows[int(index)]['row_id']}: {problems[index]}" for index in bad[:3])
    remedies = [REMEDIES[kind] for kind in kinds if kind in REMEDIES]
    if kinds.keys() - {MISMATCH}:
        target = os.path.join(output_dir, DROPPED)
        remedies.append(f"Set `bad_rows: drop` to leave the rows out and have them listed in {target}.")
    return (
        f"{len(bad):,} of {len(rows):,} rows of the {split} data cannot be used ({counts}). The first ones:\n{first}\n"
        f"Repair them. {' '.join(remedies)}"
    )


def _as_written(row: dict[str, Any]) -> dict[str, Any]:
    """Returns what `dropped_rows.jsonl` keeps of a row: the columns, or how it stood in the file; no image bytes."""
    if row["raw"] is not None:
        return {"row_id": row["row_id"], "raw": row["raw"]}
    written = {name: row[name] for name in ("row_id", *SIDE_COLUMNS, *PAIR_COLUMNS) if row[name] is not None}
    for name in written:
        if name.startswith("image"):
            written[name] = [image["path"] or f"{len(image['bytes']):,} bytes" for image in written[name]]
    return written


def _write_dropped(dropped: list[dict[str, Any]], output_dir: Path) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    target = output_dir / DROPPED
    unfinished = target.with_suffix(".jsonl.tmp")
    with open(unfinished, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in dropped)
    os.replace(unfinished, target)


def _hold_out(splits: dict[str, Dataset], reports: dict[str, DataReport], size: float, seed: int) -> None:
    """Moves a part of the training rows, chosen by the seed, to the split `"eval"`."""
    total = len(splits["train"])
    count = round(size * total) if size < 1 else int(size)
    if not 0 < count < total:
        raise DataError(
            f"`eval_split_size: {size}` takes {count} of {total} rows, but both splits need at least one. Choose another size."
        )
    halves = splits["train"].train_test_split(test_size=count, seed=seed)
    splits["train"], splits["eval"] = halves["train"], halves["test"]
    train = reports["train"]
    reports["eval"] = DataReport(count, count, {}, _answer_tokens(splits["eval"]))
    train.rows_read -= count
    train.rows_kept -= count
    train.answer_tokens -= reports["eval"].answer_tokens
