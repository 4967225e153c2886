"""
What two problems are compared by: normalised words, digests, shared word 8-grams, numbers, and the look of a picture.

Nothing here depends on files or models. Digests have 64 bits: among a million rows, one false match in thirty million
such datasets is expected.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
from PIL import Image

from ...data.files import Source
from ...evaluation.answers import final_answer
from ...evaluation.answers.statements import find_statements


CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"  # scripts without spaces: each character is a word
WORD = re.compile(rf"[{CJK}]|\d+(?:\.\d+)?|[^\W\d_{CJK}]+|[-+*/=<>%√°∠△⊥∥≤≥≠×÷±]")
WORDLESS = re.compile(
    r"<image\s?\d*>|\*\*|\\(?:[()\[\],;:!]|(?:left|right|quad|qquad|displaystyle|text|textbf|mathrm|mathbf)(?![a-zA-Z]))"
)
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
HYPHEN = re.compile(r"(?<=[^\W\d_]{2})-(?=[^\W\d_]{2})")
# Other ways to write the same sign.
SAME = {"−": "-", "–": "-", "\\degree": "°", "^{\\circ}": "°", "^\\circ": "°", "\\angle": "∠", "\\triangle": "△"}

GRAM = 8  # words
POWERS = np.array([pow(0x9E3779B97F4A7C15, power, 2**64) for power in range(1, GRAM + 1)], dtype=np.uint64)

# With fewer grams than these, two questions share too little to be called nearly the same.
MIN_GRAMS = 5
# A question with as many words and numbers as these is told apart without its picture.
MIN_WORDS, MIN_NUMBERS = 12, 2

# Answers of this many words at most are taken whole, where nothing announces a final answer.
SHORT_ANSWER = 5

# Columns that number problems, so that rows of one number are one problem: ours, and MathVerse's
TIES = ("problem_id", "problem_index")

PICTURE_SIZE = 64  # pictures are scaled to this square
PICTURE_BITS = 256  # bits of a perceptual hash, 16 x 16 frequencies
FREQUENCIES = 16
BLANK = 1.0  # standard deviation of the grey levels below which a picture shows nothing


def split_words(text: str) -> list[str]:
    r"""
    Returns the words, numbers and signs of a text in their normal form.

    Letter case, Unicode variants (NFKC), white space, punctuation, thousands separators, LaTeX delimiters and spacing
    (`$`, `\(`, `\left`, `\,`), `**` and `<image>` make no difference; signs that carry meaning, such as - and °, stay.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    for sign, same in SAME.items():
        text = text.replace(sign, same)
    text = WORDLESS.sub(" ", text)
    return WORD.findall(HYPHEN.sub(" ", THOUSANDS.sub("", text)))


def digest(*values: object) -> int:
    """Returns 64 bits that stand for the values; never 0, which is kept for "nothing"."""
    return int.from_bytes(blake2b(repr(values).encode(), digest_size=8).digest(), "big") or 1


@lru_cache(maxsize=200_000)
def _word_digest(word: str) -> int:
    return digest(word)


def gram_digests(words: list[str]) -> np.ndarray:
    """Returns the digests of all runs of 8 words, each once, as `(G,)` of `uint64`."""
    if len(words) < GRAM:
        return np.empty(0, np.uint64)
    digests = np.array([_word_digest(word) for word in words], dtype=np.uint64)
    runs = np.lib.stride_tricks.sliding_window_view(digests, GRAM)
    return np.unique((runs * POWERS).sum(axis=1, dtype=np.uint64))  # modulo 2^64


def short_answer(output: str) -> str | None:
    r"""
    Returns the final answer of an output: what it announces (`\boxed{…}`, "the answer is"), else its last option
    letter or number; an output of at most five words that announces nothing is the answer itself.
    """
    announced = next(find_statements(output), None) is not None
    if not announced and len(output.split()) <= SHORT_ANSWER and "=" not in output:
        return output.strip()
    return final_answer(output, "text")


def perceptual_hash(image: Image.Image) -> np.ndarray | None:
    """
    Returns the perceptual hash (pHash) of a picture as `(4,)` of `uint64`; `None` if it shows nothing.

    The picture is scaled to 64 x 64 grey levels, and each of its 16 x 16 lowest frequencies (DCT-II) gives the bit
    "above their median". Scaling, compression and a change of brightness turn few of these 256 bits.
    """
    grey = np.asarray(image.convert("L").resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.BOX), dtype=np.float32)
    if grey.std() < BLANK:
        return None
    frequencies = (_cosines() @ (grey - grey.mean()) @ _cosines().T).ravel()
    return np.packbits(frequencies > np.median(frequencies)).view(np.uint64)


@lru_cache(maxsize=1)
def _cosines() -> np.ndarray:
    positions = np.arange(PICTURE_SIZE) + 0.5
    return np.cos(np.pi / PICTURE_SIZE * np.outer(np.arange(FREQUENCIES), positions)).astype(np.float32)


def bits_apart(hashes: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns in how many of 256 bits each of `hashes` `(K, 4)` differs from `other` `(4,)`, as `(K,)`."""
    return np.bitwise_count(hashes ^ other).sum(axis=1, dtype=np.int64)


@dataclass(frozen=True)
class Picture:
    """
    What is kept of a picture.

    Args:
        pixels (`int`):
            Digest of its size and RGB pixels, so that the file format makes no difference.
        look (`np.ndarray`, *optional*):
            Its perceptual hash `(4,)`; `None` if it shows nothing.
        size (`tuple[int, int]`):
            Height and width in pixels.
    """

    pixels: int
    look: np.ndarray | None
    size: tuple[int, int]


def describe_picture(image: Image.Image) -> Picture:
    """Returns what is kept of a picture in RGB."""
    pixels = int.from_bytes(blake2b(image.tobytes(), digest_size=8, key=repr(image.size).encode()).digest(), "big")
    return Picture(pixels, perceptual_hash(image), (image.height, image.width))


@dataclass(frozen=True)
class Side:
    """
    What is kept of one side of a row: a question with its pictures and its answer.

    Args:
        text (`int`):
            Digest of the question's words.
        answer (`int`):
            Digest of the final answer's words, 0 if there is none.
        grams (`np.ndarray`):
            Digests of the question's word 8-grams, `(G,)`.
        numbers (`Counter[str]`):
            Numbers of the question, with how often they stand there.
        says_all (`bool`):
            Whether the question is long enough to be told apart without its picture.
        pictures (`tuple[Picture, ...]`):
            Its pictures.
        tie (`int`):
            Digest of the number of its problem, 0 if it has none.
    """

    text: int
    answer: int
    grams: np.ndarray
    numbers: Counter[str]
    says_all: bool
    pictures: tuple[Picture, ...] = field(default=())
    tie: int = 0

    @property
    def key(self) -> int:
        """Digest of the question and its pictures; 0 if it is empty."""
        return digest(self.text, [picture.pixels for picture in self.pictures]) if self.text else 0


def seen_ties(sources: Iterable[Source]) -> list[str]:
    """Returns the columns that number problems in any of the sources, whose forms are known."""
    return [name for name in TIES if any(name in source.form.seen for source in sources)]


def word_ties(names: Iterable[str]) -> str:
    """Returns columns that number problems in words."""
    return " or ".join(f"`{name}`" for name in names)


def tie_of(raw: Any) -> int:
    """Returns the digest of the number that a row gives its problem, 0 if it gives none."""
    for name in TIES:
        number = raw.get(name) if isinstance(raw, dict) else None
        if isinstance(number, float) and number.is_integer():  # of a table with gaps
            number = int(number)
        if isinstance(number, str | int) and str(number).strip():
            return digest(name, str(number).strip())
    return 0


def describe_side(question: str, answer: str | None, pictures: tuple[Picture, ...], tie: int = 0) -> Side:
    """Returns what is kept of a question with its final answer, if known, its pictures, and the tie to its problem."""
    words = split_words(question)
    numbers = [word for word in words if word[0].isdigit()]
    answer_words = split_words(answer or "")
    return Side(
        text=digest(words) if words else 0,
        answer=digest(answer_words) if answer_words else 0,
        grams=gram_digests(words),
        numbers=Counter(numbers),
        says_all=len(words) >= MIN_WORDS and len(numbers) >= MIN_NUMBERS,
        pictures=pictures,
        tie=tie,
    )
