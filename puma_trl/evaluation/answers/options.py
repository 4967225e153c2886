"""Which option of a multiple-choice question a text names: by its letter, by its text, or by its value."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .denials import OR, with_alternatives, without_denied
from .quantities import Quantity, before_reason, evaluate, find_number_words, find_quantities, plain_math
from .statements import NAMES, says_nothing, split_sentences
from .units import Unit, in_unit, read_measured, unit_behind


LETTERS = "ABCDEFGH"
UNWRITTEN = "\ue000\ue001"  # stand for options that nobody names by a letter
MARKUP = " \t\r\n*_<>\"'“”‘’`:：.。．,，;；!！"

OPTION_WORD = re.compile(
    r"(?:\b(?:options?|choices?|answers?|letters?)|选项|选择?|答案)\s*[:：]?\s*[\"'“(（*]*$", re.IGNORECASE
)
WRONG = re.compile(
    r"^[)）.:\"'”*]*\s*(?:[^.\n,;]{0,40}?\s)?(?:(?:is|are|was|can be|seems?)\s+(?:also\s+)?"
    r"(?:not\b|wrong|incorrect|false|impossible|ruled out|too\b)|fails?\b|does not|doesn't|can ?not|can't|isn't)|"
    r"^[)）.:]*\s*(?:项|选项)?(?:是|为)?(?:错|不|排除)",
    re.IGNORECASE,
)
NEGATED = re.compile(
    r"(?:\b(?:not|neither|nor|no|never|isn't|aren't|wasn't|than|instead of|rather than|unlike)"
    r"(?:\s+(?:the|a|an|be|option|choice|answer))?|不是|并非|不会|没有|不)\s*[\"'(（*]*$",
    re.IGNORECASE,
)
# A letter in any form: in parentheses, before a mark of a list, or alone.
LETTER = re.compile(r"[(（]\s*([A-Ha-h])\s*[)）]|(?<![A-Za-z0-9_'’\\])([A-H])(?![A-Za-z0-9_'’′])")
# Letters in a row that are called wrong together
ROW = r"((?:[(（]?[A-H][)）]?(?![A-Za-z0-9])[\s,、]{0,3}(?:(?:and|or|nor|和|与|及)\s{0,2})?){1,8})"
DENIED = (
    re.compile(
        r"(?:\b(?i:rul(?:e|ed|es|ing) out|eliminat(?:e|ed|es|ing)|exclud(?:e|ed|es|ing)|discard(?:ed|s|ing)?|"
        rf"neither|leave out)|排除)(?:\s?(?:options?|choices?|选项))?\s?{ROW}"
    ),
    re.compile(
        rf"(?<![A-Za-z0-9_]){ROW}(?:选项|项)?(?:(?:can|may|must|should)\s(?:all\s)?be\s|(?:is|are)\s(?:all\s|both\s)?|[都均全皆]为?|是|为)?"
        r"(?:eliminated|excluded|discarded|ruled out|wrong|incorrect|false|too\s\w|不对|错误?|不正确|不符|排除)"
    ),
)
# The letter behind "or", and letters of which it is left open which one is meant
OR_LETTER = r"[,，]?\s?(?:or|或者?|还是)\s?(?:(?:option|choice)\s)?[(（]?[A-H]"
OPEN = re.compile(
    rf"(?<![A-Za-z0-9_])(?:[(（]?[A-H][)）]?[,，、]\s?){{0,6}}[(（]?[A-H][)）]?{OR_LETTER}(?![A-Za-z0-9])"
)
# A text that opens with a letter, which a mark, the end, or a reason follows.
OPENING = re.compile(
    r"^(?:(?:the\s+)?(?:correct\s+)?(?:option|choice|answer|letter|选项|选)\s*[:：_]?\s*)?[\"'“*]*"
    r"(?:[(（\[]{1,2}\s*([A-Ha-h])\s*[)）\]]{1,2}"
    rf"(?!(?:\s?[,，、]\s?[(（]?[A-H][)）]?){{0,6}}{OR_LETTER}(?![A-Za-z]))|"
    r"([A-H])(?=\s*(?:$|[(（).,，。．;；:：*\"'”>\]\n—–]|-\s|(?:since|because|as|for|and|is|"
    r"which|with|but|so|if)\b|[一-鿿，]|\s[^a-z\s=≈≠<>≥≤+×·/^√]))"
    r"(?![)）]?\s?(?:[,、]|and|or)\s?(?:and |or )?[(（]?[A-H](?![A-Za-z]))|([a-h])(?=\s*(?:$|[).:]\s*)))",
    re.IGNORECASE,
)
# A sentence that ends in a letter; elsewhere the point belongs to a list
BEHIND_LETTER = re.compile(r"(?<=\b[A-H]\.)\s+(?=[A-Z][a-z])")
TRUTHS = ("yes", "no", "true", "false", "是", "否")
LISTED = re.compile(r"^[ \t*]{0,8}[(（]?([A-H])[)）.:：][ \t*]", re.MULTILINE)
GOOD_START = re.compile(
    r"(?i:^\s*(?:(?:选项|项)?(?:是|为)?(?:错|不)|"
    r"(?:since|because|as|for|and(?! not)|is|which|with|but(?! not)|so|if)\b))"
)


@dataclass(frozen=True)
class Options:
    """
    The options of a question, ready to be looked for.

    Args:
        texts (`tuple[str, ...]`):
            Their texts in plain characters, case and spaces levelled; empty where they are not known.
        values (`tuple[float | None, ...]`), units (`tuple[Unit | None, ...]`):
            Their values and units, where they are quantities.
        mention (`re.Pattern`, *optional*):
            Finds any of the texts that are words.
        letters (`str`):
            The letters that name an option, from the first on.
    """

    texts: tuple[str, ...]
    values: tuple[float | None, ...]
    units: tuple[Unit | None, ...]
    mention: re.Pattern | None
    letters: str

    @classmethod
    def of(cls, texts: Sequence[str], letters: str = LETTERS) -> "Options":
        """Makes the options from their texts, in their order; of options that are not known any letter may be one."""
        levelled = tuple(level(text) for text in texts)
        measured = [read_measured(text) or (None, None) for text in texts]
        values, units = tuple(value for value, _ in measured), tuple(unit for _, unit in measured)
        words = sorted({text for text in levelled if len(text) > 1 or text not in "a1i"} - {""}, key=len, reverse=True)
        pattern = "|".join(
            rf"(?<![\w.√^-]){_spelling(word)}(?![\w^]|[.,]\d)" if _is_latin(word) else _spelling(word)
            for word in words
        )
        known = letters[: len(texts)] if texts else letters
        return cls(levelled, values, units, re.compile(pattern) if words else None, known)

    def equal_to(self, text: str) -> str | None:
        """Returns the letter of the first option that a text is as words, else of the one that it is as a value."""
        words = level(text)
        for plain in (str, lambda each: each.replace(" ", "")):
            for letter, option in zip(self.letters, self.texts, strict=False):
                if option and plain(option) == plain(words):
                    return letter
        measured = read_measured(text)
        if measured is None:
            return None
        value, unit = measured
        return self.of_value(Quantity(value, text.strip(), 0, 0, True), unit)

    def of_value(self, quantity: Quantity, unit: Unit | None) -> str | None:
        """Returns the letter of the one option of a quantity's value, in its unit if both have one."""
        values = [in_unit(value, own, unit) for value, own in zip(self.values, self.units, strict=True)]
        for fits in (lambda value: abs(value - quantity.value) <= 1e-6 * max(1, abs(value)), quantity.matches):
            same = {
                text: letter
                for letter, text, value in zip(self.letters[::-1], self.texts[::-1], values[::-1], strict=False)
                if value is not None and fits(value)
            }
            if same:
                return same.popitem()[1] if len(same) == 1 else None
        return None


def level(text: str) -> str:
    """Returns a text in plain characters, in lower case, with single spaces and without marks around it."""
    words = _flat(plain_math(text)).strip(" .,;:。，；\"'")
    return re.sub(r"^(?:an?|the) (?=\w\w)", "", words)


def _spelling(word: str) -> str:
    """Returns a pattern of the texts of an option, formulas with any spaces."""
    if not re.search(r"[=<>≥≤+*/^(\[√π∞-]", word):
        return re.escape(word)
    return r"\s?".join(re.escape(character) for character in word if character != " ")


def _is_latin(word: str) -> bool:
    return word[0].isascii() or word[-1].isascii()


def read_stated(text: str, options: Options) -> str | None:
    """
    Returns the letter that a statement names: the letter that it opens with, the option that it is, another letter of
    it, the text of an option in it, or the value that it ends in.
    """
    text = plain_math(text).strip(MARKUP)
    opening = OPENING.match(text)
    if opening:
        letter = next(filter(None, opening.groups())).upper()
        if letter in options.letters:
            return letter
    return (
        options.equal_to(text)
        or _marked_letter(text, options)
        or read_mention(text, options)
        or read_value(text, options)
    )


def read_loose(text: str, options: Options) -> str | None:
    """Returns the letter of the option that a whole text names without announcing it."""
    text = plain_math(text).strip(MARKUP)
    if len(set(LISTED.findall(text))) > 1:
        # the options again, which answer nothing
        text = "\n".join(line for line in text.split("\n") if not LISTED.match(line))
    opening = OPENING.match(text)
    if opening:
        letter = next(filter(None, opening.groups())).upper()
        rest = text[opening.end() :].lstrip(" *")
        if letter in options.letters and not GOOD_START.match(rest):
            # "A: No" is an answer to a question
            return (rest.startswith(":") and read_mention(rest, options)) or letter
    return (
        options.equal_to(text)
        or _marked_letter(text, options)
        or _lone_letter(text, options)
        or read_mention(text, options)
        or read_value(text, options)
    )


def _marked_letter(text: str, options: Options) -> str | None:
    """Returns the last letter in parentheses or behind "option" that is not called wrong; not the marks of a list."""
    listed = {match.start(1) for match in LISTED.finditer(text)}
    if len({text[place] for place in listed}) < 2:
        listed = set()
    wrong = _denied_places(text)
    left_open = {place for match in OPEN.finditer(text) for place in range(*match.span())}
    found, denied = [], {text[place] for place in wrong} & set(options.letters)
    for match in LETTER.finditer(text):
        letter = (match[1] or match[2]).upper()
        before, after = text[max(0, match.start() - 24) : match.start()], text[match.end() : match.end() + 60]
        place = match.start(1) if match[1] else match.start(2)
        is_marked = (match[1] and not _is_name(before)) or OPTION_WORD.search(before)
        if letter not in options.letters or not is_marked or place in listed:
            continue
        if place in wrong or WRONG.match(after) or NEGATED.search(before):
            denied.add(letter)
        elif place not in left_open:
            found.append(letter)
    if not found and denied and len(options.texts) - len(denied) == 1:
        return next(letter for letter in options.letters if letter not in denied)
    return found[-1] if found else None


def _denied_places(text: str) -> set[int]:
    """Returns where the letters stand that a text calls wrong, one by one or in a row."""
    rows = [match.span(1) for pattern in DENIED for match in pattern.finditer(text)]
    return {place for start, end in rows for place in range(start, end) if text[place] in LETTERS}


def _is_name(before: str) -> bool:
    """Returns whether a letter in parentheses is an argument or a factor, as in f(A)."""
    return bool(before) and (before[-1].isascii() and (before[-1].isalnum() or before[-1] in "∠"))


def _lone_letter(text: str, options: Options) -> str | None:
    """Returns the letter that a line or a sentence is, or that a sentence ends in as its only capital letter."""
    sentences = [part for sentence in split_sentences(text) for part in BEHIND_LETTER.split(sentence)]
    for part in (*reversed(text.split("\n")), *reversed(sentences)):
        bare = part.strip(MARKUP + "()（）")
        if len(bare) == 1 and bare in options.letters:
            return bare
    for sentence in reversed(sentences):
        letters = list(re.finditer(r"(?<![A-Za-z0-9_'’\\])([A-Z])(?![A-Za-z0-9_'’′])", sentence))
        bare = [match for match in letters if match[1] != "I"]
        if len({match[1] for match in bare}) != 1 or bare[-1][1] not in options.letters:
            continue
        match = bare[-1]
        before, after = sentence[: match.start()], sentence[match.end() :]
        quoted = before.endswith(('"', "“", "'")) and after.startswith(('"', "”", "'"))
        ends = not after.strip(MARKUP) and not NAMES.search(before[-16:]) and not NEGATED.search(before)
        if quoted or (before.strip() and ends):
            return match[1]
    return None


def read_mention(text: str, options: Options) -> str | None:
    """
    Returns the option whose words stand in a text: yes or no at its beginning, else the last words of the last
    sentence that names an option. Negated ones do not count, and yes and no count only where they answer.
    """
    if options.mention is None:
        return None
    sentences = [_flat(sentence) for sentence in split_sentences(plain_math(text))]
    for sentence in sentences[:1]:
        opening = options.mention.match(sentence.lstrip(MARKUP))
        if opening and opening.group() in TRUTHS and _answers("", sentence.lstrip(MARKUP)[opening.end() :]):
            return options.equal_to(opening.group())
    for sentence in reversed(sentences):
        if sentence.endswith("?"):
            continue
        found, denied, end = [], set(), 0
        for match in options.mention.finditer(sentence):
            before, word = sentence[max(0, match.start() - 24) : match.start()], match.group()
            if evaluate(word) is not None or (word in TRUTHS and not _answers(before, sentence[match.end() :])):
                continue  # quantities are compared as values
            follows_or, end = OR.fullmatch(sentence, end, match.start()), match.end()
            if NEGATED.search(before):
                denied.add(word)
            elif follows_or and found and found[-1] != word:
                denied |= {found[-1], word}
            else:
                found.append(word)
        found = [word for word in found if word not in denied]
        if found:
            return options.equal_to(found[-1])
    return None


def _flat(sentence: str) -> str:
    """Returns a text in lower case with single spaces, its hyphens as spaces, "they're" as "they are"."""
    words = re.sub(r"(?<=[^\W\d_])-(?=[^\W\d_])", " ", sentence.casefold())
    return " ".join(re.sub(r"['’]re\b", " are", words).split())


def _answers(before: str, after: str) -> bool:
    """Returns whether "yes" or "no" stands alone in its clause."""
    return (not before.strip(MARKUP) or before.rstrip().endswith(tuple(",:.)-：，") + ("is", "so"))) and (
        not after.strip(MARKUP + "的") or after.lstrip("的 ")[:1] in ",.;:!)*\"'，。；！"
    )


def read_value(text: str, options: Options) -> str | None:
    """
    Returns the option of the quantity that the last sentence with quantities ends in (behind its last "="), else the
    only option whose value the text names at all.
    """
    if not any(value is not None for value in options.values):
        return None
    named = []
    for sentence in reversed(split_sentences(text)):
        if says_nothing(sentence):
            continue
        quantities = without_denied(sentence, find_quantities(sentence) or find_number_words(sentence))
        whole, sentence = sentence, before_reason(sentence)
        letters = [letter for each in quantities if (letter := options.of_value(each, unit_behind(whole, each)))]
        if not named and quantities:
            stated = [each for each in quantities if each.end <= len(sentence)] or quantities
            behind = [each for each in stated if each.start > sentence.rfind("=")] or stated
            if math.isnan(with_alternatives(sentence, quantities, behind[-1]).value):
                return None
            letter = options.of_value(behind[-1], unit_behind(whole, behind[-1]))
            letter = letter or (letters[0] if len(set(letters)) == 1 else None)
            if letter:
                return letter
        named += letters
    return named[0] if len(set(named)) == 1 else None


def parse_options(text: str) -> tuple[str, ...]:
    r"""
    Returns the texts of the options that a question lists as "A: … B: …", "A. …; B. …" or "(A) …", from A on.

    Args:
        text (`str`):
            A question with its options, or the options alone.
    """
    best: list[str] = []
    marks = list(re.finditer(r"(?:(?<=[\s;；,:：])|^)[(（]?([A-H])\s?[)）:：.．、](?!\w\.)\s*", text))
    for index, mark in enumerate(marks):
        if mark[1] != "A":
            continue
        chain = [mark]
        for later in marks[index + 1 :]:
            if len(chain) < len(LETTERS) and later[1] == LETTERS[len(chain)]:
                chain.append(later)
        ends = [each.start() for each in chain[1:]] + [len(text)]
        texts = [text[each.end() : end].strip(" \t\n;；") for each, end in zip(chain, ends, strict=True)]
        if len(chain) > 1:
            best = texts
    return tuple(best)
