"""Checked rows → rows to train on: what becomes of those that cannot be used, and a report of a split."""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets

from ..config import PumaKLConfig
from ..errors import DataError
from ..files import whole_file
from .checks import MISMATCH, PICTURE_TOKENS, SAMPLED_TOKENS
from .columns import COLUMNS, word_columns
from .files import DROPPED, Source
from .rows import ROW_COLUMNS
from .shared import DIGESTS, digests_of
from .turns import NO_ANSWER


MARKED = "marked wrong"
MARK = re.compile(rf"{MARKED}: `(.+?)` is ")
REMEDIES = {
    MISMATCH: "Set `answer_mismatch: student` to give the text-rich side the vision-rich side's answer, or "
    "`answer_mismatch: drop` to leave such pairs out.",
    "too long": "A larger `max_length` keeps long rows.",
    "special token in text": "Set `special_tokens: escape` to have such characters read as plain text.",
    "image for a text teacher": "Name a vision-language model as `teacher_model_name_or_path`.",
    "answer in other tokens": "The tokenizers of both models split such texts differently: name a teacher of the "
    "same tokenizer family.",
    "missing image": "Relative image paths start from `image_root`, by default the folder of the data file.",
    "image places": "A question has as many places (`<image>`) as its side has pictures, or none; `columns: "
    "{image_url: picture}` names the column of the pictures.",
    "unread key": "Take out what is not read of a turn, or write it into the text (a thought stands before the answer "
    "as the model writes it: `<think>\\n…\\n</think>\\n\\n`); pictures stand in parts of their own "
    '(`{"type": "image", "image": "a.png"}`).',
    "unread column": "`columns: {image_url_2: picture}` says what a column is, and `columns: {picture: ignore}` "
    "leaves it out.",
}

# What is said where the text-rich side of a pair has an answer, and the vision-rich side none
LONE_ANSWER = (
    "With `student`, a pair without an answer on its vision-rich side counts as one without any; `columns: "
    "{output_2: …}` names an answer for it."
)

# The columns of a side to train on
SIDE = ROW_COLUMNS[: len(ROW_COLUMNS) // 2]
SECOND_SIDE = ROW_COLUMNS[len(SIDE) :]
# What is said of the pictures of a side
ONE_SIDED, TEXT_RICH, VISION_RICH = "one-sided", "text-rich", "vision-rich"


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
        images (`dict[str, int]`):
            Pictures of the rows kept: `"text-rich"` and `"vision-rich"` → their number, or `"one-sided"`.
        unread (`list[str]`):
            Columns that the data has and that are not read.
        rows_without_answer (`int`):
            Rows kept that have none, which the student writes itself.
        digests (`dict[str, np.ndarray]`):
            Column of `DIGESTS` → what tells whether other data shares rows (see [`word_shared`]).
    """

    rows_read: int
    rows_kept: int
    dropped: dict[str, int] = field(default_factory=dict)
    answer_tokens: int = 0
    images: dict[str, int] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    rows_without_answer: int = 0
    digests: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def trained_images(self) -> int:
        """Pictures of the side that is trained: the vision-rich or only one."""
        return self.images.get(VISION_RICH, self.images.get(ONE_SIDED, 0))


def apply_policy(
    rows: Dataset,
    sources: Sequence[Source],
    split: str,
    training_args: PumaKLConfig,
    takes_images: bool,
    dropped: list[dict[str, Any]],
) -> tuple[Dataset, DataReport]:
    """
    Stops at, or leaves out, the rows that have a problem.

    Args:
        rows ([`~datasets.Dataset`]):
            Checked rows, with the columns `FEATURES`.
        sources (`Sequence[Source]`):
            What they are from.
        split (`str`):
            What messages call the data.
        training_args ([`PumaKLConfig`]):
            `use_kl`, `bad_rows`, `answer_mismatch` and `output_dir` are used.
        takes_images (`bool`):
            Whether the model takes images. A text model gets the text-rich side of pairs.
        dropped (`list[dict]`):
            Gets the rows that are left out.

    Raises:
        DataError: if rows cannot be used and the policy is to stop, none is left, or `use_kl` has no pairs.
    """
    problems = np.array(rows.data.column("problem").to_pylist(), dtype=object)
    is_pair = rows.data.column("instruction_2").is_valid().to_numpy()
    if takes_images:
        _require_pairs(rows, sources, problems, is_pair, split, training_args.use_kl)
    else:
        is_pair = np.zeros_like(is_pair)
    bad = np.flatnonzero(problems)
    kinds = Counter(_kind_of(problems[index]) for index in bad)
    policies = dict.fromkeys(kinds, training_args.bad_rows)
    if MISMATCH in kinds:
        policies[MISMATCH] = training_args.answer_mismatch
    if "error" in policies.values():
        stopping = [index for index in bad if policies[_kind_of(problems[index])] == "error"]
        raise DataError(_explain(rows, problems, stopping, split, training_args))
    if len(bad) == len(rows):
        raise DataError(
            f"No row of the {split} data can be used. " + _explain(rows, problems, bad, split, training_args)
        )
    dropped += [{"split": split, "reason": problems[index], **_as_written(rows[int(index)])} for index in bad]
    kept = _trained_rows(rows, ~problems.astype(bool), is_pair)
    report = describe_rows(kept)
    require_answers(report, split, training_args)
    report.rows_read, report.dropped = len(rows), dict(kinds.most_common())
    report.unread = _unread_columns(rows, sources)
    report.digests = {name: digests_of(rows, name) for name in DIGESTS}
    return kept, report


def _kind_of(problem: str) -> str:
    return problem.partition(":")[0]


def describe_rows(rows: Dataset) -> DataReport:
    """Counts rows to train on, their answer tokens and pictures."""
    tokens = rows.with_format("numpy")["num_answer_tokens"][:]
    columns = {ONE_SIDED: "image_url"}
    if "image_url_2" in rows.column_names:
        columns = {TEXT_RICH: "image_url", VISION_RICH: "image_url_2"}
    images = {side: count_images(rows, column) for side, column in columns.items()}
    without = int(np.sum(tokens == 0))
    return DataReport(len(rows), len(rows), {}, int(np.sum(tokens)), images, rows_without_answer=without)


def count_images(rows: Dataset, column: str) -> int:
    """Returns the number of pictures in a column of lists, without a look at them."""
    counts = pc.list_value_length(rows.data.column(column))  # of all that the table has
    if rows._indices is not None:
        counts = counts.take(rows._indices.column(0))
    return pc.sum(counts).as_py() or 0


def _unread_columns(rows: Dataset, sources: Sequence[Source]) -> list[str]:
    late = {
        name for names in rows.data.column("unread").chunks for name in pc.unique(pc.list_flatten(names)).to_pylist()
    }
    return list(dict.fromkeys([*(name for source in sources for name in source.form.unread), *sorted(late)]))


def _require_pairs(
    rows: Dataset, sources: Sequence[Source], problems: np.ndarray, is_pair: np.ndarray, split: str, use_kl: bool
) -> None:
    """
    Stops when `use_kl` needs pairs and a file has none. In files with pairs, rows without become problems, and pairs
    in files whose form has one side.
    """
    positions = rows.data.column("source").to_numpy()
    good = ~problems.astype(bool)
    for position in np.unique(positions):
        single = (positions == position) & good & ~is_pair
        pairs = (positions == position) & good & is_pair
        if not single.any():
            continue
        source = sources[position]
        second = [path[0] for path in source.form.second if path[0] in source.form.seen]
        if pairs.any() and not use_kl and (not second or pairs.sum() < single.sum()):
            problems[pairs] = "unread column: the row has a vision-rich side (`instruction_2`), unlike other rows"
        elif pairs.any() and second:
            problems[single] = "missing value: the row has no vision-rich side (`instruction_2`), unlike other rows"
        elif use_kl:
            raise DataError(
                f"'{source.path or source.name}' of the {split} data has one side only "
                f"({', '.join(source.form.read)}), but the gap and `use_kl: true` need pairs. Give pairs "
                f"({', '.join(COLUMNS)}, or another form with `_2` behind the names of the second side); "
                "`use_kl: false` trains on one side."
            )


def _trained_rows(rows: Dataset, good: np.ndarray, is_pair: np.ndarray) -> Dataset:
    """
    Returns the good rows with the columns to train on: both sides of pairs, or the only side.

    When some files have pairs and others do not (which `use_kl` forbids), the vision-rich side of the pairs is taken
    as their only one.
    """
    measured = ("length", "num_answer_tokens")
    indices = np.flatnonzero(good)
    paired = is_pair[indices]
    parts = []
    for run in np.split(indices, np.flatnonzero(np.diff(paired)) + 1):
        if paired.all():
            names = ROW_COLUMNS
        else:
            names = SECOND_SIDE if is_pair[run[0]] else SIDE
        part = rows.select_columns(["row_id", *names, *measured]).select(run)
        if names == SECOND_SIDE:
            part = part.rename_columns(dict(zip(SECOND_SIDE, SIDE, strict=True)))
        parts.append(part)
    return concatenate_datasets(parts)


def require_pictures(report: DataReport, split: str, training_args: PumaKLConfig) -> None:
    """
    Makes sure that a model with a vision tower has pictures to learn from.

    Raises:
        DataError: if no row of pairs has a vision-rich picture, or the aligner or a vision tower would train without
            any and `allow_text_only` is not set.
    """
    if report.trained_images:
        return
    unread = f" Not read are: {', '.join(report.unread)}." if report.unread else ""
    if training_args.use_kl:
        raise DataError(
            f"No row of the {split} data has a picture on its vision-rich side, so it would be trained on text alone. "
            f"Name the column of its pictures: `columns: {{image_url_2: …}}`.{unread}"
        )
    parts = training_args.trainable_parts
    # without named parts the trainer looks at what requires grad
    if split == "train" and parts not in (None, ["language_model"]) and not training_args.allow_text_only:
        raise DataError(
            f"No row of the train data has a picture, but `trainable_parts` ({', '.join(parts)}) has more than the "
            "language model. Name the column of the pictures: `columns: {image_url: …}`; or set `trainable_parts: "
            f"language_model`, or `allow_text_only: true`.{unread}"
        )


def require_answers(report: DataReport, split: str, training_args: PumaKLConfig) -> None:
    """
    Makes sure that checked rows have the answers that are trained or evaluated on.

    Raises:
        DataError: if rows have none where answers are needed, or all rows where some micro-batches learn from them.
    """
    without = report.rows_without_answer
    share = training_args.on_policy_share if split == "train" else 0
    if without and not share:
        raise DataError(
            f"{without:,} of {report.rows_kept:,} rows of the {split} data have no answer. "
            f"{_advise_on_answers(split, training_args) or 'Give them one.'}"
        )
    if without == report.rows_kept > 0 and share < 1:
        raise DataError(
            f"No row of the train data has an answer, but with `on_policy_share: {share:g}` the other micro-batches "
            "learn from given ones. Set `on_policy_share: 1`, or add rows with answers."
        )


def _advise_on_answers(split: str, args: PumaKLConfig) -> str:
    """Says where rows without an answer can be used."""
    if split != "train":
        return "Rows to evaluate on need answers, on which the loss is measured." if args.on_policy_share else ""
    if args.use_kl:
        return "In training, `on_policy_share` above 0 needs none: the model writes the answer itself."
    return ""


def _explain(rows: Dataset, problems: np.ndarray, bad: Sequence[int], split: str, args: PumaKLConfig) -> str:
    """Words the count per reason, the first three rows, and the remedies."""
    kinds = Counter(_kind_of(problems[index]) for index in bad)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    first = "; ".join(f"{rows[int(index)]['row_id']}: {problems[index]}" for index in bad[:3])
    remedies = [REMEDIES[kind] for kind in kinds if kind in REMEDIES]
    if NO_ANSWER in kinds and (advice := _advise_on_answers(split, args)):
        remedies.append(advice)
    if any(problems[index].startswith(MISMATCH) and problems[index].endswith("is empty") for index in bad):
        remedies.append(LONE_ANSWER)
    if MARKED in kinds:
        named = dict.fromkeys(match[1] for index in bad if (match := MARK.match(problems[index])))
        remedies.append(
            f"Leave such rows out, or have them read all the same by {word_columns(dict.fromkeys(named, 'ignore'))}."
        )
    if any(problems[index].startswith("too long") and PICTURE_TOKENS in problems[index] for index in bad):
        remedies.append("A smaller `max_pixels` gives pictures fewer tokens, in families that have it.")
    if any(problems[index].startswith("too long") and SAMPLED_TOKENS in problems[index] for index in bad):
        remedies.append("A smaller `max_completion_length` leaves more room for prompts.")
    if kinds.keys() - {MISMATCH} and args.bad_rows != "drop":
        target = os.path.join(args.output_dir, DROPPED)
        remedies.append(f"Set `bad_rows: drop` to leave the rows out and have them listed in {target}.")
    return (
        f"{len(bad):,} of {len(rows):,} rows of the {split} data cannot be used ({counts}). The first ones: {first}. "
        f"{' '.join(['Repair them.', *remedies])}"
    )


def _as_written(row: dict[str, Any]) -> dict[str, Any]:
    """Returns what `dropped_rows.jsonl` keeps of a row: the columns, or how it stood in the file; no image bytes."""
    if row["raw"] is not None:
        return {"row_id": row["row_id"], "raw": row["raw"]}
    written = {name: row[name] for name in ("row_id", *ROW_COLUMNS) if row[name] is not None}
    for name in written:
        if name.startswith("image"):
            written[name] = [image["path"] or f"{len(image['bytes']):,} bytes" for image in written[name]]
    return {name: value for name, value in written.items() if not name.startswith("history") or value}


def write_dropped(dropped: list[dict[str, Any]], output_dir: str) -> None:
    """Writes the rows that were left out to `dropped_rows.jsonl`."""
    with whole_file(Path(output_dir) / DROPPED) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in dropped)
