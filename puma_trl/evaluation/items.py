"""The items of a benchmark, as published: a local json, jsonl or parquet, or the Hub data set."""

from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from .benchmarks import Benchmark
from .files import read_json, read_jsonl


# Columns that are read as texts, in whichever benchmark has them
TEXTS = ("question", "question_for_eval", "query_wo", "query_cot", "query", "option", "answer", "unit")
SUFFIXES = (".json", ".jsonl", ".parquet")


def load_items(benchmark: Benchmark, data: str | None, split: str, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """
    Loads the items and checks columns and ids.

    Args:
        benchmark ([`Benchmark`]):
            One of `BENCHMARKS`.
        data (`str`, *optional*):
            A json (list of items, or object keyed by id), jsonl or parquet file, or a Hub data set by its name or the
            folder of its copy. `None` is the benchmark's official data set.
        split (`str`):
            Split of the Hub data set.
        columns (`tuple[str, ...]`):
            Columns that every item must have.

    Returns:
        The items in their order, without columns of encoded pictures.

    Raises:
        EvaluationError: if there are no items, a column is missing, a gold answer is null, or ids are missing or
            repeated.
    """
    data, columns = data or benchmark.hub_id, tuple(dict.fromkeys(columns))
    if Path(data).suffix in SUFFIXES:
        items = _read_file(benchmark, Path(data))
    else:
        items = _read_hub(benchmark, data, split)
    if not items:
        raise EvaluationError(f"{data} holds no items.")
    for position, item in enumerate(items):
        missing = [column for column in columns if column not in item]
        if missing:
            raise EvaluationError(
                f"{data}, item {position} (from 0) lacks the column {', '.join(missing)}. It has "
                f"{', '.join(map(str, item)) or 'none'}; {benchmark.title} needs its columns as published."
            )
        if item[benchmark.id_column] is None or item["answer"] is None:
            name = benchmark.id_column if item[benchmark.id_column] is None else "answer"
            raise EvaluationError(f"{data}, item {position} (from 0): `{name}` is null, but every item needs one.")
        _check_texts(f"{data}, item {position} (from 0)", item)
    repeated = [key for key, count in Counter(benchmark.item_id(item) for item in items).items() if count > 1]
    if repeated:
        raise EvaluationError(
            f"{data}: {len(repeated)} values of `{benchmark.id_column}` occur more than once, such as {repeated[0]}. "
            f"{benchmark.duplicates}"
        )
    return items


def _check_texts(where: str, item: dict[str, Any]) -> None:
    for name in TEXTS:
        if not isinstance(item.get(name), str | None):
            raise EvaluationError(f"{where}: `{name}` is {item[name]!r}, but it must be text, as published.")
    choices = item.get("choices")
    if choices is not None and not (isinstance(choices, list) and all(isinstance(each, str) for each in choices)):
        raise EvaluationError(f"{where}: `choices` is {choices!r}, but it must be a list of texts, as published.")


def _read_file(benchmark: Benchmark, path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [item for _, item in read_jsonl(path)]
    if path.suffix == ".parquet":
        return _read_parquet(path)
    content = read_json(path)
    if isinstance(content, dict):
        items = list(content.values())
        for key, item in content.items():
            if isinstance(item, dict) and str(item.setdefault(benchmark.id_column, key)) != key:
                raise EvaluationError(
                    f"{path}: the item under key {key!r} has `{benchmark.id_column}` {item[benchmark.id_column]!r}."
                )
    else:
        items = content
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise EvaluationError(f"{path} must hold a list of objects, or an object of objects keyed by id.")
    return items


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(path)
        columns = [field.name for field in schema if not holds_pictures(field.type)]
        return parquet.read_table(path, columns=columns).to_pylist()
    except FileNotFoundError:
        raise EvaluationError(f"There is no file {path}.") from None
    except pyarrow.ArrowInvalid as error:
        raise EvaluationError(f"{path} is not a readable parquet file: {error}") from None


def holds_pictures(kind: Any) -> bool:
    """Returns whether an arrow type is that of an encoded picture, `{"bytes", "path"}`."""
    from pyarrow import types

    return types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def load_hub(benchmark: Benchmark, data: str, split: str) -> Any:
    """
    Loads a data set of the Hub, or a local copy of one, with encoded pictures.

    Args:
        benchmark ([`Benchmark`]):
            The benchmark.
        data (`str`):
            Name or folder.
        split (`str`):
            Its split, which for MathVerse is its configuration too.

    Returns:
        [`~datasets.Dataset`] whose pictures are `{"bytes", "path"}`.

    Raises:
        EvaluationError: if the data set or its split cannot be had.
    """
    from datasets import Image, load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        dataset = load_dataset(data, name=split if benchmark.config_is_split else None, split=split)
    except (DatasetNotFoundError, ValueError, ConnectionError) as error:
        raise EvaluationError(
            f"{data} is neither a local {', '.join(SUFFIXES)} file nor a data set that the Hub gives, with the split "
            f"{split}: {error}"
        ) from error
    for name, feature in dataset.features.items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(name, Image(decode=False))
    return dataset


def _read_hub(benchmark: Benchmark, data: str, split: str) -> list[dict[str, Any]]:
    from datasets import Image

    dataset = load_hub(benchmark, data, split)
    pictures = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    return dataset.remove_columns(pictures).to_list()
