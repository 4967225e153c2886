"""The options of a build → what is built, and the data that it reads."""

import argparse
from dataclasses import asdict, dataclass

from ...data.files import Source, find_chunks, find_sources
from ...data.readers import read_chunk
from ...errors import DataError
from .presets import PRESETS, Columns, read_conversation, read_plain


LEVELS = ("vision_only", "vision_dominant")


@dataclass(frozen=True)
class BuildSettings:
    """Everything that decides what is written."""

    inputs: list[str]
    versions: list[str]
    image_root: str | None
    preset: str | None
    columns: Columns
    levels: tuple[str, ...]
    text_rich_image: str
    format: str
    fonts: tuple[str, ...]
    seed: int


def read_settings(args: argparse.Namespace) -> tuple[BuildSettings, list[Source]]:
    """
    Turns the options of the command into settings and the sources that they name.

    Raises:
        DataError: if the options contradict each other or the input is not there.
    """
    if args.push_to_hub and args.format != "parquet":
        raise DataError("`--push_to_hub` needs `--format parquet`, which holds the pictures.")
    reader, columns = PRESETS[args.preset] if args.preset else (read_plain, Columns())
    given = {name: getattr(args, f"{name}_column") for name in asdict(columns)}
    if reader is read_conversation:
        for name in ("answer", "choices", "facts"):
            if given[name]:
                raise DataError(
                    f"The rows of `--preset {args.preset}` are conversations: leave `--{name}_column` out."
                )
        given["answer"] = given["question"]
    columns = Columns(**asdict(columns) | {name: value for name, value in given.items() if value})
    sources = find_sources(args.input, args.image_root, args.config, args.split)
    _check_columns(sources, columns, {given[name] for name in ("image", "choices", "facts") if given[name]})
    settings = BuildSettings(
        inputs=args.input,
        versions=[source.version for source in sources],
        image_root=args.image_root,
        preset=args.preset,
        columns=columns,
        levels=tuple(args.levels),
        text_rich_image=args.text_rich_image,
        format=args.format,
        fonts=tuple(args.font),
        seed=args.seed,
    )
    return settings, sources


def _check_columns(sources: list[Source], columns: Columns, named: set[str]) -> None:
    """
    Makes sure that the columns which the user named, and rows may do without, are there; mostly the first row has all.

    Raises:
        DataError: if a column occurs in no row.
    """
    missing, seen = set(named), set()
    chunks = find_chunks(sources, columns.names)
    while missing and (chunk := next(chunks, None)):
        source = sources[chunk.source]
        for _, row in read_chunk(source, chunk, columns.names):
            if isinstance(row, dict):
                missing -= row.keys()
                seen |= row.keys()
    if missing and seen:
        name = min(missing)
        raise DataError(
            f"No row of the input has the column `{name}`. The columns are: {', '.join(sorted(seen))}. Name one of "
            "them, or leave that option out."
        )
