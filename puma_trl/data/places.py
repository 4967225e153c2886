"""The places of pictures in texts: what other datasets write there."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import DataError
from .texts import shorten


# In a user's text, the place of a picture
IMAGE_PLACE = "<image>"

# What stands for a picture: one of these words in brackets, with a number or a part such as `_token` beside it
WORDS = (
    "image|img|picture|pic|photo|figure|fig|diagram|drawing|screenshot|illustration|media|visual|vision|graphic|图片|"
    "图像|图|圖片|圖像|圖|画像|写真|그림|이미지|사진|изображение|картинка|рисунок|imagen|imagem|immagine|bild|abbildung|foto"
)
BEFORE = "dummy|insert|begin[ _]of|start[ _]of|end[ _]of"
BEHIND = "soft[ _]token|token|pad|placeholder|start|begin|end|patch|tag|context|here|url|path|file"
CORE = (
    rf"\s{{0,3}}/?\s{{0,3}}(?:(?:{BEFORE})[ _-]{{1,2}})?(?:{WORDS})s?(?:[ _-]{{0,2}}(?:{BEHIND})){{0,2}}"
    rf"(?:[ _:#.=-]|id|no|idx|index){{0,5}}[\"']?(\d{{0,6}})[\"']?\s{{0,3}}/?\s{{0,3}}"
)
PLACEHOLDERS = (
    # runs that stand for one picture
    r"<\|vision_start\|>(?:<\|(?:image_pad|image)\|>)+<\|vision_end\|>",  # Qwen2-VL
    r"<\|?(?:begin_of_image|start_of_image|image_start|img_start)\|?>(?:<\|?image(?:_soft_token|_pad|_patch)?\|?>)*+"
    r"<\|?(?:end_of_image|image_end|img_end)\|?>",  # GLM-4V, Gemma 3
    r"<img>(?:<IMG_CONTEXT>|<image>)*</img>",  # InternVL
    r"<im_start>(?:<im_patch>|<image>)+<im_end>",  # the first LLaVA
    r"\(?<image>(?:\./)?</image>\)?",  # MiniCPM-V
    # by the kind of brackets; in braces and square ones words may be prose or LaTeX: `\text{image}`, `[image] of T`
    # Qwen's frame around a picture is a token of its own, without the picture in it
    rf"(?!<\|vision_(?:start|end)\|>)(?:[<＜‹〈]|&lt;)[|｜]?{CORE}[|｜]?(?:[>＞›〉]|&gt;)",
    rf"[\[［【]{CORE}[\]］】](?!\s?of\b)",
    rf"(?<![A-Za-z0-9_^\\{{}}$])\{{\{{?{CORE}\}}\}}?(?!\s?of\b)",
    rf"^[ \t]{{0,8}}[(（]{CORE}[)）](?=[ \t]{{0,8}}$)",
    r"\\includegraphics\*?\s?(?:\[[^\]\n]{0,200}\])?\s?\{[^}\n]{1,300}\}",
)
PLACEHOLDER = re.compile("|".join(PLACEHOLDERS), re.IGNORECASE | re.MULTILINE)
# Pictures that a text brings along, and places of what is no picture
INSIDE = re.compile(
    r"""<(?:img|image|picture)\s[^>]{0,500}\b(?:src|href)\s*=[^>]*>|<img>[^<\n]{1,300}</img>"""
    r"""|data:image/[^\s"')]{1,300}|<\|?(?:video|audio)(?:_pad|_token|_placeholder)?[ _-]?\d*\|?>"""
    r"""|!\[[^\]\n]{0,300}\]\((?:https?:|data:)[^)\n]{0,500}\)"""
    r"""|\[[^\]\n]{0,300}\]\([^)\s]{1,500}\.(?:png|jpe?g|gif|webp|svg|bmp)\b[^)\n]{0,300}\)""",
    re.IGNORECASE,
)
# Without one of these a text has none of either: a look that is much faster
STEMS = (
    "imag img im_ pic photo fig diagram drawing screenshot illustration media visual vision graphic video audio ]( "
    "图 圖 画像 写真 그림 이미지 사진 изображение картинка рисунок immagin bild abbildung foto"
).split()
# Characters that nobody sees, and short pieces in brackets, where they hide a placeholder
UNSEEN = re.compile("[\u00ad\u180e\u200b-\u200f\u2060-\u2064\ufeff]")
PIECE = re.compile(r"[<＜﹤〈‹\[［【{｛][^<>\[\]{}()\n]{1,60}[>＞﹥〉›\]］】}｝]+")


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
    text = _tidy(text)
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
        number = next(filter(None, match.groups()), None)
        places.append(Place(match[0].strip(), None if number is None else int(number)))
    return (PLACEHOLDER.sub(IMAGE_PLACE, text) if places else text), places


def refuse_places(text: str, name: str) -> None:
    """
    Makes sure that a text that is not the user's has no place of a picture.

    Raises:
        DataError: if it has one.
    """
    text = _tidy(text)
    if _may_have_places(text) and (found := PLACEHOLDER.search(text)):
        raise DataError(f"image places: {name} has '{shorten(found[0])}', but pictures stand in questions alone")


def _may_have_places(text: str) -> bool:
    lowered = text.lower()
    return any(stem in lowered for stem in STEMS)


def _tidy(text: str) -> str:
    """Writes placeholders with unseen or wide characters in them in plain ones, and leaves all else as it is."""
    if text.isascii():
        return text

    def plain(match: re.Match) -> str:
        piece = unicodedata.normalize("NFKC", UNSEEN.sub("", match[0]))
        return piece if PLACEHOLDER.fullmatch(piece) else match[0]

    return PIECE.sub(plain, text)


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
    drawn = next((place.found for place in places if place.found.startswith("\\")), None)
    if drawn and len(places) > 1:
        raise DataError(
            f"image places: {name} has '{shorten(drawn)}' and {len(places) - 1} more, whose order is not known; write "
            f"'{IMAGE_PLACE}' in each place"
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
