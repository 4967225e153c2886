"""Rows that stand in the data more than once: in training and evaluation, or several times in training."""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from ..errors import DataError


# Columns of checked rows with what they have in common with others: all, all but answers, the vision-rich or only side
DIGESTS = ("digest", "prompt_digest", "side_digest")


def digest_row(row: dict[str, Any], columns: Sequence[str], side: Sequence[str]) -> dict[str, int]:
    """
    Returns numbers that a row shares only with rows of the same content, by their names in `DIGESTS`. A file with a
    picture is known by its name and size, whatever its folder; bytes are hashed.

    Args:
        row (`dict[str, Any]`):
            A row that was read.
        columns (`Sequence[str]`):
            Its columns of texts and pictures.
        side (`Sequence[str]`):
            Those of its vision-rich or only side.
    """
    content = {}
    for name in columns:
        value = row[name]
        if name.startswith("image_url"):
            value = [_identify(image) for image in value or ()]
        content[name] = repr(value).encode(errors="replace")
    prompts = [name for name in columns if not name.startswith("output")]
    return {
        name: _digest([content[column] for column in covered])
        for name, covered in zip(DIGESTS, (columns, prompts, side), strict=True)
    }


def _digest(parts: list[bytes]) -> int:
    digest = hashlib.blake2b(b"".join(parts), digest_size=8)
    return int.from_bytes(digest.digest(), signed=True, byteorder="big")


def _identify(image: dict[str, Any]) -> Any:
    if image["bytes"] is not None:
        return hashlib.blake2b(image["bytes"], digest_size=8).digest()
    try:
        return os.path.basename(image["path"]), os.path.getsize(image["path"])
    except (OSError, ValueError):  # which is told when the picture is read
        return image["path"]


def digests_of(rows: Dataset, name: str) -> np.ndarray:
    """Returns a column of digests, of the checked rows that can be used."""
    return rows.data.column(name).filter(rows.data.column("problem").is_null()).to_numpy()


def word_repeats(digests: np.ndarray) -> str | None:
    """Words how many rows of the training data stand there more than once, if some do."""
    more = len(digests) - len(np.unique(digests))
    if not more:
        return None
    return (
        f"{more:,} of the {len(digests):,} rows of the train data repeat another one, text and picture, and are "
        "trained on each time."
    )


def word_shared(split: str, digests: np.ndarray, trained: np.ndarray, remedy: str) -> str | None:
    """
    Words how many rows to evaluate on are trained on, if some are.

    Args:
        split (`str`):
            What messages call the rows.
        digests (`np.ndarray`):
            Their digests.
        trained (`np.ndarray`):
            Those of the training data, of the same kind.
        remedy (`str`):
            What to do if all are.

    Raises:
        DataError: if all are.
    """
    count = int(np.isin(digests, trained).sum())
    if count and count == len(digests):
        raise DataError(
            f"All {count:,} rows of the {split} data are among the train data, where they would show what was "
            f"learned by heart. {remedy}"
        )
    if not count:
        return None
    return (
        f"{count:,} of the {len(digests):,} rows of the {split} data are among the train data too, where they show "
        "what was learned by heart. Take them out of one of both."
    )
