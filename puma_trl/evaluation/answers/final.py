r"""
The `final` rule: from a reply to its answer without a language model.

The order of evidence, in which a part of the reply that says nothing of the kind asked for is passed over:

1. thoughts are taken out, and questions that the model goes on to ask itself;
2. the last `\boxed{…}`;
3. the last block of an answer, a tag such as `<answer>` or a heading, as a whole;
4. phrases such as "the answer is" or "故选", the last one first, then what is set in bold;
5. an option's letter in parentheses or alone;
6. the text or the value of an option, or yes or no in the question's own words;
7. the last quantity with its unit.

In multiple choice the first of 2 to 4 that names an option counts before one that states something else.
"""

import math
import re
from collections.abc import Sequence

from .denials import with_alternatives, without_denied
from .options import OPENING, UNWRITTEN, Options, read_loose, read_stated
from .quantities import (
    REASON,
    Quantity,
    before_reason,
    evaluate,
    find_number_words,
    find_quantities,
    plain_math,
    with_unit,
)
from .restated import read_restated
from .statements import (
    Statement,
    cut_next_question,
    find_phrases,
    find_statements,
    says_nothing,
    split_sentences,
    strip_thoughts,
)
from .units import find_parts


KINDS = ("choice", "number", "list", "text")

BRACKETS = re.compile(r"\[[^\[\]]*\]")
# Points, intervals and pairs, ratios and times of day, which are no expressions.
TUPLE = re.compile(
    r"[(\[]\s*[^()\[\]\n,]{1,30},\s*[^()\[\]\n]{1,30}[)\]]|"
    r"(?<![\d:])\d{1,6} ?: ?\d{1,6}(?![\d:])(?:\s?[APap]\.?[Mm]\b)?"
)
# A sentence that ends in "y = 2x + 1" or "x > 3": letters of one or two characters, no words
RELATION = re.compile(
    r"(?<![A-Za-z])([A-Za-z](?:\([a-z]\))? ?(=|[<>]=?|[≤≥≠]) ?((?:(?![A-Za-z]{3})[\w ()+*/^.√π×·-]){1,60}))$"
)
MARKUP = " \t\r\n*<>$`\"'“”:：。"
NO_ANSWER = re.compile(
    r"^(?:not\b|none\b|unknown\b|un(?:known|determined|clear)\b|n/?a\b|null\b|cannot\b|can't\b|unable\b|impossible\b|"
    r"undetermined|无法|不能|未知)",
    re.IGNORECASE,
)
FULL_WIDTH = {0xFEE0 + ord(each): each for each in "ABCDEFGHabcdefgh0123456789%"}
THERE = re.compile(
    r"\bthere(?: (?:is|are|was|were|will be|would be|remain)|'s)\s+"
    r"(?:only|exactly|about|approximately|just|a total of|in total)?",
    re.IGNORECASE,
)
BOUND = re.compile(
    r"(?:\b(?:than|not|below|above|over|under|exceed(?:s|ing)?|out of|of the|at least|at most|exactly|[xn] =)|"
    r"小于|大于|超过|低于|高于)\s*$",
    re.IGNORECASE,
)
YEAR = re.compile(r"(?:\b(?:in|since|from|to|until|between|and|year|by|of|during)|年)\s*$", re.IGNORECASE)
ASIDE = re.compile(r"(?<=\s)\([^()]{1,80}\)")


def final_answer(reply: str, kind: str, options: Sequence[str] = (), question: str = "") -> str | None:
    r"""
    Returns the answer that a reply ends in, by the order of evidence that the module describes.

    Args:
        reply (`str`):
            What the model said.
        kind (`str`):
            What the answer is: `"choice"` (the letter of an option; what a reply states otherwise is given as it is),
            `"number"` (its value in figures), `"list"` (in square brackets) or `"text"` (anything, quantities with
            their unit).
        options (`Sequence[str]`, *optional*):
            Texts of the options, from A on, where they are known.
        question (`str`, *optional*):
            The question, by whose words a reply may say yes or no.

    Returns:
        The answer, or `None` where the reply ends in none.
    """
    text = _prepare(reply)
    known = Options.of(options) if kind == "choice" else None
    answer = _read(text, kind, known)
    if answer is None and kind == "choice" and known.equal_to("yes") and known.equal_to("no"):
        holds = read_restated(text, question)
        answer = None if holds is None else known.equal_to("yes" if holds else "no")
    return answer


def final_truth(reply: str, truths: Sequence[str]) -> str | None:
    """Returns which of two truths, such as "yes" and "no", a reply says: an option that has no letter."""
    known = Options.of(truths, UNWRITTEN)
    answer = _read(_prepare(reply), "choice", known)
    return known.texts[known.letters.index(answer)] if answer in tuple(known.letters) else None


def read_announced(reply: str) -> str | None:
    """Returns the answer of the kind `"text"` that a reply boxes, announces or sets in bold."""
    return _announced(_prepare(reply), "text", None)


def find_loose(reply: str) -> tuple[str, int, int] | None:
    """
    Finds the relation, pair, ratio or quantity that a reply which announces none ends in.

    Returns:
        Its sentence in plain characters, and where it starts and ends there.
    """
    return _find_text(_prepare(reply))


def _prepare(reply: str) -> str:
    return cut_next_question(strip_thoughts(reply.translate(FULL_WIDTH)))


def _read(text: str, kind: str, known: Options | None) -> str | None:
    return _announced(text, kind, known) or _read_loose(text, kind, known)


def _announced(text: str, kind: str, known: Options | None) -> str | None:
    stated = None
    for statement in find_statements(text):
        read = _read_block if statement.is_block else _read_bold if statement.is_bold else _read_phrase
        answer = read(statement, kind, known)
        if answer is not None and (kind != "choice" or answer in tuple(known.letters)):
            return answer
        stated = stated or answer
    return stated


def _read_phrase(statement: Statement, kind: str, options: Options | None) -> str | None:
    """Reads what a box holds or a phrase announces."""
    text = without_markup(statement.text)
    if not re.search(r"\w", text):
        return None
    if kind == "choice":
        letter = read_stated(statement.text, options)
        if letter or NO_ANSWER.match(text) or (options.texts and OPENING.match(text)):
            return letter
        return _last_side(text) if len(text) <= 100 else None
    if kind == "number":
        return _last_number(before_reason(plain_math(text), REASON))
    if kind == "list":
        return _last_list(text)
    return None if NO_ANSWER.match(text) else text


def _read_bold(statement: Statement, kind: str, options: Options | None) -> str | None:
    """Reads what is set in bold: an option or a quantity, but not other words."""
    if kind == "choice":
        return read_stated(statement.text, options)
    if kind == "text" and not find_quantities(plain_math(statement.text)):
        return None
    return _read_phrase(statement, kind, options)


def _read_block(statement: Statement, kind: str, options: Options | None) -> str | None:
    """Reads a text that ends in the answer: what it is if it is short, else what it announces or ends in."""
    text = without_markup(statement.text)
    if kind == "choice" and (letter := options.equal_to(text)):
        return letter
    for phrase in find_phrases(statement.text):
        answer = _read_phrase(phrase, kind, options)
        if answer is not None:
            return answer
    if kind == "text" and "\n" not in text and len(split_sentences(text)) == 1:
        return None if NO_ANSWER.match(text) else text
    loose = _read_loose(statement.text, kind, options)
    if loose is None and kind in ("choice", "text") and len(text) <= 100 and not NO_ANSWER.match(text):
        return text
    return loose


def _read_loose(text: str, kind: str, options: Options | None) -> str | None:
    """Reads a text that announces no answer."""
    if kind == "list":
        return _last_list(text)
    if kind == "number":
        return _last_number(plain_math(text))
    letter = read_loose(text, options or Options.of(()))
    if kind == "choice":
        if letter or (options.texts and not any(value is not None for value in options.values)):
            return letter
        return _last_number(plain_math(text), words=False)
    quantity = _last_text(text)
    return letter if quantity is None else quantity


def _last_number(text: str, words: bool = True) -> str | None:
    """Returns the quantity that the last sentence with quantities states."""
    for sentence in reversed(split_sentences(text)):
        quantity = None if says_nothing(sentence) else _stated_quantity(before_reason(sentence), words)
        if quantity is not None:
            return None if math.isnan(quantity.value) else str(quantity)
    return None


def _stated_quantity(sentence: str, words: bool = True) -> Quantity | None:
    """
    Returns the quantity that a sentence states: what there is ("there are 3"), else the last one behind its last
    equals sign. Bounds ("more than 5"), wholes ("out of 10"), years ("in 2019") and remarks in parentheses count only
    where there is nothing else, and what is denied ("not 6") never. "4 or 5" is one quantity, without a value.
    """
    figures = without_denied(sentence, find_quantities(sentence))
    named = without_denied(sentence, find_number_words(sentence)) if words else []
    quantities = sorted(figures + named, key=lambda each: each.start)
    there = THERE.search(sentence)
    if there and not re.search(r"\b(?:leaving|leaves)\b", sentence):
        counted = [each for each in quantities if there.end() <= each.start <= there.end() + 30]
        if counted:
            return counted[0]
    sign = max(sentence.rfind("="), sentence.rfind("≈"))
    choices = [each for each in figures if each.start > sign] or figures or quantities
    aside = {place for match in ASIDE.finditer(sentence) for place in range(*match.span())}
    for keep in (
        lambda each: each.start not in aside,
        lambda each: not BOUND.search(sentence[max(0, each.start - 16) : each.start]),
        lambda each: not (each.plain and 1900 <= each.value < 2100 and YEAR.search(sentence[: each.start][-16:])),
    ):
        choices = [each for each in choices if keep(each)] or choices
    return with_alternatives(sentence, quantities, choices[-1]) if choices else None


def _last_text(text: str) -> str | None:
    """Returns the last relation, pair, ratio or quantity of the last sentence that holds one, as it is written."""
    found = _find_text(text)
    return found and found[0][found[1] : found[2]].strip()


def _find_text(text: str) -> tuple[str, int, int] | None:
    for sentence in map(before_reason, reversed(split_sentences(plain_math(text)))):
        relation = RELATION.search(sentence.rstrip(".。 "))
        if relation and (relation[2] != "=" or evaluate(relation[3]) is None):
            return sentence, *relation.span(1)
        quantity = _stated_quantity(sentence)
        pair = max(TUPLE.finditer(sentence), key=re.Match.end, default=None)
        if pair and (quantity is None or pair.end() >= quantity.end):
            return sentence, *pair.span()
        if quantity is not None:
            first = find_parts(sentence, find_quantities(sentence), quantity)[0]
            return sentence, first.start, quantity.start + len(with_unit(sentence, quantity))
    return None


def _last_list(text: str) -> str | None:
    found = BRACKETS.findall(text)
    return found[-1] if found else None


def _last_side(text: str) -> str:
    """Returns what stands behind the last equals sign of "∠C = 70°", a text without one as it is."""
    return text.rpartition("=")[2].strip() if re.match(r"^\S{1,6}(?:\s\S{1,3})?\s*=", text) else text


def without_markup(text: str) -> str:
    """Returns a text without the markup around it, and without the commands that set words in formulas."""
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"^\\[(\[]|\\[)\]]$", "", text.strip(MARKUP + ".")).strip(MARKUP)
    return text.rstrip(".。").strip(MARKUP)
