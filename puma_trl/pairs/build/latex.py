"""LaTeX in problem texts: where it stands, and its picture by matplotlib's mathtext."""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from PIL import Image


# A single dollar opens math only before a character that is no space, and closes it only behind one and not before a
# digit (the rule of Pandoc), so that "$5 and $10" are prices.
MATH = re.compile(
    r"\$\$(?P<display>.+?)\$\$"
    r"|\\\[(?P<bracket>.+?)\\\]"
    r"|\\\((?P<parenthesis>.+?)\\\)"
    r"|\\begin\{(?P<name>(?:align|equation|gather|eqnarray|multline)\*?)\}(?P<environment>.+?)\\end\{(?P=name)\}"
    r"|(?<![\\$])\$(?!\s)(?P<inline>(?:[^$\\\n]|\\.|\n(?!\s*\n))+?)(?<!\s)\$(?!\d)",
    re.DOTALL,
)
# Between the rows of an environment, and between the columns of a row
NEW_ROW = re.compile(r"\\\\\*?(?:\[[\d.]+\s*[a-z]{2}\])?")
NEW_COLUMN = re.compile(r"(?<!\\)&")
# Two dollars that are prices may have the same places: what stands between them is then prose, which has two words
# side by side or goes on with another sentence, other than in the arguments of commands.
ARGUMENTS = re.compile(r"\\[a-zA-Z]+\*?\s*(?:\{(?:[^{}]|\{[^{}]*\})*\}\s*)+|\{\s*\\(?:rm|bf|it|sf|tt)\b[^{}]*\}")
PROSE = re.compile(
    r"(?<![\\a-zA-Z])[A-Z]?[a-z]+(?<=[a-zA-Z]{2})\s+[A-Z]?[a-z]+(?<=[a-zA-Z]{2})(?![a-zA-Z])|[.?]\s+[A-Z]"
)

# Common LaTeX that mathtext does not know → the same in its words.
REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:[tdcs]|nice)frac(?![a-zA-Z])", r"\\frac"),
        (r"\\[td]binom(?![a-zA-Z])", r"\\binom"),
        (r"\\(?:displaystyle|textstyle|limits|nolimits|boxed|fbox|mathop)(?![a-zA-Z])", ""),
        (r"\\(?:big|Big|bigg|Bigg)[lrm]?(?![a-zA-Z])", ""),
        (r"\\(frac|binom)\s*(\w|\\[a-zA-Z]+)\s*(\w)", r"\\\1{\2}{\3}"),
        (r"\\frac\s*(\w)\s*(?=\{)", r"\\frac{\1}"),
        (r"\\frac\s*(\{[^{}]*\})\s*(\w)", r"\\frac\1{\2}"),
        (r"\\sqrt\s*(\[\w+\])?\s*(\w)", r"\\sqrt\1{\2}"),
        (r"\\le(?![a-zA-Z])", r"\\leq"),
        (r"\\ge(?![a-zA-Z])", r"\\geq"),
        (r"\\[lr]?vert(?![a-zA-Z])", "|"),
        (r"\\[lr]?Vert(?![a-zA-Z])", r"\\|"),
        # mathtext makes bars as high as what is between them, which is too little beside letters
        (
            r"\\left\s*(\\?\|)((?:(?!\\(?:left|right|frac|binom|sum|prod|int)(?![a-zA-Z])).)*?)\\right\s*\1",
            r"\1\2\1",
        ),
        (r"\\land(?![a-zA-Z])", r"\\wedge"),
        (r"\\lor(?![a-zA-Z])", r"\\vee"),
        (r"\\lnot(?![a-zA-Z])", r"\\neg"),
        (r"\\(?:bm|pmb)(?![a-zA-Z])", r"\\boldsymbol"),
        (r"\\(?:dots[bcmio]|hdots)(?![a-zA-Z])", r"\\ldots"),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\(?:mbox|textrm|textnormal)(?![a-zA-Z])", r"\\text"),
        (r"\\textbf(?![a-zA-Z])", r"\\mathbf"),
        (r"\\textit(?![a-zA-Z])", r"\\mathit"),
        (r"\\pmod\s*(\{[^{}]*\}|\w)", r"\\ (\\mathrm{mod}\\ \1)"),
        (r"\\b?mod(?![a-zA-Z])", r"\\ \\mathrm{mod}\\ "),
        (r"\\tag\s*\{([^{}]*)\}", r"\\quad (\1)"),
        (r"\\label\s*\{[^{}]*\}", ""),
        (r"\\(?:nonumber|notag)(?![a-zA-Z])", ""),
        (r"\\implies(?![a-zA-Z])", r"\\Rightarrow"),
        (r"\\iff(?![a-zA-Z])", r"\\Leftrightarrow"),
        (r"\\stackrel(?![a-zA-Z])", r"\\overset"),
        (r"\^?(?:\\(?:degree|textdegree)(?![a-zA-Z])|°)", r"^{\\circ}"),
        (r"\\hspace\{[^{}]*\}|~", r"\\ "),
        (r"\\frac(?![a-zA-Z])", r"\\dfrac"),  # whose digits have full size
        (r"−", "-"),
        (r"\s+", " "),
    )
]

EXPONENT = 0.7  # size of an exponent in mathtext, as a share of the letters
MAX_GROWTH = 2.0  # of a formula beside the words; enough for an exponent of the third level
_SMALLER = r"(?:[\^_]|\\binom|\\overset|\\underset)"
# What may be smaller than an exponent
NEEDS_GROWTH = re.compile(rf"\\sqrt\s*\[|{_SMALLER}.*{_SMALLER}")

# Operators at which a formula is cut into terms, so that a term is drawn once for all formulas that have it.
OPERATOR = re.compile(r"\\(?:leq|geq|neq|ne|approx|cong|sim|equiv|times|cdot|div|pm)(?![a-zA-Z])|[=<>+-]")
TOKEN = re.compile(r"\\(?:left|right)(?![a-zA-Z])\s*(?:\\[a-zA-Z]+|\\?.)|\\[a-zA-Z]+|\\?.", re.DOTALL)
OPENING, CLOSING = ("{", "(", "[", r"\left"), ("}", ")", "]", r"\right")
# Changes of the font that hold on to the end
SWITCH = re.compile(r"\\(?:rm|bf|it|cal|tt|sf|bb|frak|scr)(?![a-zA-Z])")


@dataclass(frozen=True)
class Formula:
    """
    A formula in pixels.

    Args:
        mask (`PIL.Image.Image`):
            Its ink, 255 where it is full.
        depth (`int`):
            Pixels below the baseline.
    """

    mask: Image.Image
    depth: int


def find_math(text: str) -> Iterator[re.Match]:
    """Finds the formulas of a text, from left to right; a price is none."""
    position = 0
    while match := MATH.search(text, position):
        if match.lastgroup == "inline" and PROSE.search(ARGUMENTS.sub(" \\\\ ", match["inline"])):
            position = match.start() + 1
        else:
            yield match
            position = match.end()


def replace_math(text: str, replacement: Callable[[re.Match], str]) -> str:
    """Replaces the formulas of a text, with their delimiters."""
    pieces, position = [], 0
    for match in find_math(text):
        pieces += [text[position : match.start()], replacement(match)]
        position = match.end()
    return "".join([*pieces, text[position:]])


def split_math(text: str) -> list[tuple[str, bool, bool]]:
    """
    Splits a text at its formulas.

    Args:
        text (`str`):
            A problem, with formulas in `$…$`, `$$…$$`, `\\(…\\)` or `\\[…\\]`, or in environments such as `align*`.

    Returns:
        Pieces in order: (text, or LaTeX without delimiters; whether it is math; whether it stands on a line of its
        own). Each row of an environment is a piece, but one with another environment inside stays whole.
    """
    pieces, position = [], 0
    for match in find_math(text):
        if match.start() > position:
            pieces.append((text[position : match.start()], False, False))
        name = match.lastgroup
        if name == "environment":
            for row in _split_rows(match):
                pieces += [(" ", False, False), (row, True, True)]
            pieces.append((" ", False, False))
        else:
            pieces.append((match[name].strip(), True, name in ("display", "bracket")))
        position = match.end()
    if position < len(text):
        pieces.append((text[position:], False, False))
    return [piece for piece in pieces if piece[0]]


def _split_rows(match: re.Match) -> list[str]:
    if r"\begin" in match["environment"]:
        return [match[0]]
    rows = (NEW_COLUMN.sub("", row).strip() for row in NEW_ROW.split(match["environment"]))
    return [row for row in rows if row]


def normalise(source: str) -> str:
    """Rewrites LaTeX that mathtext does not know into what it knows."""
    for pattern, replacement in REWRITES:
        source = pattern.sub(replacement, source)
    return source.strip()


@lru_cache(maxsize=16384)
def split_terms(source: str) -> tuple[str, ...]:
    """Cuts a formula at the operators between its terms: `x^2`, `+`, `5`, `=`, `0`. Every second piece is one."""
    source = normalise(source)
    if SWITCH.search(source):
        return (source,)
    pieces, term, depth = [], "", 0
    for match in TOKEN.finditer(source):
        token = match[0]
        # behind another operator, one is a sign
        if depth == 0 and term.strip() and term.rstrip()[-1] not in "^_" and OPERATOR.fullmatch(token):
            pieces += [term.strip(), token]
            term = ""
        else:
            depth += token.startswith(OPENING) - token.startswith(CLOSING)
            term += token
    return (source,) if depth or not term.strip() else (*pieces, term.strip())


@lru_cache(maxsize=16384)
def draw_formula(source: str, font_set: str, size: int) -> Formula | None:
    """
    Draws a formula.

    Args:
        source (`str`):
            LaTeX without delimiters.
        font_set (`str`):
            One of mathtext's.
        size (`int`):
            Size of the letters in pixels.

    Returns:
        The formula, or `None` if mathtext cannot parse it or lacks one of its symbols.
    """
    lost = _LostGlyphs()
    logger = logging.getLogger("matplotlib.mathtext")
    logger.addHandler(lost)
    propagate, logger.propagate = logger.propagate, False
    try:
        parsed = MathTextParser("agg").parse(
            f"${normalise(source)}$", dpi=72, prop=FontProperties(size=size, math_fontfamily=font_set)
        )
    except (ValueError, RuntimeError):  # a ParseException is a ValueError; RuntimeError: characters without any font
        return None
    finally:
        logger.removeHandler(lost)
        logger.propagate = propagate
    if lost.found:
        return None
    mask = Image.fromarray(np.asarray(parsed.image))
    bounds = mask.getbbox()
    if bounds is None:
        return None
    # mathtext measures the depth from the baseline to the lowest ink with a border of one pixel above and below
    return Formula(mask.crop(bounds), depth=round(parsed.depth - 2))


@lru_cache(maxsize=16384)
def find_growth(source: str, font_set: str) -> float:
    """
    Returns by which factor a formula that can be drawn must grow, to at most `MAX_GROWTH`, so that its smallest
    letters and digits, such as those of an exponent in an exponent, are as large as exponents.
    """
    source = normalise(source)
    if not NEEDS_GROWTH.search(source):
        return 1.0  # the usual case, without parsing it
    prop = FontProperties(size=1, math_fontfamily=font_set)
    glyphs = MathTextParser("path").parse(f"${source}$", dpi=72, prop=prop).glyphs
    smallest = min((size for _, size, character, *_ in glyphs if chr(character).isalnum()), default=1.0)
    return max(1.0, min(MAX_GROWTH, EXPONENT / smallest))


class _LostGlyphs(logging.Handler):
    """Notices when mathtext puts a dummy in the place of a symbol that its fonts lack."""

    def __init__(self):
        super().__init__(level=logging.WARNING)
        self.found = False

    def emit(self, record: logging.LogRecord) -> None:
        self.found = True
