"""Texts of rows: what makes one unusable, and values as messages show them."""

import json
import re
import unicodedata
from typing import Any

from ..errors import DataError


# Letters and signs without ink: fillers of Hangul, the empty Braille cell
UNSEEN = "\u115f\u1160\u2800\u3164\uffa0"


def describe(value: Any) -> str:
    """Returns the type and the beginning of a value, for messages."""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    try:
        return f"{type(value).__name__} {shorten(repr(value))}"
    except RecursionError:  # nested nearly as deep as can be read
        return type(value).__name__


def to_json(value: Any) -> str:
    """Writes a row as JSON, whatever is in it; of what is none, such as bytes, the type and the beginning."""
    try:
        return json.dumps(value, default=describe)
    except RecursionError:
        return describe(value)


def shorten(text: str, limit: int = 60) -> str:
    """Cuts a text that is longer than `limit` characters."""
    return text if len(text) <= limit else f"{text[:limit]}…"


def check_text(text: str, name: str) -> str:
    """
    Returns the text.

    Raises:
        DataError: if it has a NUL byte or half of a surrogate pair.
    """
    flaw = find_flaw(text)
    if flaw:
        raise DataError(f"invalid text: `{name}` {flaw}")
    return text


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: white space, zero-width and filling characters alone."""
    return not text.strip() or all(
        character.isspace() or character in UNSEEN or unicodedata.category(character) in ("Cc", "Cf")
        for character in text
    )


def is_empty(value: Any) -> bool:
    """Whether a value holds nothing: null, an empty text, or an object or a list of such."""
    if isinstance(value, dict):
        return all(map(is_empty, value.values()))
    return value in (None, "") or (isinstance(value, list) and all(map(is_empty, value)))


def guess_encoding(content: bytes) -> str:
    """Returns the name of the encoding that a text which is not UTF-8 most likely has, for messages."""
    for encoding, name, signs, share in (
        ("shift_jis", "Shift JIS", r"[\u3040-\u309f]", 0.3),
        ("gb18030", "GBK", r"[\u4e00-\u9fff\u3000-\u303f\uff00-\uffef]", 0.7),
    ):
        try:
            others = [character for character in content.decode(encoding) if not character.isascii()]
        except UnicodeDecodeError:
            continue
        if sum(bool(re.match(signs, character)) for character in others) >= share * len(others):
            return name
    return "Latin-1 (Windows-1252)"


def find_flaw(text: str) -> str | None:
    """Says what makes a text unusable, if anything does."""
    if "\0" in text:
        return f"has a NUL byte at position {text.index(chr(0))}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"is not valid Unicode: {error.reason}"
    return None
