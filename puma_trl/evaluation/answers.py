"""
From a reply to an answer where no language model extracts it: the `final` rule, which is ours, and the rule of the
original Math-PUMA project for MathVerse.
"""

import re


RULES = ("official", "math_puma", "final")

PUMA_MARKERS = ("answer:", "Answer:", "therefore,", "so,", "Therefore,", "So,", "Thus,", "thus,")

ANSWER_PHRASE = re.compile(
    r"<answer>\s*:?|\banswers?\b[\s*>\"]*(?:is|are|:|=)|\b(?:correct|right) (?:option|choice)\b[\s*]*(?:is|:)",
    re.IGNORECASE,
)
LETTER = re.compile(r"\(([A-H])\)|(?<![\w'])([A-H])(?![\w'])")
NUMBER = re.compile(r"(?:(?<![\w)\]])[-−])?(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)")
BRACKETS = re.compile(r"\[[^\[\]]*\]")
BRACES = re.compile(r"\\boxed\{|[{}]")
TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
# Markup around an answer: Markdown, dollars, quotes, the << >> of We-Math's template.
MARKUP = " \t\r\n*<>$`\"':"


def puma_mathverse(reply: str) -> str:
    """
    Returns what the rule of the original project takes from a MathVerse reply.

    After the removal of `[UNUSED_TOKEN_145]`: everything after the last "†", untrimmed; else the trimmed text after
    the rightmost of `PUMA_MARKERS`, which need no word boundary; else the trimmed reply.
    """
    reply = reply.replace("[UNUSED_TOKEN_145]", "")
    if "†" in reply:
        return reply.rpartition("†")[2]
    ends = [reply.rfind(marker) + len(marker) for marker in PUMA_MARKERS if marker in reply]
    return reply[max(ends, default=0) :].strip()


def final_answer(reply: str, kind: str) -> str | None:
    r"""
    Returns the answer that a reply ends in: its last `\boxed{…}`, else what follows its last answer phrase ("the
    answer is", "Answer:", "<Answer>:", "the correct option is", …) on that line, else its last option letter or
    number.

    Args:
        reply (`str`):
            What the model said.
        kind (`str`):
            What the answer is: `"choice"` (an option letter where one can be read), `"number"`, `"list"` (in square
            brackets), or `"text"` (anything).

    Returns:
        The answer, or `None` where the reply ends in none.
    """
    segment = _last_boxed(reply)
    if segment is None:
        segment = _after_phrase(reply)
    if segment:
        return _read_segment(segment, kind)
    if kind == "list":
        return _plain(_last(BRACKETS, reply))
    letter, number = _last(LETTER, reply), _last(NUMBER, reply)
    if kind == "choice":
        return _plain(letter or number)
    if kind == "number":
        return _plain(number)
    return _plain(max((letter, number), key=lambda match: match.end() if match else -1))


def _read_segment(segment: str, kind: str) -> str | None:
    """Reads an answer of the given kind from the part of a reply that states it."""
    if kind == "choice":
        return _plain(LETTER.search(segment)) or segment
    if kind == "number":
        # "3 + 4 = 7 cm" states 7
        return _plain(NUMBER.search(segment.rpartition("=")[2]) or NUMBER.search(segment))
    if kind == "list":
        return _plain(_last(BRACKETS, segment)) or segment
    return segment


def _last_boxed(reply: str) -> str | None:
    r"""Returns the content of the last `\boxed{…}` whose braces are balanced, without markup."""
    open_braces: list[int] = []
    last, end = -1, -1
    for brace in BRACES.finditer(reply):
        if brace.group() != "}":
            open_braces.append(brace.end() if len(brace.group()) > 1 else -1)
        elif open_braces and (start := open_braces.pop()) > last:
            last, end = start, brace.start()
    return None if last < 0 else _without_markup(reply[last:end])


def _after_phrase(reply: str) -> str | None:
    """Returns the line after the last answer phrase that anything follows, without markup."""
    for phrase in reversed(list(ANSWER_PHRASE.finditer(reply))):
        rest = reply[phrase.end() :].lstrip(MARKUP)
        line = rest.split("\n", 1)[0].split("</")[0]
        if _without_markup(line):
            return _without_markup(line)
    return None


def _without_markup(text: str) -> str:
    return TEXT_COMMAND.sub(r"\1", text).strip(MARKUP).rstrip(".").strip(MARKUP)


def _last(pattern: re.Pattern, text: str) -> re.Match | None:
    return max(pattern.finditer(text), key=re.Match.end, default=None)


def _plain(match: re.Match | None) -> str | None:
    """Returns the letter without parentheses, the number without separators, the list as it is."""
    if match is None or match.re is BRACKETS:
        return match and match.group()
    return match.group().strip("()").replace(",", "").replace("−", "-")
