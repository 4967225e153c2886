"""A problem → its conditions, which go into the picture, and what is asked, which stays in the prompt."""

import re
from dataclasses import dataclass

from ...errors import DataError
from .latex import ENTITY, replace_math
from .symbols import NAMES


class NoConditions(DataError):
    """A problem has nothing that could be printed while what is asked stays in the prompt."""


@dataclass(frozen=True)
class Split:
    """
    A problem in two.

    Args:
        conditions (`str`):
            What is printed.
        asked (`str`):
            What stays in the prompt.
    """

    conditions: str
    asked: str


CJK = re.compile("[\u3400-\u9fff]")
SENTENCE = re.compile(
    r"(?<=[.?!。？！])\s+(?=\S)|(?<=[.?!。？！][)）\"”'])\s+(?=\S)|(?<=[。？！])|(?<=．)(?!\d)|\n+|(?<=ƒƒ)\s*(?=(?:What|Which|How|Find|If|Then|In|The)\b)"
)
ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[Ff]igs?|Eq|Mrs?|Ms|Dr|Prof|St|vs|approx|cf|e\.g|i\.e)\.$|(?:^|\n)\s*\d{1,2}\.$"
)
CHOICES = re.compile(
    r"\n\s*(?:(?:Choices|Options|选项)\s*[:：]|\(?A\s*[.:)．：、])|\s\(A\)(?=.*\s\(B\))|\sA[.:)．：、](?=.*\n\s*B[.:)．：、])"
    r"|\s*[(（]?A[.．、:：)）](?=.*[\s(（;；]B[.．、:：)）].*[\s(（;；]C[.．、:：)）])",
    re.DOTALL,
)
BLANK = r"[(（]\s*[)）]|_{2,}|\\underline|\\uline|\\_|[(（]\$?\\q?quad\$?[)）]"
# A formula that is nothing but a blank, and one that has one
FILLED_IN = re.compile(r"[$\\()\[\]]*(?:\\q?quad|\\hspace\{[^}]*\}|\\[ ,;]|~|\s)+[$\\()\[\]]*")
TO_FILL = re.compile(r"[(（]\s*(?:\\q?quad|\\hspace|~|\\ |\s)[^()（）]*[)）]|\\underline\s*\{\s*\\|_{2,}|\\_\\_")
# Words that ask, at the beginning of a clause
IMPERATIVE = "find|calculate|compute|determine|solve|prove|evaluate|simplify|express|state|estimate|give|identify"
ASK_WORD = re.compile(
    rf"(?i)\W*(?:(?:and|then|so|now|please|also)\s+)*(?:{IMPERATIVE}|what|how|why|show that|which|in what|at what|"
    r"for what|by what|to what|if so|is|are|does|do|did|can|will)\b"
)
RELATIVE = re.compile(
    r"(?i)\W*(?:and\s+)?which\s+"
    r"(?:is|are|was|were|has|have|lies|meets?|costs?|casts?|shows?|makes?|gives?|contains?)\b"
)
VERB_FIRST = re.compile(r"(?i)\W*(?:is|are|does|do|did|can|will)\b")
# Clauses that lead to a blank: "then AB is ()", "the area is ____"
LEADS_TO_BLANK = re.compile(rf"(?i)(?:{BLANK}|\b(?:is|are|equals?|be|=)\s*:?\s*[.。]?$|=\s*[?？]?\s*[.。]?$)")
THEN = re.compile(r"(?i)\W*(?:and\s+)?(?:then|so(?!\s+(?:that|as|many|much|far|long)\b)|therefore|hence|thus)\b")
CHINESE_ASKS = re.compile(
    rf"(?<![要需请])求|多少|几(?![何乎])|什么|哪|如何|怎样|怎么|谁|是否|能否|可否|吗|[?？]|{BLANK}|[=＝]\s*[。.]?$|(?:是|为|等于|得)\s*[:：]?\s*[。.]?$|"
    r"^\s*(?:计算|化简|解方程|证明|试说明|请)"
)
COMMA = re.compile(r"[,;]\s+|,(?=\s*(?:then|find|what|how)\b)")
INNER_THEN = re.compile(r"\s(?=then\b)")
HYPOTHESIS = re.compile(r"(?i)\W*(?:if|when|given|suppose|since|as)\b")
CHINESE_COMMA = re.compile(r"[，；]\s*|[,;](?!\d)\s*|(?<![规法原准细])(?=则|那么)")
# What says where to look, and is no condition
LEAD_IN = re.compile(
    r"(?i)^\W*(?:(?:as\s+)?(?:is\s+)?(?:shown|seen|illustrated|depicted)\s+(?:in|on|by)\s+(?:the\s+)?"
    r"(?:(?:right|left|below|following|above)\s+)?(?:figs?\.?|figure|diagram|picture|image)\s*\d*(?:\s+below|\s+above)?"
    r"|(?:as\s+)?(?:in|from)\s+(?:the\s+)?(?:(?:following|given)\s+)?(?:figs?\.?|figure|diagram|picture)\s*\d*"
    r"|如(?:下|右|左|上)?图(?:所示|\d)?(?:所示)?|(?:下|右)图(?:中|所示)?|图中|已知|题中|(?:下列|以下)[^，,。]{0,8}中)\W*"
)
# Where a problem is from: "（2021·北京）"
ORIGIN = re.compile(r"^\s*[(（\[【][^()（）\[\]【】]*(?:19|20)\d\d[^()（）\[\]【】]*[)）\]】]\s*")
PREPOSITION = re.compile(
    r"(?i)^\W*(?:in|on|at|for|with|from|by|of|as|during|after|before|among|to|based|according|using|considering)\b"
)
# All other words of two letters are products and units: xy, cm
SHORT_WORDS = frozenset("am an as at be by do go he if in is it me my no of on or so to up us we".split())
SAYS = re.compile(
    r"(?i)\b(?:is|are|was|were|has|have|had|be|lies?|intersects?|bisects?|passes|equals?|meets?|costs?|buys?|bought|let|"
    r"suppose|tangent|parallel|perpendicular)\b|[=∥⊥≅≠<>≤≥∽//\dƒ]"
)
# A condition behind what is asked: "What is y if x = 3?"
TRAILING = re.compile(
    r"(?i)^(?P<asked>.{6,}?\S),?\s+(?:if|given that|when|knowing that)\s+(?P<condition>[^?]*[\d=ƒ][^?]*?)"
    r"\s*(?P<end>[?.])$"
)


def split_text(text: str) -> Split:
    """
    Splits a problem: the last sentences that ask, and all behind them (choices), are asked; of the first of them, the
    clauses before the one that asks are conditions.

    The words that join the two go: `If AB is 3, then it is ()` becomes `AB is 3.` and `It is ()`. Names, such as x, xy
    and sin, keep their case.

    Raises:
        NoConditions: if nothing is left in the place of the conditions.
    """
    choices = CHOICES.search(text)
    end = choices.start() if choices else len(text)
    masked = _mask(text)
    starts = _sentence_starts(text[:end], masked[:end])
    spans = list(zip(starts, [*starts[1:], end], strict=True))
    asking = [index for index, (start, stop) in enumerate(spans) if _asks(masked[start:stop].strip())]
    first = asking[-1] if asking else len(spans) - 1
    while first - 1 in asking:
        first -= 1
    start, stop = spans[first]
    before = text[:start].strip()
    if LEAD_IN.sub("", before).strip(" .,;:，。；：") == "":
        before = ""
    sentence = text[start:stop].strip()
    offset = start + len(text[start:stop]) - len(text[start:stop].lstrip())
    head, asked = _split_sentence(sentence, masked[offset : offset + len(sentence)])
    if head:
        before = f"{before}{_between(before)}{head}"
    if not before:
        raise NoConditions("no conditions: nothing stands before the part that asks, which stays in the prompt")
    return Split(before, asked + text[offset + len(sentence) :].rstrip())


def _between(before: str) -> str:
    """Returns what divides sentences: the end of the line behind what has none of its own, as the row of a table."""
    if not before or before[-1] in "。？！．":
        return ""
    return " " if before[-1] in '.?!:,;)"”' else "\n"


def _mask(text: str) -> str:
    """Returns a text of the same length, without the insides of formulas, nor commas in brackets and quotes."""
    masked = replace_math(text, lambda match: _mask_formula(match[0]))
    masked = ENTITY.sub(lambda match: "\2" * len(match[0]), masked)
    return re.sub(r"[(（\[{“\"][^()（）\[\]{}“”\"\n]*[)）\]}”\"]", lambda match: _hide(match[0]), masked)


def _mask_formula(formula: str) -> str:
    """Returns a formula as letters; what it has to be filled in stays seen."""
    if FILLED_IN.fullmatch(formula):
        return " " * len(formula)
    return "ƒ" * (len(formula) - 2) + ("()" if TO_FILL.search(formula) else "ƒƒ")


def _hide(group: str) -> str:
    inside = re.sub(r"[\s,;，；.。?？!！]", "\2", group[1:-2])
    return group[0] + inside + group[-2:] if group[1:-1].strip() else group


def _sentence_starts(text: str, masked: str) -> list[int]:
    """Finds where sentences start, not within formulas nor behind abbreviations."""
    starts = [0]
    for match in SENTENCE.finditer(masked):
        before = masked[max(0, match.start() - 10) : match.start()]
        if match.end() < len(text) and not ABBREVIATION.search(before):
            starts.append(match.end())
    return starts


def _asks(part: str) -> bool:
    """Whether a sentence asks: by its mark, by a clause of it, or by a blank to fill in."""
    if part.endswith(("?", "？")) or re.search(BLANK, part):
        return True
    if CJK.search(part):
        return bool(CHINESE_ASKS.search(part))
    if " | " in part:  # a row of a table, which may begin with "State"
        return False
    return any(_clause_asks(clause, last=False) for clause in COMMA.split(part) if clause)


def _clause_asks(clause: str, last: bool) -> bool:
    clause = clause.strip()
    if CJK.search(clause):
        return bool(CHINESE_ASKS.search(clause)) or (last and bool(re.match(r"\W*(?:则|那么)", clause)))
    if RELATIVE.match(clause):
        return False
    if VERB_FIRST.match(clause):
        return clause.endswith("?")
    return bool(ASK_WORD.match(clause)) or (last and bool(THEN.match(clause) or LEADS_TO_BLANK.search(clause)))


def _split_sentence(sentence: str, masked: str) -> tuple[str, str]:
    """Splits the sentence that asks at the clause that does; returns its conditions, if it has some, and the rest."""
    chinese = bool(CJK.search(sentence))
    cuts = [match.end() for match in (CHINESE_COMMA if chinese else COMMA).finditer(masked)]
    cuts += [match.end() for match in INNER_THEN.finditer(masked)] if HYPOTHESIS.match(masked) else []
    starts = sorted({0, *(cut for cut in cuts if 0 < cut < len(sentence))})
    clauses = [masked[start:stop] for start, stop in zip(starts, [*starts[1:], len(sentence)], strict=True)]
    asking = [index for index, clause in enumerate(clauses) if _clause_asks(clause, index == len(clauses) - 1)]
    if asking and asking[0] != 0 or (chinese and asking and asking[-1] != 0):
        index = asking[-1]
        while index - 1 in asking:
            index -= 1
        cut = starts[index]
        if index and _says_something(masked[:cut]):
            return _close(sentence[:cut], chinese), _open(sentence[cut:])
        return "", sentence
    match = None if chinese else TRAILING.match(masked)
    told = bool(match) and (len(match["condition"].split()) >= 3 or re.search("[=ƒ]", match["condition"]))
    if told and not re.search(r"(?i)\b(?:as|even|only)$", match["asked"]):
        start, stop = match.span("condition")
        return _open(sentence[start:stop]) + ".", sentence[: match.end("asked")] + match["end"]
    return "", sentence


def _says_something(head: str) -> bool:
    """Whether clauses are conditions, other than "As shown in the figure" and "In triangle ABC"."""
    rest = LEAD_IN.sub("", ORIGIN.sub("", head)).strip(" ,;，；:：")
    if CJK.search(rest):
        return len(re.findall(r"\w|[∠△⊙=°ƒ]", rest)) >= 3
    told = bool(SAYS.search(rest))
    return told and bool(re.search("[=ƒ]", rest)) or len(rest.split()) >= 2 and (told or not PREPOSITION.match(rest))


def _close(head: str, chinese: bool) -> str:
    """Makes conditions that went on a sentence: without "if", with a full stop."""
    head = head.strip().rstrip(",;，；").strip()
    if chinese:
        head = re.sub(r"^(?:如果|若|假如)\s*", "", head)
        head = re.sub(r"^当(.+)时$", r"\1", head)
        return head if head.endswith(("。", "？", "！")) else f"{head}。"
    if not re.search(r"(?i)\bthen\b", head):
        head = re.sub(r"(?i)^(?:if|suppose that|assuming that)\s+", "", head)
    head = re.sub(r"(?i)\s+and$", "", head)
    return f"{_capital(head)}."


def _open(asked: str) -> str:
    """Makes the rest a sentence: without "then"."""
    asked = asked.strip()
    asked = re.sub(r"^(?:则|那么|请问)\s*(?=\S)", "", asked)
    asked = re.sub(r"(?i)^(?:and\s+then|then|and|so(?!\s+that)|therefore|hence|thus)\s+", "", asked)
    return _capital(asked)


def _capital(text: str) -> str:
    """Begins a text with a capital, unless it begins with a name, such as x, xy or sin."""
    word = re.match("[a-z]*", text)[0]
    is_name = len(word) == 1 and text[1:2] != " " or word in NAMES or re.match(r"[a-z]+\s*[=<>≤≥≠+\-^_(*/]", text)
    is_word = (word == "a" or word in SHORT_WORDS or len(word) > 2) and not is_name
    return text[0].upper() + text[1:] if is_word else text
