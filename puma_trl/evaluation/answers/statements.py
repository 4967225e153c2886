r"""
Where a reply states its answer, in the order in which that is evidence: thoughts are taken out, then come the last
`\boxed{…}`, the last block of an answer (tag or heading), the phrases, the last one first, and what is set in bold.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ...data.thoughts import TAG as THOUGHT


MAX_SEGMENT = 400  # characters of a sentence that are read after a phrase
MAX_PHRASES = 50

BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[{}]|[{}]")
TAG = re.compile(r"<(?P<end>/?)(?:answer|final_answer|conclusion)>(?!\s*:)", re.IGNORECASE)
GAP = r"[ \t]{0,8}"
HEADING = re.compile(
    rf"^{GAP}(?:#{{1,6}}{GAP}\*{{0,3}}|\*\*){GAP}(?:the )?(?:final |correct )?(?:answer|conclusion){GAP}"
    rf"[:：]?{GAP}\*{{0,3}}{GAP}[:：]?{GAP}$|"
    rf"^{GAP}(?:#{{1,6}}{GAP})?\*{{0,3}}(?:最终|最后的?|正确)?答案\*{{0,3}}{GAP}[:：]?\*{{0,3}}{GAP}$",
    re.IGNORECASE | re.MULTILINE,
)
NEXT_QUESTION = re.compile(r"^[ \t*]{0,8}(?:Question|Human|User)[ \t*]{0,4}[:：]", re.MULTILINE)
NEXT_HEADING = re.compile(r"^[ \t]*#{1,6}[ \t]", re.MULTILINE)

ADVERB = r"(?:\s+(?:therefore|thus|then|hence|also|simply|clearly|most likely|probably|likely))?"
PHRASE = re.compile(
    # <Answer>: of a template, Answer:, "the final answer is", "the correct option would be", "the answer to … is"
    rf"<answer>\s*[:：]"
    rf"|†+"
    rf"|\b(?:answers?|(?:option|answer) letter|"
    rf"(?:correct|right|best|final) (?:(?:option|choice|answer) )?(?:option|choice|letter|value|result|one))"
    rf"\b[\s*_>\"”)]{{0,8}}{ADVERB}\s{{0,8}}"
    rf"(?:(?:is|are|was|(?:must|should|would|will|could) be)\b|[:：=–—]|-(?=\s))"
    rf"\s*(?:therefore|thus|then|simply)?\s*[:：]?"
    rf"|\b(?:answers?|option|choice) (?:to|for|of|that|which)\b[^.\n:：]{{1,150}}?\b(?:is|are)\b\s*[:：]?"
    rf"|\b(?:answer|solution) (?:comes|turns) out to be\b"
    rf"|正确的(?:选项|答案|一项)?(?:应该?|就)?(?:是|为)\s*[:：]?"
    rf"|(?:答案|选项)[\s】\])\*]{{0,8}}(?:应该?|就)?(?:是|为|选择?|[:：])+\s*[:：]?|【答案】"
    rf"|(?:故|应|应该|所以|因此|则|可)\s*选(?:择|项)?\s*[:：]?|(?:^|[，。,;；\s])(?:选择|选)\s*[:：]?(?=\s*[\(（]?[A-H])",
    re.IGNORECASE,
)
REACH = 80  # characters before an answer in which a doubt or a denial is looked for
# "I don't think that the answer is 5"
DOUBT = re.compile(
    r"\b(?:not (?:true|correct|right|the case|so) that|n['’]t true that|(?:do not|don['’]t|would not|wouldn['’]t|"
    r"cannot|can['’]t) (?:think|believe|say|conclude)|doubt)\b[^,;.，；。\n]{0,40}$",
    re.IGNORECASE,
)
# The letter that a line ends in, behind a word that draws a conclusion.
CONCLUSION = re.compile(
    r"\b(?:so|hence|thus|therefore|choose|pick|select|go with|leav(?:es|ing)(?: only)?)\b,?\s{1,4}"
    r"(?:(?:it(?: is|'s| must be)|option|choice) )?"
    r"[(（]?(?P<letter>[A-H])[)）]?[ \t*.。!]{0,4}$",
    re.IGNORECASE | re.MULTILINE,
)
DENIAL = re.compile(r"\b(?:not|neither|nor|incorrect|wrong|false)\b|n't|不", re.IGNORECASE)
# What is set in bold and is neither a title nor the name of a step.
BOLD = re.compile(r"\*\*(?!\s)([^*\n]{1,60})(?<![\s:：])\*\*(?!\s*[:：])")
# The letter stands before what says that it is right.
VERDICT = re.compile(
    r"(?:^|(?<=[\s(（*\"'“，。；：,有]))(?<!\bor\s)(?:(?i:option|choice|answer|选项)\s{0,4})?[\"'“*]{0,4}[(（]?(?P<letter>[A-H])(?![A-Za-z])"
    r"(?![)）]?,?\s?(?:or\b|或))[)）]?[\"'”*.:]{0,4}\s{0,4}(?:[^.\n]{0,60}?\s)??"
    r"(?:(?:is|must be|should be|would be|looks)\s{1,4}"
    r"(?:(?:therefore|thus|also)\s{1,4})?(?:the\s{1,4})?(?:correct|right|best|answer|true)\b(?! at first)|"
    r"fits?\s{1,4}(?:better|best)\b|"
    r"(?:选项)?\s{0,4}(?:符合|满足)|(?:选项)?\s{0,4}(?:是|为)?正确(?!\S{0,2}错)|(?:选项)?\s{0,4}是答案)",
)
# "not A but C", "it isn't A; it's C"
CONTRAST = re.compile(
    r"(?:\bnot|n['’]t|不是)\s{0,4}(?:option\s)?[(（]?[A-H](?![A-Za-z])[)）]?\s?[,;，；.]?\s{0,4}"
    r"(?:but|rather|(?:but )?(?i:it)(?:['’]s| is)|而是|是)\s{0,4}(?:option\s)?[(（]?(?P<letter>[A-H])(?![A-Za-z])"
)
# A line of a list of options: "- **B. 12 cm**: correct."
APPROVED = re.compile(
    r"^[ \t*•-]{0,8}(?:Option )?[(（]?(?P<letter>[A-H])[)）.:：][^\n]{0,120}?"
    r"(?:[–—:：-]\s{0,3}\**(?:This is )?(?:correct|right|true|正确)(?!\w)|[✓✔✅])",
    re.IGNORECASE | re.MULTILINE,
)
# What stands before the letter of a point, a line, an angle, a variable or a place, and not of an option.
NAMES = re.compile(
    r"(?:[∠△⊙⊥∥√/+×·^_\\-]|\b(?:angles?|points?|vert(?:ex|ices)|triangles?|lines?|segments?|sides?|rays?|arcs?|chords?|"
    r"circles?|cent(?:er|re)d?|diameters?|radius|edges?|faces?|planes?|nodes?|trains?|cars?|curves?|lens|class(?:es)?|"
    r"groups?|samples?|town|city|team|figures?|shapes?|bottles?|boxes|box|from|to|at|on|of|near|through|with|between|"
    r"and|or|than|in|by)|[点角线段圆△边与和到在交于])\s*$",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"[.!?](?=\s|$|[\"'”)*])(?<!\b[A-Ha-h]\.)|[。！？；]|\n\s*\n|\n(?=\s*(?:[-*#•]|\d+[.)]\s))")

# A sentence that says why there is no answer.
REFUSAL = re.compile(
    r"\b(?:(?:does|do|did|is|are|was) ?n[o']t (?:provided?|given?|contain|enough|sufficient|possible|mention)|"
    r"please provide|"
    r"(?:can ?not|can't|unable to|impossible to) (?:be )?(?:determine|provide|answer|see|view|give|find|help)|"
    r"not (?:enough|provided|possible|have (?:enough|access|any|the|data))|no (?:information|clear)|insufficient|"
    r"as an ai|sorry|"
    r"without (?:more|additional|further|knowing|this|that|any)|i (?:can ?not|can't|am unable)|(?:would|will) need|"
    r"for example,? if|let me know|have (?:other|any) questions|help you|whether)\b|无法|没有提供|不能确定|信息不足",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Statement:
    """
    A part of a reply that states the answer.

    Args:
        text (`str`):
            The part.
        is_block (`bool`):
            Whether it is a whole text, which may end in the answer, rather than what a phrase announces.
        is_bold (`bool`, *optional*, defaults to `False`):
            Whether it is only set in bold, as titles and important words are too.
    """

    text: str
    is_block: bool = False
    is_bold: bool = False


def strip_thoughts(reply: str) -> str:
    """
    Returns a reply without the thoughts of a reasoning model.

    A thought that was cut off before its end takes the rest of the reply with it. What stands before an end without a
    beginning is a thought too: chat templates write the beginning into the prompt.
    """
    kept, start, thinks = [], 0, False
    for mark in THOUGHT.finditer(reply):
        if mark["begins"]:
            if not thinks:
                kept.append(reply[start : mark.start()])
            thinks = True
        else:
            if not thinks:
                kept = []
            thinks, start = False, mark.end()
    if not thinks:
        kept.append(reply[start:])
    return "".join(kept).strip()


def cut_next_question(text: str) -> str:
    """Returns a reply up to where a model that has answered goes on with a question of its own."""
    answered = PHRASE.search(text)
    question = answered and NEXT_QUESTION.search(text, answered.end())
    return text[: question.start()].rstrip() if question else text


def says_nothing(sentence: str) -> bool:
    """Returns whether a sentence asks, or says why there is no answer."""
    return sentence.rstrip(" *_\"'").endswith(("?", "？")) or REFUSAL.search(sentence) is not None


def find_statements(text: str) -> Iterator[Statement]:
    """Yields where a reply without thoughts states its answer, the strongest evidence first."""
    boxed = last_boxed(text)
    if boxed is not None:
        yield Statement(boxed)
    for block in (_last_tagged(text), _last_headed(text)):
        if block:
            yield Statement(block, is_block=True)
    yield from find_phrases(text)
    for bold in reversed(BOLD.findall(text)[-MAX_PHRASES:]):
        yield Statement(bold, is_bold=True)


def find_phrases(text: str) -> Iterator[Statement]:
    """Yields what phrases such as "the answer is" announce, the last one first; "C is correct" announces C."""
    places: list[tuple[int, str | None]] = [
        (match.end(), None)
        for match in PHRASE.finditer(text)
        if not DOUBT.search(text[max(0, match.start() - REACH) : match.start()])
    ]
    for match in VERDICT.finditer(text):
        if not DENIAL.search(match.group()) and not NAMES.search(text[max(0, match.start() - 16) : match.start()]):
            places.append((match.start("letter"), match["letter"]))
    places += [(match.start("letter"), match["letter"]) for match in CONCLUSION.finditer(text)]
    places += [(match.start("letter"), match["letter"]) for match in CONTRAST.finditer(text)]
    approved = [(match.start("letter"), match["letter"].upper()) for match in APPROVED.finditer(text)]
    places += approved if len(approved) == 1 else []
    for place, letter in sorted(places, key=lambda found: found[0], reverse=True)[:MAX_PHRASES]:
        segment = f"({letter})" if letter else first_sentence(text[place : place + MAX_SEGMENT])
        if segment.strip(" \t\n*_:.\"'`"):
            yield Statement(segment)


def first_sentence(text: str) -> str:
    """Returns the text up to the end of its first sentence that says anything, or of its paragraph."""
    text = text.lstrip(" \t\r\n*_>:：\"'`")
    text = text.split("</")[0]
    end = SENTENCE_END.search(text)
    return text[: end.start()] if end else text


def split_sentences(text: str) -> list[str]:
    """Returns the sentences of a text that hold more than spaces."""
    parts, start = [], 0
    for end in SENTENCE_END.finditer(text):
        parts.append(text[start : end.end()])
        start = end.end()
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def last_boxed(text: str) -> str | None:
    r"""Returns the content of the last `\boxed{…}` whose braces are balanced and that holds anything."""
    open_braces: list[int] = []
    last, end = -1, -1
    for brace in BRACES.finditer(text):
        token = brace.group()
        if token == "{" or len(token) > 2:
            open_braces.append(brace.end() if len(token) > 2 else -1)
        elif token == "}" and open_braces and (start := open_braces.pop()) > last:
            if text[start : brace.start()].strip():
                last, end = start, brace.start()
    return None if last < 0 else text[last:end].strip()


def _last_tagged(text: str) -> str | None:
    """Returns the content of the last answer tag that holds anything; one that is not closed reaches to the end."""
    last, start = None, None
    for tag in TAG.finditer(text):
        if tag["end"]:
            if start is not None and text[start : tag.start()].strip():
                last = text[start : tag.start()]
            start = None
        elif start is None or not text[start : tag.start()].strip():
            start = tag.end()
        else:
            last, start = text[start : tag.start()], tag.end()
    if start is not None and text[start:].strip():
        last = text[start:]
    return last and last.strip()


def _last_headed(text: str) -> str | None:
    """Returns what stands below the last heading "Answer", up to the next heading."""
    headings = list(HEADING.finditer(text))
    if not headings:
        return None
    below = text[headings[-1].end() :]
    end = NEXT_HEADING.search(below)
    return (below[: end.start()] if end else below).strip() or None
