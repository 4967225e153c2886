"""Rows that stand in the data more than once: in training and evaluation, or several times in training."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from ..errors import DataError


def digest_row(row: dict[str, Any], columns: Sequence[str]) -> tuple[int, int]:
    """
    Returns two numbers: one that rows share only with the same texts and pictures before their answers, and one that
    they share only with the same answers too. A file with a picture is known by its name and size, whatever its
    folder; bytes are hashed.

    Args:
        row (`dict[str, Any]`):
            A row that was read.
        columns (`Sequence[str]`):
            Its columns of texts and pictures.
    """
    digest, numbers = hashlib.blake2b(digest_size=8), []
    answers = [name for name in columns if name.startswith("output")]
    for names in ([name for name in columns if name not in answers], answers):
        for name in names:
            value = row[name]
            if name.startswith("image_url"):
                value = [_identify(image) for image in value or ()]
            digest.update(repr(value).encode(errors="replace"))
        numbers.append(int.from_bytes(digest.digest(), signed=True, byteorder="big"))
    return numbers[0], numbers[1]


def _identify(image: dict[str, Any]) -> Any:
    if image["bytes"] is not None:
        return hashlib.blake2b(image["bytes"], digest_size=8).digest()
    try:
        return os.path.basename(image["path"]), os.path.getsize(image["path"])
    except (OSError, ValueError):  # which is told when the picture is read
        return image["path"]


def digests_of(rows: Dataset, name: str = "digest") -> np.ndarray:
    """Returns the digests of the checked rows that can be used; `"prompt_digest"` is that without the answers."""
    column = rows.data.column(name)
    return column.filter(rows.data.column("problem").is_null()).to_numpy()


def find_shared(digests: Mapping[str, np.ndarray], compared: Mapping[str, np.ndarray] | None = None) -> list[str]:
    """
    Words what rows stand in the data more than once.

    Args:
        digests (`dict[str, np.ndarray]`):
            Split → the digests of its rows.
        compared (`dict[str, np.ndarray]`, *optional*):
            The same by which the data to evaluate on is compared with that to train on. Where answers are sampled,
            their prompts alone are trained on.

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
    compared = digests if compared is None else compared
    trained = compared.get("train", trained)
    for split, values in compared.items():
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
