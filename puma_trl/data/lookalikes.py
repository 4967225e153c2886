"""Columns that are not read though a user may think they are: by their names, and by the pictures that they hold."""

import os
import re
import unicodedata
from collections.abc import Collection, Iterable
from typing import Any


def _singular(word: str) -> str:
    return word if len(word) <= 3 or word.endswith("ss") else word.removesuffix("s")


def _singulars(words: str) -> set[str]:
    return set(map(_singular, words.split()))


# Why a column that is not read must not hold anything
PICTURES = "has the name of pictures"
MEDIA = "has the name of sounds or films, which are not read"
BESIDE = "may belong to the question"
CHOICE = f"{BESIDE} as a choice"
SYSTEM = "may be the system prompt"
TEMPLATE = "would change what the chat template writes: `chat_template_path` names another"
QUESTION = "may be the question"
REPLY = "may be the answer, or one to avoid"

# Words that say of a column that it holds pictures, or sounds and films, what may stand right behind them, and words
# beside them that say it does not.
PICTURE_WORDS = (
    "image img picture pic photo figure fig diagram drawing screenshot illustration thumbnail visual graphic sketch "
    "chart graph plot scan attachment media asy asymptote jpg jpeg png webp gif svg tikz pdf pixel imagen "
    "imagem immagine bild abbildung foto"
).split()
MEDIA_WORDS = "video audio movie film speech sound clip waveform".split()
PICTURE_ENDINGS = ("", "url", "path", "file", "filename", "name", "byte", "data", "src", "link", "list")
ABOUT_WORDS = set(
    "id ids idx index width height size sizes shape hash phash sha md caption captions alt title description count "
    "num number type topic domain style source license credit author category quality format mode model label labels "
    "max min class classes has is".split()
)
# Words of columns that hold what the model should read beside the question, the choices first. A name is one of these
# if it has no others than them, than fillers and single letters.
CHOICES = _singulars(
    "choice option candidate ending alternative distractor distracter choix opción opcion opciones opção "
    "opzione optionen antwortmöglichkeit antwortmöglichkeiten вариант варианты"
)
BESIDE_QUESTION = _singulars(
    "context ctx passage paragraph document article body story stem scenario given evidence support background "
    "premise precondition condition constraint assumption statement setup guideline fact hint excerpt vignette "
    "transcript table tool function contexte contexto contesto kontext контекст"
)
FILLERS = _singulars(
    "question problem query answer multiple multi mc all list text string content full reading supporting "
    "information info"
)
# Words of answers: what ends in one belongs to no question, as `multiple_choice_answer`
ANSWERS = {"answer", "solution", "label", "response", "output"}
# Parts of words in scripts that put no spaces between them, or change their endings
PICTURE_SIGNS = "图 圖 画像 写真 그림 이미지 사진 изображени картинк рисун".split()
CHOICE_SIGNS = "选项 選項 选择 選択 候选 候選 选择肢 보기".split()
BESIDE_SIGNS = "上下文 題幹 题干 文章 材料 背景 已知 条件 條件 提示 文脈 本文 지문".split()
# Columns of whole questions, of what comes before them, and of answers, by all of their letters
SYSTEMS = set("sys sysprompt sysmsg systemmsg systemmessage systemtext systeminstruction persona preamble".split())
TEMPLATES = {"chattemplate", "chattemplatekwarg"}
QUESTIONS = set("question problem query dialog dialogue chat turn".split())
REPLIES = {"chosen", "rejected", "preferred", "dispreferred"}
REPLY_FILLERS = set("answer response solution output completion reply text".split())

# Names that differ by one letter are taken for the same from this length on.
SHORTEST = 5

# A name that goes on as others do: `opa`, `opb`; `op1`, `op2`; `A`, `B`
NUMBERED = re.compile(r"(?P<stem>.*?)(?P<sign>[A-Ha-h]|\d)")
CHOICE_STEMS = {"op", "opt", "ans", "sol"}

# Lettered choices, lines of a list, or choices with a heading
CHOICE_LIST = re.compile(
    r"(?s)(?:^|[\s(（])[Aa]\s*[.:)．：、）].*?[\s(（][Bb]\s*[.:)．：、）]"
    r"|(?i:\b(?:options|choices))\s*[:：]|选项\s*[:：]|①.*②"
    r"|(?:^|\n)\s*(?:[-*•]|\(?1\s*[.)]).*\n\s*(?:[-*•]|\(?2\s*[.)])"
)

PICTURE_FILE = r"\.(?:png|jpe?g|jfif|webp|gif|bmp|tiff?|svg|heic|avif|ppm)"
PICTURE_SUFFIX = re.compile(rf"(?i){PICTURE_FILE}(?:[?#]\S*)?$")
# What pictures in base64 begin with: PNG, JPEG, GIF, WebP
BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")
# A picture inside of an object or a list that is written as a text
PICTURE_IN_TEXT = re.compile(
    rf"""(?i)["']((?:data:image|{"|".join(map(re.escape, BASE64_STARTS))})[^"'\\]{{0,60}}"""
    rf"""|[^"'\n]{{0,300}}{PICTURE_FILE}(?:[?#][^\s"'\\]*)?)(?:\\*["']|[^"'\\]{{60}})"""
)
LONGEST_PATH = 1000
DEPTH, WIDTH = 4, 20  # how far values inside of values are looked at


def suspicion(name: str, known: Iterable[str], given: Collection[str]) -> str | None:
    """
    Says why a column that is not read must not hold anything, if its name is such.

    Args:
        name (`str`):
            The column.
        known (`Iterable[str]`):
            Names of columns that it may have been meant for.
        given (`Collection[str]`):
            What the user has named the column of: `QUESTION` or `REPLY`, so that others are no matter.
    """
    words = [_singular(word) for word in split_name(name)]
    joined = "".join(words)
    if not joined:
        return None
    for other in known:
        if _near(joined, "".join(map(_singular, split_name(other)))):
            return "is a column of another form" if name == other else f"looks like `{other}`"
    if not ABOUT_WORDS & {*words, *split_name(name)}:
        if any(map(_names_pictures, words)):
            return PICTURES
        if any(map(_names_media, words)):
            return MEDIA
        rest = {word for word in words if len(word) > 1 and word not in FILLERS and words[-1] not in ANSWERS}
        if rest and rest <= CHOICES | BESIDE_QUESTION or _has_sign(joined, CHOICE_SIGNS + BESIDE_SIGNS):
            return BESIDE
    if joined in SYSTEMS:
        return SYSTEM
    if joined in TEMPLATES:
        return TEMPLATE
    if joined in QUESTIONS and QUESTION not in given:
        return QUESTION
    if REPLY not in given and (replies := REPLIES & set(words)) and set(words) - replies <= REPLY_FILLERS:
        return REPLY
    return None


def names_choices(name: str) -> bool:
    """Whether a name is one of choices."""
    words = {_singular(word) for word in split_name(name)}
    return bool(words & CHOICES) or _has_sign(name, CHOICE_SIGNS)


def names_answer(name: str) -> bool:
    """Whether a name has a word of answers, so that what it holds must not get into the question."""
    return bool(ANSWERS & set(map(_singular, split_name(name))))


def has_choices(text: str) -> bool:
    """Whether a text lists choices: lettered ones, or lines with numbers or bullets."""
    return CHOICE_LIST.search(text) is not None


def find_series(names: Iterable[str]) -> list[str]:
    """Returns the names that go on by letters as others do, or short ones by numbers: of choices, each in a column."""
    series: dict[tuple[str, bool], dict[str, str]] = {}
    for name in names:
        match = NUMBERED.fullmatch(name)
        if match and not is_about(match["stem"]):
            sign = match["sign"]
            if not sign.isdigit() or "".join(split_name(match["stem"])) in CHOICE_STEMS:
                series.setdefault((match["stem"], sign.isupper()), {})[sign.lower()] = name
    starts = ({"a", "b"}, {"1", "2"}, {"0", "1"})
    return [
        name for found in series.values() if any(start <= found.keys() for start in starts) for name in found.values()
    ]


def is_about(name: str) -> bool:
    """Whether a name says that the column describes something, such as a picture or a source."""
    return bool(ABOUT_WORDS & set(split_name(name)))


def split_name(name: str) -> list[str]:
    """Divides a name at capitals, digits and signs: `imageURL_2` has the words image and url."""
    name = re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    return re.findall(r"[^\W\d_]+", name.casefold())


def _has_sign(name: str, signs: Iterable[str]) -> bool:
    return any(sign in name for sign in signs)


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
    return _has_sign(word, PICTURE_SIGNS) or _has_ending(word, PICTURE_WORDS)


def _names_media(word: str) -> bool:
    return _has_ending(word, MEDIA_WORDS)


def _has_ending(word: str, starts: Iterable[str]) -> bool:
    return any(word.startswith(start) and _singular(word[len(start) :]) in ("s", *PICTURE_ENDINGS) for start in starts)


def find_picture(value: Any, depth: int = DEPTH) -> str | None:
    """
    Returns the beginning of a picture that a value holds or names, for messages; `None` if there is none.

    Args:
        value (`Any`):
            A path, an address, bytes, base64, or objects and lists of these, also written as a text.
        depth (`int`, *optional*):
            How many objects and lists deep to look.
    """
    if isinstance(value, str):
        if value.lstrip()[:1] in ("{", "[") and (inside := PICTURE_IN_TEXT.search(value)):
            return inside[1]
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
