"""The places of pictures in texts: what other data sets write there."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import DataError
from .texts import shorten


# In a user's text, the place of a picture
IMAGE_PLACE = "<image>"

# What stands for a picture. Longest first: some begin with others.
PLACEHOLDERS = (
    r"<\|vision_start\|>(?:<\|(?:image_pad|image)\|>)+<\|vision_end\|>",  # Qwen2-VL
    r"<\|begin_of_image\|>(?:<\|image\|>)+<\|end_of_image\|>",  # GLM-4V
    r"<start_of_image>(?:<image_soft_token>)+<end_of_image>",  # Gemma 3
    r"<img>(?:<IMG_CONTEXT>|<image>)*</img>",  # InternVL
    r"<im_start>(?:<im_patch>|<image>)+<im_end>",  # the first LLaVA
    r"\(?<image>(?:\./)?</image>\)?",  # MiniCPM-V
    r"<\|?image_(?:pad|placeholder|token|soft_token)\|?>",
    r"<start_of_image>",
    r"<IMG_CONTEXT>",
    r"<ImageHere>",  # InternLM-XComposer
    r"<\|?(?:image|img|picture|pic|photo|figure)[ _-]?(?P<tagged>\d*)\|?>",  # <image>, <image 1>, <|image_1|>, <img>
    r"\[(?:image|img)[ _-]?(?P<bracketed>\d*)\]",  # Pixtral
)
PLACEHOLDER = re.compile("|".join(PLACEHOLDERS), re.IGNORECASE)
# Pictures that a text brings along, and places of what is no picture
INSIDE = re.compile(
    r"""<img\s[^>]*\bsrc\s*=[^>]*>|<img>[^<\n]{1,300}</img>|data:image/[^\s"')]{1,300}|<(?:video|audio)[ _-]?\d*>"""
    r"""|!\[[^\]\n]*\]\((?:https?:|data:|[^)\s]+\.(?:png|jpe?g|gif|webp|svg|bmp)\b)[^)\n]*\)""",
    re.IGNORECASE,
)


class Place(NamedTuple):
    """
    The place of a picture in a text.

    Args:
        found (`str`):
            What stood there.
        number (`int`, *optional*):
            The number that this gave the picture.
        picture (`Any`, *optional*):
            The picture itself, if it stood there.
    """

    found: str
    number: int | None = None
    picture: Any = None


def mark_places(text: str, name: str) -> tuple[str, list[Place]]:
    """
    Writes every placeholder of a picture as `IMAGE_PLACE`.

    Args:
        text (`str`):
            A text of the user's.
        name (`str`):
            What messages call it.

    Returns:
        `tuple[str, list[Place]]`: the text and its places.

    Raises:
        DataError: if a picture, or the place of a video or a sound, stands in the text.
    """
    if not _may_have_places(text):
        return text, []
    inside = INSIDE.search(text)
    if inside:
        raise DataError(
            f"image places: {name} has '{shorten(inside[0])}' in its text; pictures belong in a column of their own, "
            f"and '{IMAGE_PLACE}' in their places"
        )
    places = []
    for match in PLACEHOLDER.finditer(text):
        number = match["tagged"] or match["bracketed"]
        places.append(Place(match[0], int(number) if number else None))
    return (PLACEHOLDER.sub(IMAGE_PLACE, text) if places else text), places


def refuse_places(text: str, name: str) -> None:
    """
    Makes sure that a text that is not the user's has no place of a picture.

    Raises:
        DataError: if it has one.
    """
    if _may_have_places(text) and (found := PLACEHOLDER.search(text)):
        raise DataError(f"image places: {name} has '{shorten(found[0])}', but pictures stand in questions alone")


def _may_have_places(text: str) -> bool:
    return "<" in text or "[" in text or "data:" in text


def check_places(places: Sequence[Place], num_images: int, name: str) -> None:
    """
    Makes sure that a side has as many places as pictures, in their order.

    Args:
        places (`Sequence[Place]`):
            Places in the texts of the side, but those of pictures that stand in the text themselves.
        num_images (`int`):
            Number of its other pictures.
        name (`str`):
            What messages call the texts.

    Raises:
        DataError: if there are other numbers of places and pictures, or the places are numbered in another order.
    """
    if len(places) != num_images:
        found = ", ".join(f"'{shorten(place.found)}'" for place in places[:3]) + (", …" if len(places) > 3 else "")
        raise DataError(
            f"image places: {name} has {len(places)} for pictures ({found}), but the row has {num_images} pictures "
            "for it"
        )
    numbers = [place.number for place in places]
    if any(number is not None for number in numbers) and numbers not in (
        list(range(len(numbers))),
        list(range(1, len(numbers) + 1)),
    ):
        shown = ", ".join(place.found for place in places[:5])
        raise DataError(
            f"image places: {name} has {shown}, but pictures are placed in their order: number them 1, 2, …"
        )
