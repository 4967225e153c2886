"""
Datasets → checked rows: what training and evaluation read, and a report of what was dropped and why.

Everything is checked before training starts, in parallel, and kept in the cache of datasets. The cache is used again
as long as the data files, the processor, the settings and the size and time of every image file are the same.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from accelerate.logging import get_logger
from datasets import Dataset, DatasetDict, Features, Value
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..config import PumaKLConfig, PumaScriptArguments
from ..errors import DataError
from ..files import naming_disk
from ..models import families
from ..models.families import Family
from ..models.teacher_model import TeacherSide
from .cache import fill_first, images_changed, read_or_make
from .checks import FEATURES, SIDE_NAMES, RowChecker, SampledAnswers, TokenCounter
from .files import Chunk, Source, find_chunks, find_sources, table_source
from .forms import find_forms
from .policy import DataReport, apply_policy, describe_rows, require_pictures, write_dropped
from .shared import word_repeats, word_shared


logger = get_logger(__name__)

CHUNK_FEATURES = Features({name: Value("int64") for name in Chunk._fields})

# What to do about data to evaluate on that is trained on
REMEDY = "Name other data, or hold a part out with `eval_split_size`."
HELD_OUT_REMEDY = "Let `puma-trl pairs split` hold a part out, which keeps rows of one problem together."

# By default, cores up to this number check the data.
MAX_PROCESSES = 16


def load_data(
    data: PumaScriptArguments | str | Sequence[str] | Dataset | Mapping[str, Dataset],
    training_args: PumaKLConfig,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    family: Family | None = None,
    teacher: TeacherSide | None = None,
) -> tuple[DatasetDict, dict[str, DataReport]]:
    """
    Loads and checks the training data and, if there is any, the evaluation data.

    With several processes the main one does the work, and the others read its cache (see [`fill_first`]). Rows that
    are dropped are written to `dropped_rows.jsonl` in `output_dir`.

    Args:
        data ([`PumaScriptArguments`], `str`, `list[str]`, [`~datasets.Dataset`] or `dict[str, Dataset]`):
            Where the data is, the `dataset_name` to train on alone, or datasets of rows in any form: one to train on,
            or by the name of their split.
        training_args ([`PumaKLConfig`]):
            `use_kl`, `image_root`, `bad_rows`, `answer_mismatch`, `columns`, `special_tokens`, `decode_images`,
            `max_length`, `on_policy_share`, `max_completion_length`, `trainable_parts`, `allow_text_only`, `seed`,
            `dataset_num_proc` (default: every core, up to 16) and `output_dir` are used.
        processor ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`]):
            Processor or tokenizer of the model. A text model gets the text-rich side of pairs.
        family ([`Family`], *optional*):
            The model family. Defaults to that of the processor's class; that of a model is
            `get_family(model.config)`.
        teacher ([`TeacherSide`], *optional*):
            What reads the text-rich side, where another model does.

    Returns:
        `tuple[DatasetDict, dict[str, DataReport]]`: the splits `"train"` and, if asked for, `"eval"`, or those that
        were given, and what was dropped from each. The columns are `row_id` (`"pairs.jsonl:17"` for line 17 of jsonl
        and csv, as an editor counts them; `"pairs.json#17"` for row 17 of a JSON list, a parquet file or a dataset of
        the Hub, counted from 1), `image_url` (a list of `{"bytes", "path"}`, empty without images), `instruction`,
        `output`, `history` (the turns before the instruction, each with `role` and `content`), for pairs the same with
        `_2`, `length` (tokens of prompt and answer with image tokens; of both sides together when both are trained on)
        and `num_answer_tokens`. A row without an answer, as `on_policy_share` allows, has an empty `output` and 0 of
        these tokens.

    Raises:
        DataError: if data cannot be read, is empty, fits no form of rows, holds columns that are not read and look as
            if they should be, lacks what `use_kl` needs, has no picture to learn from, is evaluated on as it is
            trained on, or has rows that cannot be used and the policy is to stop.
    """
    data, family = _read_names(data), family or families.family_of_processor(processor)
    readers = [(processor, family)] if teacher is None else [(processor, family), (teacher.processor, teacher.family)]
    splits, reports, dropped = {}, {}, []
    takes_images = isinstance(processor, ProcessorMixin)
    with fill_first(training_args, "loading and checking the data") as fills:
        found = _find_splits(data, training_args)
        counters = [TokenCounter(*reader, training_args.special_tokens) for reader in readers]
        known_as = _digest(*((family, _processor_digest(processor)) for processor, family in readers))
        for split, sources in found.items():
            rows = _check_split(split, sources, training_args, counters, known_as, fills)
            splits[split], reports[split] = apply_policy(rows, sources, split, training_args, takes_images, dropped)
            if takes_images:
                require_pictures(reports[split], split, training_args)
    held_out = data.eval_split_size if isinstance(data, PumaScriptArguments) else None
    if held_out is not None:
        _hold_out(splits, reports, held_out, training_args.seed)
    for line in _word_repeated(reports, training_args, REMEDY if held_out is None else HELD_OUT_REMEDY):
        logger.warning(line)
    if dropped and training_args.process_index == 0:
        write_dropped(dropped, training_args.output_dir)
    return DatasetDict(splits), reports


def _word_repeated(reports: Mapping[str, DataReport], training_args: PumaKLConfig, remedy: str) -> list[str]:
    """Words what rows stand in the data more than once; where answers are sampled, prompts alone are trained on."""
    kind = "prompt_digest" if training_args.on_policy_share else "digest"
    lines = []
    if "train" in reports:
        trained = reports["train"].digests
        lines = [
            word_repeats(trained["digest"]),
            *(
                word_shared(split, report.digests[kind], trained[kind], remedy)
                for split, report in reports.items()
                if split != "train"
            ),
        ]
    return [line for line in lines if line is not None]


def _read_names(data: Any) -> PumaScriptArguments | Dataset | Mapping[str, Dataset]:
    """Lets names alone be those of the data to train on."""
    if isinstance(data, PumaScriptArguments | Dataset | Mapping):
        return data
    names = [data] if isinstance(data, str | os.PathLike) else data
    if not isinstance(names, Sequence) or not all(isinstance(name, str | os.PathLike) for name in names):
        raise DataError(
            f"`data` is of the type {type(data).__name__}. Give names of files, folders or datasets of the Hub, or a "
            "`datasets.Dataset`, such as `Dataset.from_list(...)` makes."
        )
    return PumaScriptArguments(dataset_name=[os.fspath(name) for name in names])


def _find_splits(
    data: PumaScriptArguments | Dataset | Mapping[str, Dataset], training_args: PumaKLConfig
) -> dict[str, list[Source]]:
    """Finds the sources of the splits and their forms; a column of the mapping may be in some of them only."""
    root = training_args.image_root
    if isinstance(data, PumaScriptArguments):
        named = {
            "train": (data.dataset_name, data.dataset_train_split),
            "eval": (data.eval_dataset_name, data.dataset_test_split),
        }
        found = {
            split: find_sources(names, root, data.dataset_config, of_hub)
            for split, (names, of_hub) in named.items()
            if names
        }
    else:
        found = {split: [table_source(table, split, root)] for split, table in as_splits(data).items()}
    sources = [source for sources in found.values() for source in sources]
    formed = iter(find_forms(sources, training_args.columns, needs_answers=not training_args.on_policy_share))
    splits = {split: [next(formed) for _ in sources] for split, sources in found.items()}
    for split, sources in splits.items():
        if sampled_answers(split, training_args) is None:  # evaluation needs answers in any case
            splits[split] = [replace(source, form=replace(source.form, needs_answer=True)) for source in sources]
    _refuse_shared(splits)
    return splits


def sampled_answers(split: str, training_args: PumaKLConfig) -> SampledAnswers | None:
    """Returns what is sampled in place of the answers of a split, if anything."""
    share = training_args.on_policy_share
    return SampledAnswers(training_args.max_completion_length, share == 1) if share and split == "train" else None


def _refuse_shared(splits: dict[str, list[Source]]) -> None:
    """Makes sure that nothing is evaluated on that is trained on."""
    trained = {source.identity for source in splits.get("train", ())}
    for split, sources in splits.items():
        shared = next((source for source in sources if split != "train" and source.identity in trained), None)
        if shared is not None:
            raise DataError(
                f"'{shared.path or shared.name}' is among the train data and the {split} data, where it would show "
                f"what was learned by heart. {REMEDY}"
            )


def as_splits(data: Dataset | Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Returns datasets by the name of their split; one alone is to train on."""
    return {"train": data} if isinstance(data, Dataset) else dict(data)


def _check_split(
    split: str,
    sources: list[Source],
    training_args: PumaKLConfig,
    counters: list[TokenCounter],
    known_as: str,
    fills: bool,
) -> Dataset:
    """
    Returns the rows of a split, each with its `problem`, from the cache if nothing has changed, which only a process
    that `fills` it looks after. The counters are the student's and, if another model teaches, the teacher's; the cache
    knows their processors as `known_as`.
    """
    checker = RowChecker(
        sources=sources,
        counter=counters[0],
        use_kl=training_args.use_kl,
        max_length=training_args.max_length,
        student_answers=training_args.answer_mismatch == "student",
        decode_images=training_args.decode_images,
        teacher_counter=counters[1] if len(counters) > 1 else None,
        sampled=sampled_answers(split, training_args),
    )
    files = [(source.name, source.kind, source.root, source.version, source.form) for source in sources]
    code = _code_digest()
    settings = (
        checker.use_kl,
        checker.max_length,
        checker.student_answers,
        checker.decode_images,
        checker.sampled,
        training_args.special_tokens,
        known_as,
    )
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
    cached_before = {path for file in chunks.cache_files for path in Path(file["filename"]).parent.iterdir()}
    rows = read_or_make(lambda cached: chunks.map(checker, load_from_cache_file=cached, **arguments))
    is_cached = {Path(file["filename"]) for file in rows.cache_files} <= cached_before
    if fills and is_cached and images_changed(rows, SIDE_NAMES):
        rows = chunks.map(checker, load_from_cache_file=False, **arguments)
    return rows


def _divide(sources: Sequence[Source], fingerprint: str) -> Dataset:
    """Returns the chunks of all sources, from the cache if the files are the same."""
    gen_kwargs = {"sources": tuple(sources)}  # a list would be taken for shards

    def make(cached: bool) -> Dataset:
        name = fingerprint if cached else _digest(fingerprint)  # the name alone tells the cache what to make again
        return Dataset.from_generator(_chunk_rows, features=CHUNK_FEATURES, gen_kwargs=gen_kwargs, fingerprint=name)

    return read_or_make(make)


def _chunk_rows(sources: tuple[Source, ...]) -> Iterator[dict[str, int]]:
    for chunk in find_chunks(sources):
        yield chunk._asdict()


def _digest(*values: Any) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:32]


def _code_digest() -> str:
    """Hashes the source text of all that decides what is read and how it is checked."""
    folders = (Path(__file__).parent, Path(families.__file__).parent)
    return _digest([file.read_text(encoding="utf-8") for folder in folders for file in sorted(folder.glob("*.py"))])


def _processor_digest(processor: ProcessorMixin | PreTrainedTokenizerBase) -> str:
    """Hashes the files that a processor saves, because its objects do not hash the same in every process."""
    digest = hashlib.sha256()
    remedy = ", or let TMPDIR name another folder"
    with naming_disk(tempfile.gettempdir(), remedy), tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _hold_out(splits: dict[str, Dataset], reports: dict[str, DataReport], size: float, seed: int) -> None:
    """Moves a part of the training rows, chosen by the seed, to the split `"eval"`."""
    total = len(splits["train"])
    if reports["train"].rows_without_answer:
        raise DataError(
            f"`eval_split_size: {size}` holds out rows to evaluate on, which need answers, but "
            f"{reports['train'].rows_without_answer:,} of {total:,} rows of the train data have none. Name rows with "
            "answers by `eval_dataset_name`."
        )
    count = round(size * total) if size < 1 else int(size)
    if not 0 < count < total:
        raise DataError(
            f"`eval_split_size: {size}` takes {count} of {total} rows, but both splits need at least one. Choose "
            "another size."
        )
    places = Dataset.from_dict({"place": range(total)}).train_test_split(test_size=count, seed=seed)
    rows, before = splits["train"], reports["train"]
    for split, part in (("train", places["train"]), ("eval", places["test"])):
        chosen = np.array(part["place"])
        digests = {name: values[chosen] for name, values in before.digests.items()}
        splits[split] = rows.select(chosen)
        reports[split] = replace(describe_rows(splits[split]), unread=before.unread, digests=digests)
    reports["train"] = replace(reports["train"], rows_read=before.rows_read - count, dropped=before.dropped)
