"""The option `--columns` of the commands that read data: where the data calls its columns otherwise."""

import argparse
import json

from ..errors import DataError


EXAMPLE = """'{"image_url_2": "picture"}'"""


def add_columns(parser: argparse.ArgumentParser) -> None:
    """Adds `--columns`, whose value [`read_columns`] reads."""
    parser.add_argument(
        "--columns",
        metavar="JSON",
        help=f"our columns → the data's, as in training: {EXAMPLE}; the value ignore leaves a column of the data out",
    )


def read_columns(text: str | None) -> dict[str, str]:
    """
    Reads the value of `--columns`.

    Args:
        text (`str`, *optional*):
            An object of JSON, as a recipe has under `columns`.

    Returns:
        `dict[str, str]`: our column → the data's, empty without a value.

    Raises:
        DataError: if it is something else.
    """
    if text is None:
        return {}
    try:
        columns = json.loads(text)
    except (ValueError, RecursionError):
        columns = None
    if not isinstance(columns, dict) or not all(
        isinstance(name, str) and name for pair in columns.items() for name in pair
    ):
        raise DataError(
            f"`--columns {text}` is not a JSON object of our columns and the data's. Write it as {EXAMPLE}."
        )
    return columns
