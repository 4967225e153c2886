"""LaTeX in problem texts: where it stands, between dollars and without them, and what else a text says without ink."""

import html
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .environments import ALIGNED, CENTRED, FENCES_OF, TABLES
from .parser import Parser, parse_formula
from .symbols import NOTHING, SPACES
from .tree import CannotDraw, Row, Space


DISPLAYED = "|".join([*ALIGNED, *CENTRED, "tabular", "tabularx", "longtable"])
INNER = "|".join([*FENCES_OF, *TABLES, *ALIGNED, *CENTRED])
# A single dollar opens math only before a character that is no space, and closes it only behind one and not before a
# digit (the rule of Pandoc), so that "$5 and $10" are prices. With spaces inside, it must look like a formula, and not
# as "$5 + $x$" does.
MATH = re.compile(
    r"\$\$(?P<display>.+?)\$\$"
    r"|\\\[(?P<bracket>.+?)\\\]"
    r"|\\\((?P<parenthesis>.+?)\\\)"
    rf"|\\begin\{{(?P<name>(?:{DISPLAYED})\*?)\}}(?P<environment>.+?)\\end\{{(?P=name)\}}"
    r"|(?<![\\$])\$(?!\s)(?P<inline>(?:[^$\\\n]|\\.|\n(?!\s*\n))+?)(?<!\s)\$(?!\d)"
    r"|(?<![\\$])\$(?!\d[^$\n]*\s\$[a-zA-Z\\])(?P<blanked>(?:[^$\\\n]|\\.)+?)\$(?!\s*\d)",
    re.DOTALL,
)
# Two dollars that are prices may have the same places: what stands between them is then prose, which has two words
# side by side or goes on with another sentence, other than in the arguments of commands.
ARGUMENTS = re.compile(r"\\[a-zA-Z]+\*?\s*(?:\{(?:[^{}]|\{[^{}]*\})*\}\s*)+|\{\s*\\(?:rm|bf|it|sf|tt)\b[^{}]*\}")
PROSE = re.compile(
    r"(?<![\\a-zA-Z])[A-Z]?[a-z]+(?<=[a-zA-Z]{2})\s+[A-Z]?[a-z]+(?<=[a-zA-Z]{2})(?![a-zA-Z])|[.?]\s+[A-Z][a-z]"
)
CHINESE_PROSE = re.compile(r"[，。；？！、].*[\u4e00-\u9fff]|[\u4e00-\u9fff].*[，。；？！、]")
# What stands between two amounts: "from $ 5 to $ 8"
WORDS = re.compile(r"[a-z]{4}|[\u4e00-\u9fff]|\b(?:and|at|by|each|for|from|in|is|of|on|or|per|plus|the|to|with)\b")
FORMULA_SIGN = re.compile(r"[\\^_=+<>≤≥×÷·√°∠△]")

BEGINNING = re.compile(r"\\begin\s*\{(" + INNER + r")\*?\}")
EDGE = re.compile(r"\\(begin|end)\s*\{")
# Environments around text that say where it stands on a page
WRAPPER = re.compile(
    r"\\(?:begin|end)\s*\{(?:center|flushleft|flushright|table|document|minipage|quote)\*?\}(?:\[[^\]]*\])?"
)
# Line ends that were lost, as in `\hlineName &`
RUN_ON = re.compile(r"(\\(?:hline|toprule|midrule|bottomrule))(?=[A-Za-z$])")
LINE_BREAK = re.compile(
    r"[ \t]*(?:\\\\(?:\[\d[^\]\n]*\])?|\\(?:newline|par|linebreak|n)(?![a-zA-Z])"
    r"|\\n(?=[A-Z])(?!(?:Right|Left|Vdash|VDash)))[ \t]*\n?"
)
HEADING = re.compile(r"\s*\\(?:sub)*(?:section|paragraph)\*?\s*\{([^{}]*)\}\s*")
# Emphasis in LaTeX and Markdown, which is printed like the rest
EMPHASIS = re.compile(r"\\(?:textbf|textit|emph|textrm|textsf|textsc)\s*\{([^{}]*)\}")
TICKS = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
STARS = re.compile(r"(?<![\w*])\*\*(?=\S)([^*\n]+?)(?<=\S)\*\*(?![\w*])")

KEPT = re.compile("\0(\\d+)\0")
# A table of Markdown: its head, the line below, and its rows
MARKDOWN = re.compile(
    r"^[^\n|]*\|[^\n]*\n[ \t]*\|?(?:[ \t]*:?-+:?[ \t]*\|)+(?:[ \t]*:?-+:?[ \t]*)?(?:\n[^\n|]*\|[^\n]*)*",
    re.MULTILINE,
)
# Lines with bars between columns, without anything that has bars of its own
BARRED = r"[^\n|{}$\\]+(?:\|[^\n|{}$\\]*)+"
COLUMNS = re.compile(rf"^{BARRED}(?:\n{BARRED})+$", re.MULTILINE)
CHOICE = re.compile(r"\s*\(?[A-Z]\s?[.:)]")
ENTITY = re.compile(r"&(?:[a-zA-Z]{2,8}|#\d{2,6}|#x[0-9a-fA-F]{2,5});")
NEW_LINE = re.compile(r"[ \t]*<br\s*/?>[ \t]*\n?", re.IGNORECASE)
SCRIPT = re.compile(r"<(sub|sup)>([^<>]*)</\1>", re.IGNORECASE)
BLANK_LINE = re.compile(r"<u>((?:\s|&nbsp;)*)</u>", re.IGNORECASE)
TAGGED = re.compile(r"<(p|b|i|u|em|strong|span|div|font|center)(?:\s[^<>]*)?>(.*?)</\1>", re.IGNORECASE | re.DOTALL)
# Programs, which would be printed as such
CODE = {
    "a program of Asymptote": re.compile(r"\[asy\]|\\begin\s*\{asy\}|<asy>", re.IGNORECASE),
    "a program of TikZ": re.compile(
        r"\\begin\s*\{(?:tikz\w*|pspicture|pgfpicture|axis|circuitikz)\}|\\(?:draw|tikz|node|filldraw|addplot)\b"
    ),
    "HTML": re.compile(
        r"</?(?:table|tr|td|th|tbody|thead|svg|math|mrow|mfrac|script|style|html|body|ul|ol|li|h[1-6]|pre|code|"
        r"iframe|canvas|input)(?:\s[^<>]*)?/?>",
        re.IGNORECASE,
    ),
    "a block of code": re.compile(
        r"```|^[ \t]*(?:def \w+\(.*\):|#include\s*<|import (?:numpy|math|matplotlib)\b|from \w+ import )", re.MULTILINE
    ),
}

# In running text: a command, an exponent, an index, a root
TRIGGER = re.compile(
    r"\\(?:[a-zA-Z]+|.|$)|(?<=\S)\^(?=\S)|(?<=[A-Za-z0-9)\]}\u0370-\u03ff])_(?=\{|\\|[A-Za-z0-9](?![A-Za-z_]))|√\s*(?=\{)",
    re.DOTALL,
)
# What may stand before it without a space and belong to the same formula
BEFORE = re.compile(r"(?:[0-9A-Za-z()\[\]+\-−*/=<>|'′√∠△⊙°·×÷±\u0370-\u03ff]|(?<=\d)\.(?=\d)|\{[^{}]*\})*$")
ESCAPED = frozenset("$%&#_{}")
# A dollar that is one: of a price, of a currency
PRICE = re.compile(
    r"(?:US|A|C|HK|NT|S|NZ|R|AU|CA)\$|\$(?=\s?[\d.]*\d)|(?<=\d)\$|(?<=\d )\$|(?<=[(（])\$"
    r"|\$(?=\s*(?:[)\]?.,;:!，。？）]|$))"
)


class Part(NamedTuple):
    """
    A piece of a paragraph.

    Args:
        text (`str`):
            The characters, or the LaTeX of a formula.
        node (`Row`, *optional*):
            The tree of a formula.
        alone (`bool`, *optional*):
            Whether it stands on a line of its own.
        reason (`str`, *optional*):
            Why it would be printed as source.
    """

    text: str
    node: Row | None = None
    alone: bool = False
    reason: str = ""


def find_code(text: str) -> str | None:
    """Says what program a text has, if any."""
    return next((name for name, pattern in CODE.items() if pattern.search(text)), None)


def find_math(text: str) -> Iterator[re.Match]:
    """Finds the formulas between delimiters, from left to right; a price is none."""
    position = 0
    while match := MATH.search(text, position):
        if match.lastgroup in ("inline", "blanked") and not _is_formula(match[match.lastgroup], match.lastgroup):
            position = match.start() + 1
        else:
            yield match
            position = match.end()


def _is_formula(content: str, kind: str) -> bool:
    rest = ARGUMENTS.sub(" \\\\ ", content)
    if not content.strip() or PROSE.search(rest):
        return False
    signs = FORMULA_SIGN.search(content)
    if CHINESE_PROSE.search(rest) and not signs:
        return False
    return kind == "inline" or bool(signs) or not WORDS.search(rest)


def replace_math(text: str, replacement: Callable[[re.Match], str]) -> str:
    """Replaces the formulas of a text, with their delimiters."""
    pieces, position = [], 0
    for match in find_math(text):
        pieces += [text[position : match.start()], replacement(match)]
        position = match.end()
    return "".join([*pieces, text[position:]])


def tidy(text: str) -> str:
    """Takes out what says how a text looks: HTML, emphasis, line breaks of LaTeX. Formulas come on one line."""
    if "<" in text or "&" in text:
        text = _without_html(text)
    text = MARKDOWN.sub(_draw_markdown, RUN_ON.sub(r"\1 ", text))
    text = COLUMNS.sub(_draw_columns, text)
    formulas: list[str] = []

    def keep(piece: str) -> str:
        formulas.append(piece.replace("\n", " "))
        return f"\0{len(formulas) - 1}\0"

    text = replace_math(text.replace("\0", " "), lambda match: keep(match[0]))
    text = _replace_environments(text, keep)
    text = WRAPPER.sub("\n", text)
    text = LINE_BREAK.sub("\n", HEADING.sub(r"\n\1\n", text))
    changes = 1
    while changes:  # from the inside out
        text, changes = EMPHASIS.subn(r"\1", text)
    text = STARS.sub(r"\1", TICKS.sub(r"\1", text))
    while "\0" in text:  # formulas inside of environments too
        text = KEPT.sub(lambda match: formulas[int(match[1])], text)
    return text


def _without_html(text: str) -> str:
    text = BLANK_LINE.sub("____", text)
    text = NEW_LINE.sub("\n", text)
    text = SCRIPT.sub(lambda match: f"{'_' if match[1].lower() == 'sub' else '^'}{{{match[2]}}}", text)
    changes = 1
    while changes:
        text, changes = TAGGED.subn(lambda match: f"\n{match[2]}\n" if match[1] in "pdivP" else match[2], text)
    return ENTITY.sub(lambda match: html.unescape(match[0]), text)


def _draw_markdown(match: re.Match) -> str:
    """Writes a table of Markdown as one of LaTeX."""
    head, line, *body = (row.strip().strip("|").split("|") for row in match[0].strip().split("\n"))
    aligns = ["r" if not cell.strip().startswith(":") and cell.strip().endswith(":") else "c" for cell in line]
    return _write_table([head, *body], aligns)


def _draw_columns(match: re.Match) -> str:
    """Writes lines whose columns are divided by bars, as TabMWP has them, as a table; others stay as they are."""
    rows = [row.split(" | ") for row in match[0].split("\n")]
    if (
        match[0].count("|") != len(rows) * (len(rows[0]) - 1)
        or len({len(row) for row in rows}) > 1
        or any(CHOICE.match(row[0]) for row in rows)
    ):
        return match[0]
    return _write_table(rows, ["c"] * len(rows[0]))


def _write_table(rows: list[list[str]], aligns: list[str]) -> str:
    lines = r" \\ \hline ".join(" & ".join(_write_cell(cell.strip()) for cell in row) for row in rows)
    return f"\n\\begin{{tabular}}{{|{'|'.join(aligns)}|}}\\hline {lines} " + "\\\\ \\hline\\end{tabular}\n"


def _write_cell(text: str) -> str:
    """Writes a cell so that its signs are read as such, and its formulas as formulas."""
    pieces = []
    for part in split_paragraph(text):
        if part.node is not None:
            pieces.append(f"${part.text}$")
        else:
            pieces.append(part.text if part.reason else re.sub(r"([$&%#_{}])", r"\\\1", part.text))
    return "".join(pieces)


def _replace_environments(text: str, keep: Callable[[str], str]) -> str:
    """Replaces environments that stand without delimiters, the outermost ones."""
    pieces, position = [], 0
    while match := BEGINNING.search(text, position):
        depth, end = 0, None
        for edge in EDGE.finditer(text, match.start()):
            depth += 1 if edge[1] == "begin" else -1
            if depth == 0:
                end = text.find("}", edge.end()) + 1
                break
        if not end:
            break
        pieces += [text[position : match.start()], keep(text[match.start() : end])]
        position = end
    return "".join([*pieces, text[position:]])


def split_paragraph(text: str) -> list[Part]:
    """Splits a paragraph of what [`tidy`] returned at its formulas, those with delimiters and those without."""
    parts, position = [], 0
    for match in find_math(text):
        parts += _split_plain(text[position : match.start()])
        kind = match.lastgroup
        source = match[0] if kind == "environment" else match[kind].strip()
        alone = kind in ("environment", "bracket") or (kind == "display" and match[0] == text.strip())
        try:
            parts.append(Part(source, parse_formula(source), alone))
        except CannotDraw as error:
            parts.append(Part(match[0], reason=str(error)))
        position = match.end()
    parts += _split_plain(text[position:])
    return [part for part in parts if part.text]


def _split_plain(text: str) -> list[Part]:
    """Splits text without delimiters at what must be a formula all the same."""
    parts: list[Part] = []
    done = 0
    plain = ""
    for match in TRIGGER.finditer(text):
        if match.start() < done:
            continue
        name = match[0].removeprefix("\\") if match[0].startswith("\\") else ""
        if name in ESCAPED:
            plain += text[done : match.start()] + "\1" + name  # a sign that is meant
            done = match.end()
            continue
        if name in NOTHING or match[0] == "\\":  # a blank at the end of a line
            plain += text[done : match.start()]
            done = match.end()
            continue
        start = match.start()
        if name not in SPACES:  # a blank has nothing before it that belongs to it
            opening = re.search(r"\{\s*$", text[done:start]) if name else None
            start = done + (opening or BEFORE.search(text[done:start])).start()
        parts += _check_signs(plain + text[done:start])
        plain = ""
        part, done = _read_fragment(text, start, match)
        parts.append(part)
    return parts + _check_signs(plain + text[done:])


def _read_fragment(text: str, start: int, trigger: re.Match) -> tuple[Part, int]:
    """Reads a formula without delimiters; returns it and where it ends."""
    name = trigger[0].removeprefix("\\")
    if trigger[0].startswith("\\") and name in SPACES:
        return Part(trigger[0], Row((Space(SPACES[name]),))), trigger.end()
    parser = Parser(text, start, loose=True)
    try:
        node = parser.fragment()
        if parser.position <= trigger.start():
            raise CannotDraw(f"'{trigger[0]}' without its counterpart")
        return Part(text[start : parser.position], node), parser.position
    except CannotDraw as error:
        end = re.compile(r"\S*").match(text, trigger.end()).end()
        return Part(text[start:end], reason=str(error)), end
    except RecursionError:
        return Part(text[start:], reason="too many levels"), len(text)


def _check_signs(text: str) -> list[Part]:
    """Finds dollars and braces that no formula has, and that are no prices and no sets."""
    if not text:
        return []
    meant = re.sub("\1[{}$]", "", text)
    reason = ""
    if "$" in PRICE.sub("", meant):
        reason = "a dollar without its counterpart"
    depth = 0
    for character in re.findall("[{}]", meant):
        depth += 1 if character == "{" else -1
        if depth < 0:
            break
    if depth:
        reason = "a brace without its counterpart"
    return [Part(text.replace("\1", ""), reason=reason)]
