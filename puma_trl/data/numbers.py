"""Numbers as they stand in files, so that those of questions and answers are read as they were written."""

import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
from datasets import ClassLabel, Features, Value


# Around the text of a number, while it is a text of JSON; Unicode sets it aside for the inner use of programs
MARK = "\ufdd1"
MARKED = re.compile(f'"{MARK}([^"]*){MARK}"')


class Number(float):
    """
    A number with a point or an exponent, which keeps how it is written: `3.30`, `1e2`.

    Args:
        text (`str`):
            The number in JSON.
    """

    def __new__(cls, text: str):
        number = super().__new__(cls, text)
        number.text = str(text)
        return number

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


def number_to_text(value: Any) -> Any:
    """Returns the text of a finite number as it is written, and any other value as it is."""
    if isinstance(value, Number):
        return value.text
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, np.number):
        value = value.item()
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return json.dumps(value) if is_number and math.isfinite(value) else value


def write_json(row: Any) -> str:
    """Writes a row as JSON, with its numbers as they were written."""
    return MARKED.sub(r"\1", json.dumps(_mark(row), ensure_ascii=False))


def _mark(value: Any) -> Any:
    if isinstance(value, Number):
        return f"{MARK}{value.text}{MARK}"
    if isinstance(value, list):
        return [_mark(part) for part in value]
    return {key: _mark(part) for key, part in value.items()} if isinstance(value, dict) else value


def find_readers(features: Features) -> dict[str, Callable[[Any], Any]]:
    """
    Returns for the columns of a table that store a value otherwise than it is shown what brings it back: the name of a
    class, the shortest number in half and single precision.

    Args:
        features ([`~datasets.Features`]):
            Those of the table.
    """
    return {name: read for name, feature in features.items() if (read := _find_reader(feature)) is not None}


def _find_reader(feature: Any) -> Callable[[Any], Any] | None:
    if isinstance(feature, ClassLabel):
        read = _name_of_class(feature)
    elif isinstance(feature, Value) and feature.dtype in ("float16", "float32"):
        kind = np.dtype(feature.dtype).type
        read = lambda value: float(str(kind(value)))  # noqa: E731
    elif isinstance(feature, dict):
        readers = {name: reader for name, part in feature.items() if (reader := _find_reader(part)) is not None}
        if not readers:
            return None
        read = lambda value: value | {name: reader(value.get(name)) for name, reader in readers.items()}  # noqa: E731
    else:
        inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
        reader = None if inner is None else _find_reader(inner)
        if reader is None:
            return None
        read = lambda value: [reader(part) for part in value]  # noqa: E731
    return lambda value: None if value is None else read(value)


def _name_of_class(feature: ClassLabel) -> Callable[[int], str | int]:
    names = feature.names
    return lambda value: names[value] if 0 <= value < len(names) else value
