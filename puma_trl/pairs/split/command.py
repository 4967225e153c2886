"""
Splits data into training and evaluation data that share no problem: rows with the same or nearly the same question, or
with the same or nearly the same picture, or whose problems have one number (`problem_id`, `problem_index`), go to one
side together.

```bash
puma-trl pairs split outputs/built/train.jsonl --eval_size 0.05 --output outputs/split
puma-trl pairs check outputs/split/train.jsonl --eval outputs/split/eval.jsonl
```

What is nearly the same is what `check` calls so. Rows that cannot be read are in neither file. The split depends on
the data and the seed alone.
"""

import argparse
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...data.files import Chunk, Source, find_chunks, find_sources
from ...data.forms import find_forms
from ...errors import DataError
from ..check.content import Side, seen_ties, word_ties
from ..check.overlap import Reference
from ..check.scan import ReferenceReader
from ..mapping import add_data, add_num_proc, read_options
from ..processes import count_processes, map_tasks
from ..subset import find_target, write_subset


Row = tuple[int, int]  # position of the file, number of the row


class RowReader:
    """Reads the sides of rows, for [`map_tasks`]."""

    def __init__(self, sources: list[Source]):
        self.reader = ReferenceReader(sources, None)

    def __call__(self, chunk: Chunk) -> tuple[int, list[tuple[int, list[Side], str | None]]]:
        return chunk.source, self.reader.read(chunk)


def group_rows(sides: Sequence[tuple[Row, Side]]) -> list[list[Row]]:
    """
    Groups rows that must not be divided: each is the same as another of its group, or nearly.

    Returns:
        `list[list[Row]]`: the groups, in the order of their first rows.
    """
    reference = Reference((str(position), side) for position, (_, side) in enumerate(sides))
    leaders = {row: row for row, _ in sides}

    def find(row: Row) -> Row:
        while leaders[row] != row:
            leaders[row] = leaders[leaders[row]]
            row = leaders[row]
        return row

    for row, side in sides:
        for item in reference.related(side):
            first, second = sorted((find(row), find(sides[item][0])))
            leaders[second] = first
    groups = defaultdict(list)
    for row in leaders:
        groups[find(row)].append(row)
    return list(groups.values())


def choose_eval(groups: list[list[Row]], count: int, seed: int) -> list[Row]:
    """Chooses whole groups by chance, up to a number of rows."""
    groups = list(groups)
    random.Random(seed).shuffle(groups)
    chosen: list[Row] = []
    for group in groups:
        if len(chosen) + len(group) <= count:
            chosen += group
    return chosen


def split_pairs(
    data: list[str],
    output: Path,
    *,
    eval_size: float = 0.05,
    seed: int = 0,
    columns: dict[str, str | list[str]] | None = None,
    image_root: str | None = None,
    split: str = "train",
    num_proc: int | None = None,
) -> dict[str, Any]:
    """
    Splits data.

    The arguments are the options of the command, where they are described; `columns` is our column → the data's.

    Returns:
        `dict[str, Any]`: `train`, `eval`, `unread` (numbers of rows), `groups`, `largest` (rows of the largest
        group), `tied_by` (columns that number problems), `train_file` and `eval_file`.

    Raises:
        DataError: if an option is out of range, a file exists, or no group is small enough for the evaluation data.
    """
    if eval_size <= 0 or (eval_size >= 1 and eval_size != int(eval_size)):
        raise DataError(f"`--eval_size` is {eval_size}, but must be a share between 0 and 1, or a number of rows.")
    num_proc = count_processes(num_proc)
    sources = find_forms(find_sources(data, image_root, None, split), columns)
    files = {f"{name}_file": find_target(sources, output / name) for name in ("train", "eval")}
    sides: list[tuple[Row, Side]] = []
    unread = 0
    for source, rows in map_tasks(RowReader(sources), list(find_chunks(sources)), num_proc, "Reading"):
        for number, found, problem in rows:
            unread += problem is not None
            sides += [((source, number), side) for side in found if problem is None]
    groups = group_rows(sides)
    tied_by = seen_ties(sources)
    total, largest = sum(map(len, groups)), max(map(len, groups), default=0)
    chosen = set(choose_eval(groups, round(eval_size * total) if eval_size < 1 else int(eval_size), seed))
    if not chosen or len(chosen) == total:
        tied = f" and of one {word_ties(tied_by)}" if tied_by else ""
        raise DataError(
            f"Cannot split: the {total:,} rows form {len(groups):,} groups of similar problems{tied}, the largest of "
            f"{largest:,} rows; `--eval_size {eval_size:g}` would leave no {'training' if chosen else 'evaluation'} "
            f"rows. {_advise(groups, total)}"
        )
    rest = {row for group in groups for row in group} - chosen
    for path, wanted in zip(files.values(), (rest, chosen), strict=True):
        write_subset(sources, wanted, path)
    counts = {"train": total - len(chosen), "eval": len(chosen), "unread": unread, "tied_by": tied_by}
    return counts | {"groups": len(groups), "largest": largest} | files


def _advise(groups: list[list[Row]], total: int) -> str:
    """Names the least share at which whichever group is the smallest goes to the evaluation data."""
    if len(groups) < 2:
        return "Give data with more than one group."
    share = math.ceil(100 * min(map(len, groups)) / total) / 100
    return f"Try {share:g}, or a share above it." if share < 1 else "Give more rows."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `puma-trl pairs split`."""
    add_data(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder for train.* and eval.*")
    parser.add_argument("--eval_size", type=float, default=0.05, help="share or number of rows (default: 0.05)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice")
    add_num_proc(parser)


def main(args: argparse.Namespace) -> None:
    """Splits, and says what hangs together."""
    done = split_pairs(**read_options(args))
    print(
        f"{done['train']:,} rows in {done['train_file']}, {done['eval']:,} in {done['eval_file']}: {done['groups']:,} "
        f"groups of rows that hang together, the largest of {done['largest']:,}."
    )
    if done["tied_by"]:
        print(f"Rows of one {word_ties(done['tied_by'])} stay together.")
    if done["unread"]:
        print(f"{done['unread']:,} rows cannot be read and are in neither; `check` says why.")
