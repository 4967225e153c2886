"""Numbers as they stand in files, so that those of questions and answers are read as they were written."""

import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
from datasets import ClassLabel, Features, Value


# Around the text of a number, while it is a text of JSON; Unicode sets it aside for the inner use of programs
MARK = "\ufdd1"
MARKED = re.compile(f'"{MARK}([^"]*){MARK}"')


class Number(float):
    """A number with a point or an exponent, which keeps how it is written: `3.30`, `1e2`."""

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


def find_readers(features: Features | dict[str, Any]) -> dict[str, Callable[[Any], Any]]:
    """
    Returns for the columns of a table that store a value otherwise than it is shown what brings it back: the name of a
    class, the shortest number in half and single precision.

    Args:
        features ([`~datasets.Features`] or `dict`):
            Those of the table, or of the parts of a column.
    """
    return {name: read for name, feature in features.items() if (read := _find_reader(feature)) is not None}


def _find_reader(feature: Any) -> Callable[[Any], Any] | None:
    if isinstance(feature, ClassLabel):
        return partial(_read_class, feature.names)
    if isinstance(feature, Value) and feature.dtype in ("float16", "float32"):
        return partial(_read_float, np.dtype(feature.dtype).type)
    if isinstance(feature, dict):
        readers = find_readers(feature)
        return partial(_read_object, readers) if readers else None
    inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
    reader = None if inner is None else _find_reader(inner)
    return None if reader is None else partial(_read_list, reader)


def _read_class(names: list[str], value: int | None) -> str | int | None:
    return names[value] if value is not None and 0 <= value < len(names) else value


def _read_float(kind: type[np.floating], value: float | None) -> float | None:
    return None if value is None else float(str(kind(value)))


def _read_object(readers: dict[str, Callable[[Any], Any]], value: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if value is None else value | {name: read(value.get(name)) for name, read in readers.items()}


def _read_list(read: Callable[[Any], Any], value: list[Any] | None) -> list[Any] | None:
    return None if value is None else [read(part) for part in value]
