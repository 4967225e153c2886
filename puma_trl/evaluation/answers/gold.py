"""What a gold output states, and whether it is prose, in which a number stands by the way."""

import re
from collections.abc import Sequence

from .final import final_answer, final_truth, find_loose, read_announced
from .options import TRUTHS
from .quantities import REASON, WHY, plain_math
from .statements import split_sentences, strip_thoughts


MARKUP = " \t\r\n*$.!。！)）\"'”"
MAX_WORDS = 3  # of what is counted, behind its number, and of an answer in words
WORD = re.compile(r"[一-鿿]{1,3}|\w+")

CONCLUDES = re.compile(
    r"\s*(?:so|thus|therefore|hence|consequently|this (?:means|proves|shows)|所以|因此|故)\b", re.IGNORECASE
)
STATES = re.compile(
    r"(?:[=≈:：]|\b(?:is|are|was|were|be|equals?|becomes?|gives?|totals?|costs?|takes?|makes?|remains?)|是|为|等于|得|共)"
    r"(?:\s(?:about|approximately|exactly|only|just|equal to|a total of))?[\s*$(]*$",
    re.IGNORECASE,
)
PARTS = re.compile(r"(?:\b(?:all|both|these|those|the|each|every|any|its|their)|所有|这|那|每)\s*$", re.IGNORECASE)
VERB = re.compile(r"\b(?:is|are|was|were|has|have|had|can|must|will|form|meet|lie)\b|[是为有等]", re.IGNORECASE)
# "No, it is 5" answers yes or no, and something else
OPENS = re.compile(rf"\s*(?:{'|'.join(TRUTHS)})[,.，。;；]\s*\S", re.IGNORECASE)
TRUTH = re.compile(rf"(?:{'|'.join(TRUTHS)})\b", re.IGNORECASE)


def gold_answer(gold: str, options: Sequence[str] = ()) -> str | None:
    """
    Returns the answer that a gold output states, `None` where it is prose and only its words can be compared.

    Args:
        gold (`str`):
            The gold output.
        options (`Sequence[str]`, *optional*):
            Texts of the options, where the answer is the letter of one.
    """
    gold = strip_thoughts(gold)
    if options:
        return final_answer(gold, "choice", options)
    announced = read_announced(gold)
    if announced is not None:
        return announced
    if find_truths(gold):
        return gold.strip()
    return None if _is_by_the_way(gold) else final_answer(gold, "text")


def is_prose(gold: str) -> bool:
    """Returns whether a gold output is prose: several words that state no answer."""
    return gold_answer(gold) is None and len(WORD.findall(strip_thoughts(gold))) > MAX_WORDS


def find_truths(answer: str) -> tuple[str, ...]:
    """Returns "yes" and "no" or their like, as options, if an answer is one of them and at most says why."""
    answer = answer.strip(MARKUP)
    word = TRUTH.match(answer)
    rest = word and answer[word.end() :].lstrip(" ,，;；.。*")
    if not word or (rest and not WHY.match(rest)):
        return ()
    place = TRUTHS.index(word.group().lower()) // 2 * 2
    return TRUTHS[place : place + 2]


def same_truth(gold: str, reply: str) -> bool:
    """Returns whether a reply says yes where the gold answer does, by the rule for options without letters."""
    return final_truth(reply, find_truths(gold)) == TRUTH.match(gold.strip(MARKUP)).group().lower()


def _is_by_the_way(gold: str) -> bool:
    """Returns whether the last quantity of a text is not what its sentence states."""
    if OPENS.match(gold):
        return True
    found = find_loose(gold)
    if found is None:
        return False
    sentence, start, end = found
    later = plain_math(gold).partition(sentence)[2]
    if any(CONCLUDES.match(each) for each in split_sentences(later)):
        return True
    before, after = sentence[:start], sentence[end:]
    if PARTS.search(before) or re.search(rf"(?:{WHY.pattern})[^,，;；]*$", before, re.IGNORECASE):
        return True
    if not after.strip(MARKUP) or REASON.match(after) and not WHY.match(before.strip()):
        return False
    words = WORD.findall(REASON.split(after)[0])
    return bool(VERB.search(after)) or (not STATES.search(before) and len(words) > MAX_WORDS)
