"""The option `--columns` of the commands that read data: where the data calls its columns otherwise."""

import argparse
import json
import re
import shlex

import yaml

from ..checks import are_columns
from ..errors import DataError


# A setting of a recipe in a message, as `word_columns` writes it
SETTING = re.compile(r"`columns: (\{[^`]*\})`")
EXAMPLE = """'{"image_url_2": "picture"}'"""


def add_columns(parser: argparse.ArgumentParser) -> None:
    """Adds `--columns`, whose value [`read_columns`] reads."""
    parser.add_argument(
        "--columns",
        metavar="JSON",
        help=f"our columns → the data's, as in training: {EXAMPLE}; the value ignore leaves a column of the data out",
    )


def as_option(message: str) -> str:
    """Words the settings `columns` in a message on data as the option `--columns`."""

    def word(match: re.Match) -> str:
        return f"`--columns {shlex.quote(json.dumps(yaml.safe_load(match[1]), ensure_ascii=False))}`"

    return SETTING.sub(word, message)


def read_columns(text: str | None) -> dict[str, str | list[str]]:
    """
    Reads the value of `--columns`.

    Args:
        text (`str`, *optional*):
            An object of JSON, as a recipe has under `columns`.

    Returns:
        `dict[str, str | list[str]]`: our column → the data's, empty without a value.

    Raises:
        DataError: if it is something else.
    """
    if text is None:
        return {}
    try:
        columns = json.loads(text)
    except (ValueError, RecursionError):
        columns = None
    if not are_columns(columns):
        raise DataError(
            f"`--columns {text}` is not a JSON object of our columns and the data's. Write it as {EXAMPLE}."
        )
    return columns
