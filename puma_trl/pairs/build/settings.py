"""The options of a build → what is built, and the data that it reads."""

import argparse
from dataclasses import dataclass, replace

from ...data.files import Source, find_sources
from ...data.forms import IGNORE, find_forms
from ...data.lookalikes import BESIDE
from ...errors import DataError, UnreadError
from ..mapping import read_columns
from .choices import LETTERS
from .presets import PRESETS


LEVELS = ("vision_only", "vision_dominant")


@dataclass(frozen=True)
class BuildSettings:
    """Everything that decides what is written."""

    inputs: list[str]
    versions: list[str]
    image_root: str | None
    preset: str | None
    columns: dict[str, str | list[str]]
    choices: list[str]
    facts: str | None
    levels: tuple[str, ...]
    text_rich_image: str
    format: str
    source: str
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
    if len(args.choices_column) > len(LETTERS):
        raise DataError(
            f"`--choices_column` names {len(args.choices_column)} columns, one for each choice, but there are "
            f"{len(LETTERS)} letters. Name fewer."
        )
    sources = find_sources(args.input, args.image_root, args.config, args.split)
    columns = _map_columns(args)
    settings = BuildSettings(
        inputs=args.input,
        versions=[source.version for source in sources],
        image_root=args.image_root,
        preset=args.preset,
        columns=columns,
        choices=args.choices_column,
        facts=args.facts_column,
        levels=tuple(args.levels),
        text_rich_image=args.text_rich_image,
        format=args.format,
        source=args.source,
        fonts=tuple(args.font),
        seed=args.seed,
    )
    return settings, _find_forms(sources, settings)


def _map_columns(args: argparse.Namespace) -> dict[str, str | list[str]]:
    """Returns our columns → the data's, of the preset and the options that name columns."""
    columns = PRESETS[args.preset].columns if args.preset else {}
    question = "messages" if "messages" in columns else "instruction"
    if question == "messages":
        for name in ("answer", "choices", "facts"):
            if getattr(args, f"{name}_column"):
                raise DataError(
                    f"The rows of `--preset {args.preset}` are conversations: leave `--{name}_column` out."
                )
    given = {question: args.question_column, "output": args.answer_column, "image_url": args.image_column}
    return columns | {name: column for name, column in given.items() if column} | read_columns(args.columns)


def _find_forms(sources: list[Source], settings: BuildSettings) -> list[Source]:
    """
    Finds out how rows are read; choices and facts are no matter for the form, but are looked at.

    Raises:
        DataError: if the columns fit no form, a named one is in no row, or others look as if they should be read.
    """
    more = [name for name in (*settings.choices, settings.facts) if name]
    try:
        formed = find_forms(sources, settings.columns | dict.fromkeys(more, IGNORE))
    except UnreadError as error:
        if not any(reason.startswith(BESIDE) for reason in error.reasons.values()):
            raise
        raise DataError(
            f"{error} `--choices_column` names the column of choices, or one for each; `--facts_column` a text of "
            "conditions."
        ) from None
    passed = [tuple(name for name in source.form.passed if name not in more) for source in formed]
    return [
        replace(source, form=replace(source.form, passed=names)) for source, names in zip(formed, passed, strict=True)
    ]


def unread_columns(sources: list[Source], settings: BuildSettings) -> list[str]:
    """Returns the columns that no part of a build reads."""
    names = [name for source in sources for name in source.form.unread]
    return [name for name in dict.fromkeys(names) if name not in (*settings.choices, settings.facts)]
