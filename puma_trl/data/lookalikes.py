"""Columns that are not read though a user may think they are: by their names, and by the pictures that they hold."""

import os
import re
import unicodedata
from collections.abc import Iterable
from typing import Any


# Words that say of a column that it holds pictures or sounds, what may stand right behind them, and words beside them
# that say it does not.
PICTURE_WORDS = (
    "image img picture pic photo figure fig diagram drawing screenshot jpg jpeg png webp video audio".split()
)
PICTURE_ENDINGS = ("", "url", "path", "file", "filename", "name", "byte", "data", "src", "link", "list")
PICTURE_SIGNS = "图圖"
ABOUT_WORDS = set(
    "id ids idx index width height size sizes shape hash phash sha md caption captions description count num number "
    "type source license category quality format mode has is".split()
)
# Columns of known formats that hold what the model should read: beside the question, or instead of it
CHOICES = {"choice", "option"}
BESIDE_QUESTION = set(
    "context passage paragraph document hint table premise condition fact background tool function chosen "
    "rejected".split()
)
QUESTIONS = set("question problem query dialog dialogue chat turn".split())

# Names that differ by one letter are taken for the same from this length on.
SHORTEST = 5

PICTURE_SUFFIX = re.compile(r"(?i)\.(?:png|jpe?g|jfif|webp|gif|bmp|tiff?|svg|heic|avif|ppm)(?:[?#]\S*)?$")
# What pictures in base64 begin with: PNG, JPEG, GIF, WebP
BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")
LONGEST_PATH = 1000
DEPTH, WIDTH = 4, 20  # how far values inside of values are looked at


def suspicion(name: str, known: Iterable[str], question_given: bool) -> str | None:
    """
    Says why a column that is not read must not hold anything, if its name is such.

    Args:
        name (`str`):
            The column.
        known (`Iterable[str]`):
            Names of columns that it may have been meant for.
        question_given (`bool`):
            Whether the user has named the column of the question, so that others are no matter.
    """
    words = _words(name)
    joined = _singular("".join(words))
    if not joined:
        return None
    for other in known:
        if _near(joined, _singular("".join(_words(other)))):
            return "is a column of another form" if name == other else f"looks like `{other}`"
    if not ABOUT_WORDS & set(words):
        if any(map(_names_pictures, words)):
            return "has the name of pictures"
        if joined in BESIDE_QUESTION or CHOICES & {_singular(word) for word in words}:
            return "may belong to the question"
    if joined in QUESTIONS and not question_given:
        return "may be the question"
    return None


def _words(name: str) -> list[str]:
    """Divides a name at capitals, digits and signs: `imageURL_2` has the words image and url."""
    name = re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    return re.findall(r"[^\W\d_]+", name.casefold())


def _singular(word: str) -> str:
    return word.removesuffix("s")


def _near(left: str, right: str) -> bool:
    """Whether two names are equal, or differ by a letter or by two neighbours in the other order."""
    left, right = sorted((left, right), key=len)
    start = len(os.path.commonprefix([left, right]))
    left, right, length = left[start:], right[start:], len(right)
    if left == right:
        return True
    swapped = left[:2] == right[1::-1] and left[2:] == right[2:]
    return length >= SHORTEST and (left == right[1:] or left[1:] == right[1:] or swapped)


def _names_pictures(word: str) -> bool:
    starts = [start for start in PICTURE_WORDS if word.startswith(start)]
    return any(sign in word for sign in PICTURE_SIGNS) or any(
        _singular(word[len(start) :]) in PICTURE_ENDINGS for start in starts
    )


def find_picture(value: Any, depth: int = DEPTH) -> str | None:
    """
    Returns the beginning of a picture that a value holds or names, for messages; `None` if there is none.

    Args:
        value (`Any`):
            A path, an address, bytes, base64, or objects and lists of these.
        depth (`int`, *optional*):
            How many objects and lists deep to look.
    """
    if isinstance(value, str):
        if len(value) <= LONGEST_PATH and "\n" not in value:
            found = PICTURE_SUFFIX.search(value)
        else:
            found = None
        return value if found or value.startswith(("data:image", *BASE64_STARTS)) else None
    if isinstance(value, bytes | bytearray):
        return f"{len(value):,} bytes" if value else None
    if depth and isinstance(value, list | tuple | dict):
        values = list(value.values()) if isinstance(value, dict) else value
        return next((found for part in values[:WIDTH] if (found := find_picture(part, depth - 1))), None)
    return None
