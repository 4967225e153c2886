"""Folders with several splits: training on all of them would be training on what is to be measured with."""

import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError


# Words of the names of files and folders → the split that they mean
SPLITS = {
    **dict.fromkeys("train training".split(), "train"),
    **dict.fromkeys("test testing testmini minitest".split(), "test"),
    **dict.fromkeys(
        "val valid validation dev devel eval evaluation heldout holdout minival valmini minidev".split(), "validation"
    ),
}
# What numbers a file of several: `-00000-of-00002`
SHARD = re.compile(r"[-_](?P<number>\d{2,})[-_]of[-_](?P<total>\d{2,})(?=\.|$)")


def refuse_splits(folder: Path, files: Iterable[Path]) -> None:
    """
    Makes sure that the data files of a folder are of one split, as far as their names, and those of the folders
    between, tell by their first or last words: `train-00000-of-00002.parquet` and `val/a.jsonl` are of two.

    Raises:
        DataError: if they are not; a file of each is named.
    """
    found: dict[str, Path] = {}
    for file in files:
        for part in (*file.relative_to(folder).parts[:-1], file.stem):
            split = _split_of(part)
            if split is not None:
                found.setdefault(split, file)
                break
    if len(found) > 1:
        named = " and ".join(f"'{file}' ({split})" for split, file in found.items())
        raise DataError(
            f"The folder '{folder}' has several splits, {named}, and all would be read. Name the files or the folder "
            "of one of them."
        )


def _split_of(name: str) -> str | None:
    words = [word for word in re.split(r"[\W\d_]+", SHARD.sub("", name.lower())) if word]
    ends = [words[:1], words[-1:], words[:2], words[-2:]]  # `held-out` is written in two words
    return next((split for end in ends if (split := SPLITS.get("".join(end))) is not None), None)


def refuse_gaps(folder: Path, files: Iterable[Path]) -> None:
    """
    Makes sure that a folder has all files of a row of numbered ones: `train-00000-of-00002.parquet` needs a second.

    Raises:
        DataError: if one is missing.
    """
    found: dict[tuple[str, str], tuple[re.Match, Path, set[int]]] = {}
    for file in files:
        match = SHARD.search(file.name)
        if match is not None:
            key = f"{file.parent / file.name[: match.start()]}{file.name[match.end() :]}", match["total"]
            found.setdefault(key, (match, file, set()))[2].add(int(match["number"]))
    for match, file, numbers in found.values():
        total = int(match["total"])
        first = 0 if 0 in numbers or total not in numbers else 1
        missing = sorted({*range(first, first + total)} - numbers)
        if missing:
            number = str(missing[0]).zfill(len(match["number"]))
            name = file.name[: match.start("number")] + number + file.name[match.end("number") :]
            raise DataError(
                f"The folder '{folder}' lacks {len(missing)} of {total} files of a dataset, the first being '{name}'. "
                "Download it, or name the files that are to be read."
            )
