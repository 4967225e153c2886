"""Rows that stand in the data more than once: in training and evaluation, or several times in training."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from ..errors import DataError


def digest_row(row: dict[str, Any], columns: Sequence[str]) -> int:
    """
    Returns a number that two rows share only with the same texts and pictures. A file with a picture is known by its
    name and size, whatever its folder; bytes are hashed.

    Args:
        row (`dict[str, Any]`):
            A row that was read.
        columns (`Sequence[str]`):
            Its columns of texts and pictures.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name in columns:
        value = row[name]
        if name.startswith("image_url"):
            value = [_identify(image) for image in value or ()]
        digest.update(repr(value).encode(errors="replace"))
    return int.from_bytes(digest.digest(), signed=True, byteorder="big")


def _identify(image: dict[str, Any]) -> Any:
    if image["bytes"] is not None:
        return hashlib.blake2b(image["bytes"], digest_size=8).digest()
    try:
        return os.path.basename(image["path"]), os.path.getsize(image["path"])
    except (OSError, ValueError):  # which is told when the picture is read
        return image["path"]


def digests_of(rows: Dataset) -> np.ndarray:
    """Returns the digests of the checked rows that can be used."""
    column = rows.data.column("digest")
    return column.filter(rows.data.column("problem").is_null()).to_numpy()


def find_shared(digests: Mapping[str, np.ndarray]) -> list[str]:
    """
    Words what rows stand in the data more than once.

    Args:
        digests (`dict[str, np.ndarray]`):
            Split → the digests of its rows.

    Raises:
        DataError: if all rows of a split to evaluate on are trained on.
    """
    trained, lines = digests.get("train", np.array([], np.int64)), []
    more = len(trained) - len(np.unique(trained))
    if more:
        lines.append(
            f"{more:,} of the {len(trained):,} rows of the train data repeat another one, text and picture, and are "
            "trained on each time."
        )
    for split, values in digests.items():
        count = int(np.isin(values, trained).sum()) if split != "train" else 0
        if count and count == len(values):
            raise DataError(
                f"All {count:,} rows of the {split} data are among the train data, where they would show what was "
                "learned by heart. Name other data, or hold a part out with `eval_split_size`."
            )
        if count:
            lines.append(
                f"{count:,} of the {len(values):,} rows of the {split} data are among the train data too, where they "
                "show what was learned by heart. Take them out of one of both."
            )
    return lines
