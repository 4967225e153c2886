"""Folders with several splits: training on all of them would be training on what is to be measured with."""

import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError


# Names of files and folders → the split that they mean
SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testmini": "test",
    "testing": "test",
} | dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation", "heldout"), "validation")


def refuse_splits(folder: Path, files: Iterable[Path]) -> None:
    """
    Makes sure that the data files of a folder are of one split, as far as their names, and those of the folders
    between, tell: `train-00000-of-00002.parquet` and `val/a.jsonl` are of two.

    Raises:
        DataError: if they are not; a file of each is named.
    """
    found: dict[str, Path] = {}
    for file in files:
        for part in (*file.relative_to(folder).parts[:-1], file.stem):
            split = SPLITS.get(re.split(r"[-_. ]", part.lower())[0])
            if split is not None:
                found.setdefault(split, file)
                break
    if len(found) > 1:
        named = " and ".join(f"'{file}' ({split})" for split, file in found.items())
        raise DataError(
            f"The folder '{folder}' has several splits, {named}, and all would be read. Name the files or the folder "
            "of one of them."
        )
