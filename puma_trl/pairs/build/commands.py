"""Commands of LaTeX that take arguments, by what they do; lengths, letters and names that they make."""

import re
import unicodedata
from typing import Any

from .symbols import BIN, NAME, STACKED
from .tree import CannotDraw, Marked, Row, Scripts, Sign, Space


NUMBER = re.compile(r"\d+(?:\.\d+|,\d{3}(?!\d))*")
# What may be an index or an exponent in running text, where braces are often left out
LOOSE_SCRIPT = re.compile(r"[-−+]?\d+(?:\.\d+)?|\([^()\s]*\)|[a-zA-Z](?![a-zA-Z])|[°′*+]")
# A blank to fill in; what has an index or an exponent behind it; signs that need something before them
BLANK, SCRIPT, STRAY = re.compile("_{2,}"), re.compile("\\^|_(?!_)"), re.compile("[}^]|_(?!_)")
# Where a piece of running text ends: at a full stop, a blank to fill in, and a backslash at the end of a line
TEXT_END = re.compile(r"\.|__|\\$")
LENGTH = re.compile(r"\s*([\d.]+)\s*(em|ex|cm|mm|pt|in|px|pc|mu)\s*")
UNITS = {"em": 1.0, "ex": 0.5, "cm": 2.4, "mm": 0.24, "pt": 0.085, "in": 6.1, "px": 0.06, "pc": 1.0, "mu": 1 / 18}
MAX_BLANK = 12.0  # em
# em between a slanted letter and its primes; the f hangs over
LEAN, LEAN_OF_F = 0.1, 0.2
CIRCLE = Sign("∘", BIN)
# Signs that end a piece of a formula in running text, besides white space and scripts without spaces
STOPS = frozenset(',;:?!…"“”‘’&#%$}、，。；：？！（）【】《》')

# Signs of figures, which belong to the name behind a blank: `\angle ABC`
FIGURES = {Sign(sign) for sign in "∠△⊙▱∡"} | {Sign("⊙", BIN)}
FIGURE_NAME = re.compile(r" +(?=[A-Z0-9])")

FRACTIONS = dict.fromkeys(("frac", "dfrac", "tfrac", "cfrac", "sfrac", "nicefrac"), True)
FRACTIONS |= dict.fromkeys(("binom", "dbinom", "tbinom"), False)
TEXTS = dict.fromkeys(
    "text mbox textrm textnormal hbox textup textsf texttt textsc textmd textit textsl emph".split(), "rm"
) | {"textbf": "bf", "bold": "bf"}
FACES = {
    **dict.fromkeys("mathrm mathsf mathtt mathup operatorname rm sf tt".split(), "rm"),
    **dict.fromkeys("mathbf boldsymbol bm pmb bf".split(), "bf"),
    **dict.fromkeys("mathit mathnormal it".split(), "it"),
}
SWITCHES = {"rm", "bf", "it", "sf", "tt", "cal", "frak", "bb", "scr"}
ALPHABETS = {
    **dict.fromkeys(("mathbb", "Bbb", "bb", "mathds"), "DOUBLE-STRUCK"),
    **dict.fromkeys(("mathcal", "mathscr", "cal", "scr"), "SCRIPT"),
    **dict.fromkeys(("mathfrak", "frak"), "FRAKTUR"),
}
MARKS = {
    **dict.fromkeys(("overline", "bar", "widebar"), "line above"),
    **dict.fromkeys(("underline", "uline", "underbar"), "line below"),
    **dict.fromkeys(("vec", "overrightarrow", "Overrightarrow"), "arrow above"),
    **dict.fromkeys(("overarc", "wideparen", "overparen", "arc", "overfrown", "widearc"), "arc above"),
    "hat": "hat above",
    "widehat": "wide hat above",
    "tilde": "tilde above",
    "widetilde": "wide tilde above",
    **dict.fromkeys(("cancel", "bcancel", "xcancel", "sout"), "stroke across"),
    **dict.fromkeys(("boxed", "fbox", "framebox"), "frame around"),
    **dict.fromkeys(("textcircled", "circled"), "circle around"),
    "overleftarrow": "left arrow above",
    "overleftrightarrow": "both arrow above",
    "dot": "dot above",
    "ddot": "dots above",
    "mathring": "ring above",
    "check": "check above",
    "breve": "breve above",
    "overbrace": "brace above",
    "underbrace": "brace below",
    "underrightarrow": "arrow below",
}
# Those whose body is text
TEXT_MARKS = ("uline", "fbox", "textcircled")
SIZES = {
    name + side: size
    for name, size in (("big", 1.2), ("Big", 1.8), ("bigg", 2.4), ("Bigg", 3.0))
    for side in ("", "l", "r", "m")
}
ARROWS = {"xrightarrow": "⟶", "xleftarrow": "⟵", "xLongrightarrow": "⟹", "xrightleftharpoons": "⇌", "xlongequal": "="}
# Commands of running text, where a piece of a formula ends
TEXT_BREAKS = set("\\ $ % & # _ { } quad qquad newline par item space".split()) | {" ", "\n"}
ROW_ENDS = ("\\", "cr", "tabularnewline", "end", "right", "middle")
CIRCLED = {str(number): chr(0x245F + number) for number in range(1, 21)}
PHANTOMS = {"phantom", "hphantom", "vphantom"}


def length(text: str) -> float:
    """Returns a length in em; a negative one, which draws things over each other, is none."""
    match = LENGTH.fullmatch(text)
    if match is None:
        if text.strip().startswith("-"):
            return 0.0
        raise CannotDraw(f"the length {text}")
    return min(MAX_BLANK, float(match[1]) * UNITS[match[2]])


def name(body: Any) -> Any:
    """Makes letters the name of a function, with room around it."""
    signs = body.items if isinstance(body, Row) else (body,)
    if all(isinstance(sign, Sign) for sign in signs):
        return Sign("".join(sign.text for sign in signs), NAME)
    return body


def letter_of(alphabet: str, character: str) -> str:
    """Returns a letter of another alphabet, such as ℝ; one without such a form stays as it is."""
    case = "CAPITAL" if character.isupper() else "SMALL"
    for prefix in (alphabet, f"MATHEMATICAL {alphabet}", "BLACK-LETTER"):
        try:
            return unicodedata.lookup(f"{prefix} {case} {character.upper()}")
        except KeyError:
            continue
    return character


def mark(body: Any, mark: str) -> Any:
    """Marks a body; a number in a circle is a character of its own."""
    sign = body.items[0] if isinstance(body, Row) and len(body.items) == 1 else body
    if mark == "circle around" and isinstance(sign, Sign) and sign.text in CIRCLED:
        return Sign(CIRCLED[sign.text])
    return Marked(body, mark)


def attach(node: Any, below: Any, above: Any, primes: int) -> Any:
    """Puts index, exponent and primes to a node; a small circle as an exponent is the sign of degrees."""
    raised = above.items if isinstance(above, Row) else (above,)
    if raised and all(sign == Sign("′") for sign in raised):  # f^{\prime\prime}
        above, primes = None, primes + len(raised)
    if primes:  # which fonts have raised; a slanted letter leans towards them
        lean = (LEAN_OF_F if node.text == "f" else LEAN) if isinstance(node, Sign) and node.face == "it" else 0
        node = Row((node, Space(lean), Sign("′" * primes)))
    if raised in ((CIRCLE,), (Sign("°"),)) and below is None:
        return Row((node, Sign("°")))
    if isinstance(above, Row) and above.items[:1] == (CIRCLE,):  # 20^{\circ C}
        above = Row((Sign("°"), *above.items[1:]))
    if below is None and above is None:
        return node
    stacked = isinstance(node, Sign) and node.text in STACKED
    stacked |= isinstance(node, Marked) and node.mark.startswith("brace")
    return Scripts(node, below, above, stacked)
