"""Options that the commands share which read data, with `--columns`: where the data calls its columns otherwise."""

import argparse
import json
import re
import shlex
from typing import Any

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


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds which data is read, and how."""
    parser.add_argument("data", nargs="+", help="files, folders or Hub datasets, of any form that training reads")
    add_columns(parser)
    parser.add_argument("--image_root", help="folder that relative image paths start from (default: that of the file)")
    parser.add_argument("--split", default="train", help="split of Hub datasets (default: train)")


def add_num_proc(parser: argparse.ArgumentParser) -> None:
    """Adds how many processes read."""
    parser.add_argument("--num_proc", type=int, help="processes (default: every core, up to 16)")


def add_on_policy_share(parser: argparse.ArgumentParser) -> None:
    """Adds the share of micro-batches that need no answers."""
    words = "as in training; above 0, rows need no answer (default: 0)"
    parser.add_argument("--on_policy_share", type=float, default=0.0, help=words)


def read_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of a tool by name, its columns read."""
    options = {name: value for name, value in vars(args).items() if name != "command"}
    return options | {"columns": read_columns(args.columns)}


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
