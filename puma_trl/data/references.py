"""Questions that refer to choices or to a text which they do not have, and the columns that may have them."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from .json_lists import TURN_KEYS
from .lookalikes import BESIDE, has_choices, is_about, split_name


TO_CHOICES = re.compile(
    r"(?i)\b(?:which|what|who|one|any|all|none|each)(?: \w+)? of (?:these|those|the (?:following|options|choices))\b"
    r"|\b(?:the|these) following (?:\w+ )?(?:is|are|can|does|do|would|best|options?|choices|statements?|answers?)\b"
    r"|\b(?:choose|select|pick|mark) (?:the|one|all|an?)\b.{0,60}\b(?:options?|choices?|answers?|alternatives?)\b"
    r"|下列|以下(?:哪|选项|選項|说法|各)|下面哪|次のうち|der folgenden|lequel|laquelle|cu[áa]l de"
    r"|какое из|какой из|какие из"
)
TO_TEXT = re.compile(
    r"(?i)\b(?:according to|based on|in|from|of|by|using|read|refer to|summari[sz]e) (?:the|this) "
    r"(?:(?:above|following|given|provided|preceding|first|second|last) )*(?:passage|text|article|paragraph|story|"
    r"document|context|excerpt|table|report|dialogue|transcript|scenario|abstract|poem|letter|email)\b"
    r"|\bthe (?:author|passage|excerpt|narrator|writer)\b"
    r"|根据(?:文章|材料|上文|原文|下表|表格)|短文|文中|本文|dem text|le texte|el texto|согласно тексту"
)
# Something that is announced, at the end of a question or nearly so, with nothing of its kind behind it
TO_NEXT = re.compile(
    r"(?i)\b(?:(?:the|this|these) (?:following|given|above)|this (?=code|program|function|snippet|sentence|claim|"
    r"statement|equation|expression|text|table)|the (?=claim|snippet)) ?[^\d$\\=:\n]{0,60}[:.?!]*\s*$"
)
# Something that stands below or above, of a kind that its own signs tell: a formula, or the cells of a table
TO_FORMULA = re.compile(
    r"(?i)\b(?:the|this|these) (?:\w+ )?(?:(?:equation|expression|formula|function|system)s?|inequality|inequalities) "
    r"(?:below|above)\b|\b(?:the|this) (?:following|given|above) (?:equation|expression|formula|function|inequality)\b"
)
TO_TABLE = re.compile(r"(?i)\b(?:the|this) (?:\w+ )?tables?\b|下表|表格")
FORMULA = re.compile(r"[=<>^\\≤≥]|[\w)]\s*[-+*/]\s*[\w(]")
TABLE = re.compile(r"(?s)\|.*\|.*\||[,;\t|].*\n.*[,;\t|]")
# An answer that names a choice
LETTER = re.compile(r"\(?[A-H]\)?\.?")
# A question of more characters may have its text in it, and a shorter column is no such text.
LONGEST_QUESTION, SHORTEST_TEXT = 400, 100
# The same for something that is announced
LONGEST_ANNOUNCEMENT, FEWEST_WORDS = 120, 3
# Words of columns of answers, of their reasons, of other versions of a question, and of facts on the row
ELSEWHERE = set(
    "answer answers solution solutions rationale explanation explanations reasoning analysis cot thought thoughts "
    "thinking trajectory trajectories attempt attempts generation generations generated prediction predictions "
    "completion response responses output critique feedback review proof label labels target step steps tag tags "
    "keyword keywords metadata meta url id caption captions original question query problem prompt".split()
)
FACTS = set(
    "level difficulty subject subjects split language lang task dataset name title skill skills date concept concepts "
    "topics".split()
)


def find_referred(rows: list[tuple[dict[str, Any], list[tuple[str, str]]]], unread: list[str]) -> dict[str, str]:
    """
    Finds columns that may have what questions refer to.

    Args:
        rows (`list[tuple[dict, list[tuple[str, str]]]]`):
            Rows as they stand in the file, each with all before the answer, and the answer, of those sides that have
            no picture.
        unread (`list[str]`):
            Columns that are not read.

    Returns:
        `dict[str, str]`: column → why it must not hold anything. For a text, most of the rows that refer to one have
        it there, and most have another.
    """
    names = [name for name in unread if not ELSEWHERE & set(split_name(name))]
    found: dict[str, str] = {}
    referring, held = 0, defaultdict(list)
    for raw, sides in rows:
        for text, answer in sides:
            if (TO_CHOICES.search(text) or LETTER.fullmatch(answer.strip())) and not has_choices(text):
                for name in names:
                    if not _is_fact(name) and _are_choices(raw.get(name), text):
                        found.setdefault(name, f"{BESIDE}, which needs choices: {_end(text)!r}")
            to_text = len(text) <= LONGEST_QUESTION and TO_TEXT.search(text)
            to_next = len(text) <= LONGEST_ANNOUNCEMENT and TO_NEXT.search(text)
            to_formula = TO_FORMULA.search(text) and not FORMULA.search(text)
            to_table = TO_TABLE.search(text) and not TABLE.search(text)
            referring += bool(to_text or to_next or to_formula or to_table)
            for name in names:
                whole = "\n".join(map(str, _leaves(raw.get(name)))).strip()
                if (to_text and len(whole) >= max(SHORTEST_TEXT, len(text)) and whole not in text) or (
                    (
                        (to_next and _is_sentence(whole))
                        or (to_formula and FORMULA.search(whole))
                        or (to_table and TABLE.search(whole))
                    )
                    and not _is_fact(name)
                    and whole not in f"{text}\n{answer}"
                ):
                    held[name].append(whole)
    for name, texts in held.items():
        if len(texts) * 2 >= referring and len(set(texts)) * 2 >= len(texts):
            found.setdefault(name, f"{BESIDE}, which refers to a text")
    return found


def _is_fact(name: str) -> bool:
    return is_about(name) or bool(FACTS & set(split_name(name)))


def _is_sentence(text: str) -> bool:
    return len(text.split()) >= FEWEST_WORDS or (not text.isascii() and len(text) >= 2 * FEWEST_WORDS)


def _end(text: str) -> str:
    return text if len(text) <= 60 else f"…{text[-60:]}"


def _are_choices(value: Any, text: str) -> bool:
    """Whether a value is a list or an object of several short texts or numbers, or a text of lettered choices."""
    if isinstance(value, str):
        return has_choices(value) and value.strip() not in text
    if isinstance(value, list) and any(isinstance(part, dict) and TURN_KEYS & part.keys() for part in value):
        return False
    if isinstance(value, dict) and not all(len(key) == 1 or isinstance(part, list) for key, part in value.items()):
        return False
    leaves = list(_leaves(value)) if isinstance(value, list | dict) else []
    short = [leaf for leaf in leaves if isinstance(leaf, int | float) or len(leaf) <= LONGEST_QUESTION]
    return len(leaves) > 1 and len(short) == len(leaves) and not all(str(leaf) in text for leaf in leaves)


def _leaves(value: Any) -> Iterator[str | int | float]:
    if isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part)
    elif isinstance(value, str | int | float):
        yield value
