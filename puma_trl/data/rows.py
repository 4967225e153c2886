"""A row as it stands in a file → its six columns, texts checked, images with absolute paths."""

import os
from typing import Any

from ..errors import DataError
from .files import COLUMNS, PAIR_COLUMNS, SIDE_COLUMNS


def read_row(raw: Any, root: str | None) -> dict[str, Any]:
    """
    Brings a row into the form of [`FEATURES`]: texts as they are, images as a list of structs with absolute paths.

    Args:
        raw (`Any`):
            The row as it stands in the file.
        root (`str`, *optional*):
            Folder that relative image paths start from.

    Returns:
        `dict`: the six columns; those of the second side are `None` when the row has none of them.

    Raises:
        DataError: if a column is missing or has the wrong type.
    """
    if not isinstance(raw, dict):
        raise DataError(f"wrong type: the row is {describe(raw)}, not an object with columns")
    paired = any(raw.get(name) not in (None, []) for name in PAIR_COLUMNS)
    row = dict.fromkeys(COLUMNS)
    for name in COLUMNS if paired else SIDE_COLUMNS:
        value = raw.get(name)
        if name.startswith("image"):
            row[name] = read_images(raw, name, root)
        elif value is None:
            raise DataError(f"missing value: `{name}` is missing or null; the row has: {', '.join(raw)}")
        elif not isinstance(value, str):
            raise DataError(f"wrong type: `{name}` is {describe(value)}, not text")
        else:
            row[name] = check_text(value, name)
    return row


def describe(value: Any) -> str:
    """Returns the type and the beginning of a value, for messages."""
    return f"{type(value).__name__} {shorten(repr(value))}"


def shorten(text: str, limit: int = 60) -> str:
    """Cuts a text that is longer than `limit` characters."""
    return text if len(text) <= limit else f"{text[:limit]}…"


def check_text(text: str, name: str) -> str:
    """
    Returns the text.

    Raises:
        DataError: if it has a NUL byte or half of a surrogate pair.
    """
    if "\0" in text:
        raise DataError(f"invalid text: `{name}` has a NUL byte at position {text.index(chr(0))}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"invalid text: `{name}` is not valid Unicode: {error.reason}") from None
    return text


def read_images(raw: dict[str, Any], name: str, root: str | None) -> list[dict[str, Any]]:
    """
    Returns the images of a column, which holds a path, an image, a list of them, or nothing.

    Args:
        raw (`dict[str, Any]`):
            The row as it stands in the file.
        name (`str`):
            The column.
        root (`str`, *optional*):
            Folder that relative paths start from.

    Returns:
        `list[dict]`: structs of `bytes` and an absolute `path`.

    Raises:
        DataError: if something else stands in the column.
    """
    value = raw.get(name)
    if value is None or value == "":
        return []
    return [_read_image(image, name, root) for image in (value if isinstance(value, list) else [value])]


def _read_image(value: Any, name: str, root: str | None) -> dict[str, Any]:
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if isinstance(value, dict) and value.get("bytes") is not None:
        if not isinstance(value["bytes"], bytes):
            raise DataError(f"wrong type: the bytes of `{name}` are {describe(value['bytes'])}")
        return {"bytes": value["bytes"], "path": value.get("path")}
    path = value.get("path") if isinstance(value, dict) else value
    if not isinstance(path, str) or not path:
        raise DataError(f"wrong type: `{name}` holds {describe(value)}, not a path or an image")
    check_text(path, name)
    if root is None and not os.path.isabs(path):
        raise DataError(f"missing image: `{name}` is '{path}', relative to no folder; set `image_root`")
    return {"bytes": None, "path": path if root is None else os.path.join(root, path)}
