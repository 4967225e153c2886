"""Yes or no, where a reply says it in the words of the question: "The sandwich is not cut in half."."""

import re

from .statements import says_nothing, split_sentences


MIN_SHARE = 0.7  # of the question's words in the sentence that answers it

WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+(?:\.\d+)?")
EMPTY = frozenset(
    "a an the is are was were be been do does did can could will would has have had of in on at to for from by with "
    "and or that this these those it its there any than as image figure picture based shown not no never "
    "without".split()
)
NEGATION = re.compile(r"\b(?:not|no|never|neither|cannot|isn't|aren't|wasn't|doesn't|don't|didn't|hasn't|without)\b")
OPPOSITES = (
    ("greater more larger bigger higher", "less fewer smaller lower"),
    ("equal same", "different unequal"),
    ("longer taller", "shorter"),
    ("left", "right"),
    ("above", "below"),
    ("maximum highest largest most", "minimum lowest smallest least"),
    ("odd", "even"),
    ("increasing", "decreasing"),
)
SIDES = {
    word: (pair, side)
    for pair, words in enumerate(OPPOSITES)
    for side, each in enumerate(words)
    for word in each.split()
}


def read_restated(text: str, question: str) -> bool | None:
    """
    Returns what a reply without thoughts answers to a question of yes or no, where its first or last sentence repeats
    the question's words, with or without a negation or the opposite of one of them.
    """
    asked = set(WORD.findall(question.lower())) - EMPTY
    if not asked:
        return None
    sentences = [sentence.lower() for sentence in split_sentences(text) if not says_nothing(sentence)]
    for sentence in [*sentences[:1], *sentences[:0:-1][:1]]:
        said = set(WORD.findall(sentence))
        opposite = {word for word in asked if word in SIDES and word not in said and _other_side(word, said)}
        if len(asked & said | opposite) < MIN_SHARE * len(asked):
            continue
        negated = bool(NEGATION.search(sentence)) != bool(NEGATION.search(question.lower()))
        return negated == bool(opposite)
    return None


def _other_side(word: str, said: set[str]) -> bool:
    pair, side = SIDES[word]
    return any(SIDES.get(other) == (pair, 1 - side) for other in said)
