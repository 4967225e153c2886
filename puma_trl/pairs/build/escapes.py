"""Control characters that an escape has left in the place of a backslash."""

import re

from ...errors import DataError
from .latex import find_math


# Control character → the letter of its escape
LETTERS = {"\a": "a", "\b": "b", "\f": "f", "\v": "v", "\t": "t", "\r": "r", "\n": "n"}
# What commands go on with behind white space that may be meant as such
TAB = r"(?:imes|an|heta|ext|ext[a-z]{2}|frac|riangle|au|ilde|herefore|o|op|riangleq|extbf|extcircled)(?![a-z])"
RETURN = r"(?:ight|ightarrow|angle|ho|m|floor|ceil|brace|brack|ightharpoonup)(?![a-z])"
LINE = r"(?:eq|u|e|ot|otin|abla|i|mid|parallel|leq|geq|subset|exists|earrow)(?![a-z])"
BROKEN = re.compile(rf"[\a\b\f\v]|\t(?={TAB})|\r(?={RETURN})")
BROKEN_LINE = re.compile(rf"\n(?={LINE})")
OTHERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
NAMES = {
    "\a": "a bell",
    "\b": "a backspace",
    "\f": "a form feed",
    "\v": "a vertical tab",
    "\t": "a tab",
    "\r": "a carriage return",
    "\n": "a line break",
}


def refuse_escapes(text: str, name: str) -> None:
    """
    Makes sure that a text has no control characters.

    Args:
        text (`str`):
            Any text of a row.
        name (`str`):
            What messages call it.

    Raises:
        DataError: if it has one, with how it came about and how to write what was meant.
    """
    found = BROKEN.search(text)
    if not found and "\n" in text:
        lines = ((match, BROKEN_LINE.search(match[0])) for match in find_math(text))
        found = next((broken for _, broken in lines if broken), None)
    if found:
        letter, behind = LETTERS[found[0]], re.match(r"[a-zA-Z]*", found.string[found.end() :])[0]
        command = f"\\{letter}{behind}"
        raise DataError(
            f"broken escape: the {name} has {NAMES[found[0]]} (U+{ord(found[0]):04X}) before '{behind}': `\\{letter}` "
            f"was read as an escape. Write `{command}` with two backslashes, `\\{command}`, in the file"
        )
    other = OTHERS.search(text)
    if other:
        raise DataError(f"control character: the {name} has U+{ord(other[0]):04X}, which nobody sees. Take it out")
