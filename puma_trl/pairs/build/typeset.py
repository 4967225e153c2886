"""Problem text → lines of boxes: words, formulas, and characters of scripts without spaces, wrapped to a width."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

from ...errors import DataError
from . import fonts, latex
from .layout import Setter, break_formula
from .pieces import Piece, measure
from .tree import Row, Space


# Chinese, Japanese and Korean: a line may break between any two of these characters …
WIDE = re.compile("[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")
# … except before and after these.
NO_BREAK_BEFORE = frozenset("、。，．：；？！）］｝〉》」』】〕’”…ー々")
NO_BREAK_AFTER = frozenset("（［｛〈《「『【〔‘“")
# What Unicode says is not to be displayed (Default_Ignorable_Code_Point), but for the category Cf: joiners, fillers of
# Hangul, variation selectors. Some fonts have blanks for it, most have nothing.
IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
# Signs without ink: the Braille pattern without dots, the null notehead, the filler of Khitan.
INKLESS = frozenset("\u2800\U0001d159\U00016fe4")
# Scripts that are written from the right, or whose letters take another form beside each other.
SHAPED = ("ARABIC", "HEBREW", "SYRIAC", "THAANA", "DEVANAGARI", "BENGALI", "GURMUKHI", "GUJARATI", "ORIYA", "TAMIL")
SHAPED += ("TELUGU", "KANNADA", "MALAYALAM", "SINHALA", "THAI", "LAO", "TIBETAN", "MYANMAR", "KHMER", "MONGOLIAN")


@dataclass(frozen=True)
class Box:
    """
    What is printed in one go.

    Args:
        text (`str`):
            The characters, or the LaTeX of a formula.
        width (`int`):
            Pixels to the start of what follows.
        ascent (`int`), descent (`int`):
            Pixels above and below the baseline.
        pieces (`tuple[Piece, ...]`):
            What is drawn.
    """

    text: str
    width: int
    ascent: int
    descent: int
    pieces: tuple[Piece, ...] = field(repr=False)


@dataclass(frozen=True)
class Word:
    """
    Boxes between which no line breaks.

    Args:
        boxes (`tuple[Box, ...]`):
            From left to right.
        spaced (`bool`):
            Whether a space stands before the word.
        alone (`bool`):
            Whether the word is a line of its own, in the middle.
    """

    boxes: tuple[Box, ...]
    spaced: bool
    alone: bool = False

    @property
    def width(self) -> int:
        """Width in pixels."""
        return sum(box.width for box in self.boxes)


@dataclass(frozen=True)
class Line:
    """Boxes with their distance from the left edge, in pixels."""

    boxes: tuple[tuple[int, Box], ...]

    @property
    def ascent(self) -> int:
        """Pixels of ink above the baseline."""
        return max((box.ascent for _, box in self.boxes), default=0)

    @property
    def descent(self) -> int:
        """Pixels of ink below the baseline."""
        return max((box.descent for _, box in self.boxes), default=0)


class DoesNotFit(DataError):
    """A problem does not fit on its canvas."""


def clean(text: str) -> str:
    """
    Brings a text into the form in which it is printed: composed characters, plain spaces, formulas on one line, no
    emphasis, nothing invisible.

    Raises:
        DataError: if the text is in a script that is written from the right or needs shaping.
    """
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = latex.tidy(text)
    kept = []
    for character in text:
        category = unicodedata.category(character)
        if character != "\n" and (character.isspace() or category == "Cc" or character in INKLESS):
            character = " "
        elif category == "Cf" or IGNORABLE.match(character):  # zero-width and direction marks are Cf
            continue
        elif ord(character) > 0x58F and unicodedata.name(character, "").startswith(SHAPED):
            raise DataError(f"unsupported script: '{character}' (U+{ord(character):04X}) needs text shaping")
        kept.append(character)
    return "".join(kept)


@dataclass
class Typesetter:
    """
    Turns text into words.

    Args:
        book ([`FontBook`]):
            Where characters find their fonts.
        typeface (`str`):
            Key of `fonts.TYPEFACES`.

    Attributes:
        formulas (`int`): Formulas of the last call of [`Typesetter.words`].
        failures (`list[tuple[str, str]]`): What is printed as source there, with the reasons.
        size, width (`int`): Arguments of that call.
    """

    book: fonts.FontBook
    typeface: str
    formulas: int = field(default=0, init=False)
    failures: list[tuple[str, str]] = field(default_factory=list, init=False)
    size: int = field(default=0, init=False)
    width: int = field(default=0, init=False)

    def words(self, text: str, size: int, width: int) -> list[list[Word]]:
        """
        Returns the words of each paragraph; one that is wider than the column comes in single characters.

        Args:
            text (`str`):
                What [`clean`] returned.
            size (`int`):
                Size of the letters in pixels.
            width (`int`):
                Width of the column in pixels.

        Raises:
            DataError: if a character is in no font.
        """
        self.formulas, self.failures = 0, []
        self.size, self.width = size, width
        return [self._paragraph(paragraph) for paragraph in text.split("\n")]

    def _paragraph(self, paragraph: str) -> list[Word]:
        words: list[Word] = []
        glued = False  # whether the next word goes on with the one before, as a full stop with its formula
        for part in latex.split_paragraph(paragraph):
            if part.node is not None:
                new = self._formula_words(part, spaced=not glued)
            else:
                if part.reason:
                    self.failures.append((part.text, part.reason))
                new = list(self._plain_words(part.text))
            closes = bool(new and words) and words[-1].alone and part.text[0] in NO_BREAK_BEFORE | frozenset(".,;:")
            if closes:  # a full stop behind a formula that stands alone
                words[-1] = replace(words[-1], boxes=words[-1].boxes + new.pop(0).boxes)
            elif glued and new and not new[0].spaced and not new[0].alone and self._fits(words[-1], new[0]):
                new[0] = Word(words[-1].boxes + new[0].boxes, words.pop().spaced)
            elif new and not glued:
                new[0] = replace(new[0], spaced=True)
            words += new
            glued = bool(words) and not words[-1].alone and (part.node is not None or not part.text[-1].isspace())
        return words

    def _formula_words(self, part: latex.Part, spaced: bool) -> list[Word]:
        """Makes one word of a formula, or one of each term if it is wider than the column."""
        self.formulas += any(not isinstance(item, Space) for item in part.node.items)
        word = Word((_formula_box(part.node, part.text, self._setter()),), spaced, part.alone)
        if self._fits(word):
            return [word]
        boxes = [_formula_box(term, part.text, self._setter()) for term in break_formula(part.node)]
        return [Word((box,), spaced and index == 0) for index, box in enumerate(boxes)]

    def _setter(self) -> Setter:
        return Setter(self.book, self.typeface, self.size)

    def _fits(self, *words: Word) -> bool:
        return sum(word.width for word in words) <= self.width

    def _plain_words(self, text: str) -> Iterator[Word]:
        chosen = self.book.choose(self.typeface, text)
        for match in re.finditer(r"(\s*)(\S+)", text):
            spaced = bool(match[1])
            for part in _break_wide(match[2]):
                word = Word(tuple(_runs(part, chosen, self.size)), spaced)
                if self._fits(word):
                    yield word
                else:
                    for position, character in enumerate(part):
                        yield Word(tuple(_runs(character, chosen, self.size)), spaced and position == 0)
                spaced = False


def _break_wide(word: str) -> list[str]:
    """Splits a word of Chinese, Japanese or Korean where a line may break."""
    parts = [word[0]]
    for before, character in zip(word, word[1:], strict=False):
        breaks = WIDE.match(before) or WIDE.match(character)
        if breaks and character not in NO_BREAK_BEFORE and before not in NO_BREAK_AFTER:
            parts.append(character)
        else:
            parts[-1] += character
    return parts


def _runs(part: str, chosen: dict[str, str], size: int) -> Iterator[Box]:
    """Makes a box of each run of characters of one font."""
    start = 0
    for position in range(1, len(part) + 1):
        if position == len(part) or chosen[part[position]] != chosen[part[start]]:
            yield _text_box(part[start:position], chosen[part[start]], size)
            start = position


@lru_cache(maxsize=16384)
def _text_box(text: str, path: str, size: int) -> Box:
    extent = measure(text, path, size)
    return Box(text, extent.width, extent.ascent, extent.descent, (Piece(text, 0, 0, size, path),))


@lru_cache(maxsize=4096)
def _formula_box(node: Row, source: str, setter: Setter) -> Box:
    laid = setter.lay(node)
    return Box(source, laid.width + 2, laid.ascent, laid.descent, laid.moved(1))


@lru_cache(maxsize=256)
def _space(path: str, size: int) -> int:
    return max(2, round(fonts.load(path, size).getlength(" ")))


def wrap(paragraphs: list[list[Word]], typeface: str, size: int, width: int) -> list[Line]:
    """
    Breaks paragraphs into lines.

    Args:
        paragraphs (`list[list[Word]]`):
            What [`Typesetter.words`] returned.
        typeface (`str`):
            Key of `fonts.TYPEFACES`.
        size (`int`):
            Size of the letters in pixels.
        width (`int`):
            Width of the column in pixels.

    Raises:
        DoesNotFit: if a formula or a character is wider than the column.
    """
    space = _space(str(fonts.SHIPPED / fonts.TYPEFACES[typeface]), size)
    lines = []
    for words in paragraphs:
        line: list[tuple[int, Box]] = []
        end = 0
        for word in words:
            if word.width > width:
                start = "".join(box.text for box in word.boxes)[:60]
                raise DoesNotFit(f"too wide: '{start}' has {word.width} pixels, the column {width}")
            gap = space if word.spaced and line else 0
            if line and (word.alone or end + gap + word.width > width):
                lines.append(Line(tuple(line)))
                line, end, gap = [], 0, 0
            position = (width - word.width) // 2 if word.alone else end + gap
            for box in word.boxes:
                line.append((position, box))
                position += box.width
            end = position
            if word.alone:
                lines.append(Line(tuple(line)))
                line, end = [], 0
        if line or not words:
            lines.append(Line(tuple(line)))
    return lines
