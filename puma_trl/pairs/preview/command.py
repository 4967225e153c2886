"""
Writes one self-contained HTML page that shows both sides of each pair beside each other, to look through by kind,
length and words.

```bash
puma-trl pairs preview outputs/pairs/train.jsonl --output preview.html
puma-trl pairs preview outputs/mini/data/heldout.jsonl --model outputs/mini/stage2 --measure --replies
```

Rows are read as in training, and those that training could not use are shown with the reason. With a model, lengths
count in its tokens, and the page can show what it makes of the pairs: the divergence between both sides, the loss of
each answer token on both, and its replies.
"""

import argparse
import math
from pathlib import Path
from typing import Any

from datasets import Dataset, Features

from ...data.checks import FEATURES, SIDE_NAMES, RowChecker
from ...data.files import Chunk, Source, find_chunks, find_sources
from ...data.forms import find_forms
from ...data.readers import read_chunk
from ...data.render import prompt_of
from ...data.rows import ROW_COLUMNS
from ...data.texts import shorten
from ...errors import DataError
from ...evaluation.progress import Progress
from ...evaluation.settings import GapSettings, add_settings
from ..check.scan import make_checker, sampled_answers
from ..mapping import add_data, add_on_policy_share, read_options
from .page import PageWriter, describe_size


THUMBNAIL_SIZES = (16, 2048)
LONGEST_RAW = 2_000  # characters of a broken row that the page shows
LONGEST_VALUE = 80  # characters of a value of another column


def preview_pairs(
    data: list[str],
    output: Path,
    *,
    columns: dict[str, str | list[str]] | None = None,
    image_root: str | None = None,
    split: str = "train",
    on_policy_share: float = 0.0,
    model: str | None = None,
    measure: bool = False,
    replies: bool = False,
    thumbnail_size: int = 320,
    max_pairs: int = 10_000,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    dtype: str = "auto",
) -> dict[str, int]:
    """
    Writes the page.

    The arguments are the options of the command, where they are described; `columns` is our column → the data's.

    Returns:
        `dict[str, int]`: `pairs` on the page, `problems` (those that cannot be used), `total` rows of the data,
        `bytes` of the page.

    Raises:
        DataError: if an option is out of range, or the data or the processor cannot be read, or there is no row.
        EvaluationError: if the model cannot be read, or its tokenizer cannot tell which text a token stands for.
    """
    _check_options(output, model, measure or replies, thumbnail_size, max_pairs)
    sampled = sampled_answers(on_policy_share)
    sources = find_forms(find_sources(data, image_root, None, split), columns, needs_answers=sampled is None)
    loaded = None
    if measure or replies:
        from .measure import load_model

        loaded = load_model(model, dtype)
    checker = make_checker(sources, model, max_length=None, sampled=sampled)
    chunks = list(find_chunks(sources))
    total = _count_rows(sources, chunks)
    rows, records = [], []
    with PageWriter(output, thumbnail_size) as page, Progress("pairs", min(total, max_pairs)) as progress:
        for chunk in chunks:
            read = _read_chunk(sources, chunk, checker)[: max_pairs - len(records)]
            records += _make_records(read, page, None if model is None else checker)
            progress.advance(len(read))
            if loaded is not None:
                rows += [row for row, _ in read]
            if len(records) == max_pairs:
                break
        if not records:
            raise DataError(f"There is no row in {', '.join(data)}. Name data with rows.")
        if loaded is not None:
            _add_measures(loaded, rows, records, measure, replies, batch_size, max_new_tokens)
        total = total if len(records) == max_pairs else len(records)  # without blank lines
        unit = "characters" if model is None else "tokens"
        title = ", ".join(source.name for source in sources[:3]) + (" and others" if len(sources) > 3 else "")
        size = page.finish(records, {"title": title, "total": total, "unit": unit, "model": model})
    problems = sum("problem" in record for record in records)
    return {"pairs": len(records), "problems": problems, "total": total, "bytes": size}


def _check_options(output: Path, model: str | None, measured: bool, thumbnail_size: int, max_pairs: int) -> None:
    low, high = THUMBNAIL_SIZES
    if output.suffix.lower() not in (".html", ".htm"):
        raise DataError(f"The page would be written to '{output}'. Give a name that ends with .html.")
    if output.is_dir():
        raise DataError(f"'{output}' is a folder. Choose another name for the page.")
    if measured and model is None:
        raise DataError("`--measure` and `--replies` need the model to ask. Name it with `--model`.")
    if not low <= thumbnail_size <= high:
        raise DataError(f"`--thumbnail_size` is {thumbnail_size}, but must be {low} to {high} pixels.")
    if max_pairs < 1:
        raise DataError(f"`--max_pairs` is {max_pairs}, but must be at least 1.")


def _count_rows(sources: list[Source], chunks: list[Chunk]) -> int:
    """Counts the rows of all sources, blank lines of jsonl included, from the last chunk of each where that can be."""
    ends, total = {}, 0
    for chunk in chunks:
        if sources[chunk.source].kind == "csv":  # whose rows are numbered by lines
            total += len(list(read_chunk(sources[chunk.source], chunk)))
        else:
            ends[chunk.source] = chunk
    for position, chunk in ends.items():
        numbers = [number for number, _ in read_chunk(sources[position], chunk)]
        total += numbers[-1] if numbers else chunk.first - 1
    return total


def _read_chunk(
    sources: list[Source], chunk: Chunk, checker: RowChecker
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Returns the rows of a chunk in the form of [`FEATURES`], and the values of their other columns."""
    source = sources[chunk.source]
    rows = checker.check(chunk)
    names = source.form.unread
    if source.kind == "table" and not names:
        others = [{}] * len(rows)
    elif source.kind == "table":
        others = source.table.select_columns(names).with_format("arrow")[chunk.start : chunk.end].to_pylist()
    else:
        raws = (raw if isinstance(raw, dict) else {} for _, raw in read_chunk(source, chunk))
        others = [{name: raw[name] for name in raw if name not in source.form.settled} for raw in raws]
    return list(zip(rows, others, strict=True))


def _make_records(
    read: list[tuple[dict[str, Any], dict[str, Any]]], page: PageWriter, checker: RowChecker | None
) -> list[dict[str, Any]]:
    """Adds the pictures of rows to the page and returns the rows as it shows them."""
    sides = [(row, side) for row, _ in read for side in SIDE_NAMES if row[f"instruction{side}"] is not None]
    pictures = [image for row, side in sides for image in row[f"image_url{side}"]]
    results = iter(page.add_images(pictures))
    shown = {}
    for row, side in sides:
        images = [next(results) for _ in row[f"image_url{side}"]]
        broken = [image for image in images if isinstance(image, str)]
        if broken and row["problem"] is None:
            row["problem"] = f"{broken[0]} (`image_url{side}`)"
        shown[row["row_id"], side] = {
            "prompt": row[f"instruction{side}"],
            "answer": row[f"output{side}"],
            "images": [image for image in images if not isinstance(image, str)],
        }
    if checker is not None:
        _count_tokens(checker, [pair for pair in sides if pair[0]["problem"] is None], shown)
    records = []
    for row, other in read:
        record = {"id": row["row_id"]} | _describe(other)
        record["sides"] = (
            [] if row["instruction"] is None else [shown.get((row["row_id"], side)) for side in SIDE_NAMES]
        )
        if row["problem"] is not None:
            record["problem"] = row["problem"]
        if row["raw"] is not None:
            record["raw"] = shorten(row["raw"], LONGEST_RAW)
        records.append(record)
    return records


def _count_tokens(
    checker: RowChecker, sides: list[tuple[dict[str, Any], str]], shown: dict[tuple[str, str], dict[str, Any]]
) -> None:
    """Gives each side its tokens of prompt, pictures and answer, end token included."""
    prompts = checker.renderer.prompts([prompt_of(row, side) for row, side in sides])
    for (row, side), prompt in zip(sides, checker.counter.count_texts(prompts), strict=True):
        record = shown[row["row_id"], side]
        images = sum(checker.counter.count_image((height, width)) for _, width, height in record["images"])
        record["tokens"] = [prompt, images, row["num_answer_tokens"]]


def _describe(other: dict[str, Any]) -> dict[str, Any]:
    """Returns the kind of a row, and its other columns that are short enough to show."""
    values = {}
    for name, value in other.items():
        if isinstance(value, str | int | float) and value != "":
            finite = not isinstance(value, float) or math.isfinite(value)
            values[name] = shorten(value, LONGEST_VALUE) if isinstance(value, str) else value if finite else str(value)
    kind = values.pop("kind", None)
    return ({} if kind is None else {"kind": str(kind)}) | ({"more": values} if values else {})


def _add_measures(
    loaded: Any,
    rows: list[dict[str, Any]],
    records: list[dict[str, Any]],
    measure: bool,
    replies: bool,
    batch_size: int,
    max_new_tokens: int | None,
) -> None:
    """Puts what the model makes of the usable pairs into their records; those without an answer get nothing."""
    usable = [position for position, row in enumerate(rows) if row["problem"] is None and row["output_2"]]
    if not usable:
        raise DataError("No row is a pair with an answer that can be used. Leave `--measure` and `--replies` out.")
    names = [name for name in FEATURES if name in ("row_id", *ROW_COLUMNS, "length", "num_answer_tokens")]
    pairs = Dataset.from_list(
        [{name: rows[position][name] for name in names} for position in usable],
        features=Features({name: FEATURES[name] for name in names}),
    )
    if measure:
        for position, result in zip(usable, loaded.measure_losses(pairs, batch_size), strict=True):
            records[position]["measured"] = result
    if replies:
        for position, result in zip(usable, loaded.reply(pairs, batch_size, max_new_tokens), strict=True):
            for side, (reply, right) in zip(records[position]["sides"], result, strict=True):
                side |= {"reply": reply, "right": right}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `puma-trl pairs preview`."""
    add_data(parser)
    add_on_policy_share(parser)
    parser.add_argument("--output", type=Path, default=Path("preview.html"), help="the page (default: preview.html)")
    parser.add_argument("--model", help="folder or Hub name of a model: lengths count in its tokens")
    parser.add_argument("--measure", action="store_true", help="show KL and token losses of the model")
    parser.add_argument("--replies", action="store_true", help="show the model's greedy replies; slow")
    parser.add_argument("--thumbnail_size", type=int, default=320, help="pixels of the longest side (default: 320)")
    parser.add_argument("--max_pairs", type=int, default=10_000, help="show the first rows only (default: 10000)")
    add_settings(parser, GapSettings, "batch_size", "max_new_tokens", "dtype")


def main(args: argparse.Namespace) -> None:
    """Writes the page and prints what is on it."""
    done = preview_pairs(**read_options(args))
    cut = f" of {done['total']:,} rows" if done["total"] > done["pairs"] else ""
    problems = f", {done['problems']:,} of them with a problem" if done["problems"] else ""
    print(f"{done['pairs']:,} pairs{cut}{problems} in {args.output} ({describe_size(done['bytes'])})")
