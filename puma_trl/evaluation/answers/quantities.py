"""Quantities in text: numbers in words, figures and LaTeX, their values, and the units that stand behind them."""

import math
import re
from dataclasses import dataclass


MAX_DEPTH = 8  # of parentheses and exponents within one another
OPERATORS = ("+", "-", "×", "·", "*", "÷", "/")

NUMBER_WORDS = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
} | {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}

LENGTHS = (
    "(?:milli|centi|deci|kilo)?met(?:er|re)s?|inch(?:es)?|in|feet|foot|ft|yards?|yd|miles?|mi|"
    "[mμµn]m|cm|dm|km|m|units?"
)
OTHERS = (
    "degrees?|deg|radians?|rad|percent|grams?|kilograms?|kg|mg|g|tons?|tonnes?|pounds?|lbs?|ounces?|oz|"
    "lit(?:er|re)s?|ml|mL|cl|dl|l|L|(?:milli)?seconds?|secs?|ms|"
    r"minutes?|mins?|hours?|hrs?|h|s|[APap]\.?[Mm]|days?|weeks?|months?|years?|mph|kph|dollars?|cents?|"
    "hectares?|ha|acres?"
)
CHINESE = (
    "(?:平方|立方)?(?:厘米|分米|毫米|千米|公里|米)|度|元|角|个|秒|分钟|小时|天|千克|毫克|克|吨|毫升|升|公顷|人|岁"
)
UNIT = (
    rf"(?:°[CF]?|[℃℉′″%‰]|"
    rf"(?:(?:square|sq\.?|cubic|cu\.?)\s+)?(?:{LENGTHS})(?:\^?[23])?(?:/(?:{LENGTHS}|{OTHERS})(?:\^?2)?)?|"
    rf"(?:{OTHERS})|{CHINESE})(?![A-Za-z])"
)
BEHIND = re.compile(rf"\s*{UNIT}")
UNIT_AT_END = re.compile(rf"(?<=[\d)π°])\s*{UNIT}(?:\s*{UNIT})?\s*$")

# "x = 3 or x" before the last "=": one of several quantities
SEVERAL = re.compile(r"=[^=]*(?:[,;，；、](?!\d{3})|\b(?:or|and)\b|[或和])[^=]*$", re.IGNORECASE)

# What follows these does not state the answer but says why.
REASON = re.compile(
    r"\s*[,;，；](?!\d{3})\s|\s\(|（|"
    r"\s*(?:\b(?:since|because|as|when|where|which|if|for|so that|out of|of the)\b|因为|由于)",
    re.IGNORECASE,
)

# The same in a sentence that announces no answer, where a comma may go on to it
WHY = re.compile(r"\b(?:since|because|when|given that)\b|因为|由于", re.IGNORECASE)

# what LaTeX writes otherwise -> plain characters; the order counts
REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\[dtc]frac", r"\\frac"),
        (r"(?<=\d)(?:\{,\}(?=\d)|\\[,!;](?=\d{3}(?!\d)))", ","),
        (r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname)\s*\{([^{}]*)\}", r" \1"),
        (r"\\(?:left|right|displaystyle|bigl?|bigr)(?![A-Za-z])", ""),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ|\{\s*°\s*\}|°)|\\degree(?![A-Za-z])", "°"),
        (r"(?<=\d)\s*\^\s*(?:\{\s*\\prime\s*\}|\\prime)", "′"),
        # marks of the keyboard where they can be no quotation's
        (r"(^\s*|°\s*)(\d+(?:\.\d+)?)\s*'(?=\s*(?:$|\d))", r"\1\2′"),
        (r"(^\s*|[°′]\s*)(\d+(?:\.\d+)?)\s*(?:\"|''|′′|\^\s*\{\s*\\prime\s*\\prime\s*\})(?=\s*$)", r"\1\2″"),
        (r"\\(?:[,;:! ]|quad|qquad)|~", " "),
        (r"\\times(?![A-Za-z])|(?<=\d)\s*[xX*]\s*(?=\d)", "×"),
        (r"\\cdot(?![A-Za-z])", "·"),
        (r"\\div(?![A-Za-z])", "÷"),
        (r"\\pi(?![A-Za-z])", "π"),
        (r"\\approx(?![A-Za-z])", "≈"),
        (r"\\infty(?![A-Za-z])", "∞"),
        (r"\\(?:geqslant|geq|ge)(?![A-Za-z])|>=", "≥"),
        (r"\\(?:leqslant|leq|le)(?![A-Za-z])|<=", "≤"),
        (r"\\(?:neq|ne)(?![A-Za-z])|!=", "≠"),
        (r"\\[\[\]()]|\\(?=[%$])|\$|\*\*|`|\u200b", ""),
        (r"[−–](?=[\d.√π(\\])", "-"),
        ("²", "^2"),
        ("³", "^3"),
        (r"(?<![\d.])(\d+)\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", r"(\1+\2/\3)"),
        (r"(?<![\d./])(\d+) (\d+)/(\d+)(?![\d/])", r"(\1+\2/\3)"),
        (r"\\frac\s*(\d)\s*(\d)", r"(\1/\2)"),
        (r"\\?\bsqrt\s*(?=\()|\\sqrt\s*(?=\d)", "√"),
    )
)
# Most sentences have nothing of that, and no quantity
REWRITTEN = re.compile(r"[<>!]=|[\\$`*~²³−–√{\u200b]|\d\s*['\"′]|\d\s*[xX]\s*\d|\d \d|sqrt")
NUMERAL = re.compile(r"[\dπ]")
# braces inside out; as many passes as they are deep
BRACES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))"),
        (r"(?:\\sqrt|√)\s*\{([^{}]*)\}", r"√(\1)"),
        (r"\^\s*\{([^{}]*)\}", r"^(\1)"),
    )
)

# "93,6", "0,125" and "1.234,5"; but "1,234" has thousands, "(2,5)" is a pair, "1,2,3" a list
DECIMAL_COMMA = r"(?<![\d.,(\[{])(?![1-9]\d{0,2},\d{3}(?!\d))(?:[1-9]\d{0,2}(?:\.\d{3})+|\d+),\d+(?![\d,.]*\d)"

TOKEN = re.compile(
    r"(?P<skip>^[ \t]*\d{1,2}[.)][ \t]+(?=\S)|\d{1,2}:\d\d(?!\d)|"
    r"(?i:\b(?:step|figure|fig\.?|question|part|case|method|equation|eq\.?|example|table))\s*\d+)"
    rf"|(?P<number>{DECIMAL_COMMA}|"
    r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+(?!\w|\.\d))?)"
    r"|(?P<symbol>[√π()+*/^×·÷-])"
    r"|(?P<mark>[°%])"
    r"|(?P<space>\s+)"
    r"|(?P<word>[A-Za-zα-ορ-ωΑ-Ω][A-Za-z0-9_]*(?:\^\(?-?\d+\)?)?)"
    r"|(?P<other>.)",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Quantity:
    """
    A quantity in a text.

    Args:
        value (`float`):
            Its value.
        text (`str`):
            How it is written, without its unit.
        start (`int`), end (`int`):
            Where it stands.
        plain (`bool`):
            Whether it is a single number.
    """

    value: float
    text: str
    start: int
    end: int
    plain: bool

    def matches(self, value: float) -> bool:
        """Returns whether a value is this one, or rounds to it at the decimals that are written."""
        if is_close(self.value, value):
            return True
        written = _with_point(self.text) if self.plain else ""
        decimals = len(written.rpartition(".")[2]) if "." in written else 0
        return decimals > 0 and abs(self.value - value) <= 0.5001 * 10**-decimals

    def __str__(self) -> str:
        return _with_point(self.text.replace(" ", "")) if self.plain else f"{self.value:.10g}"


def _with_point(number: str) -> str:
    """Returns a number without commas or points between thousands, and with a point before its decimals."""
    if re.fullmatch(rf"-?{DECIMAL_COMMA}", number):
        number = number.replace(".", "").replace(",", ".")
    return number.replace(",", "")


def is_close(first: float, second: float) -> bool:
    """Returns whether two values are the same but for rounding."""
    return math.isclose(first, second, rel_tol=1e-6, abs_tol=1e-9)


def plain_math(text: str) -> str:
    """Returns a text with LaTeX written in plain characters: `(3)/(4)`, `√(2)`, `×`, `π`, `°`, `^2`."""
    if not REWRITTEN.search(text):
        return text
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    for _ in range(MAX_DEPTH):
        before = text
        for pattern, replacement in BRACES:
            text = pattern.sub(replacement, text)
        if text == before:
            break
    return text


def find_quantities(text: str) -> list[Quantity]:
    """
    Finds what can be computed in a text, from left to right: "3 × 9" is one quantity, of value 27.

    Numbers of lists and figures, times of day, exponents of units and digits in names do not count.

    Args:
        text (`str`):
            A text that went through [`plain_math`].
    """
    return _Scanner(text).scan() if NUMERAL.search(text) else []


def find_number_words(text: str) -> list[Quantity]:
    """Finds small numbers that are written as words; "one" only where it counts something."""
    found = []
    for match in re.finditer(r"(?<![\w-])([a-z]+)(?:-([a-z]+))?(?![\w-])", text, re.IGNORECASE):
        first, second = NUMBER_WORDS.get(match[1].lower()), NUMBER_WORDS.get((match[2] or "").lower())
        if first is None or (match[2] and (second is None or first < 20 or not 0 < second < 10)):
            continue
        before = text[max(0, match.start() - 12) : match.start()].lower()
        if first == 1 and not re.search(r"\b(?:is|are|only|exactly|just|remains)\s+$", before):
            continue
        value = first + (second or 0)
        found.append(Quantity(value, str(value), match.start(), match.end(), True))
    return found


def before_reason(text: str, reason: re.Pattern = WHY) -> str:
    """Returns the part of a sentence before it says why, if that part holds a quantity, else the sentence."""
    if not reason.search(text):
        return text
    first = min((each.end for each in find_quantities(text) + find_number_words(text)), default=len(text))
    return next((text[: cut.start()] for cut in reason.finditer(text) if cut.start() >= first), text)


def find_whole(text: str) -> tuple[str, list[Quantity]]:
    """
    Returns a text in plain characters without a name before "=", and its quantities; none where it does not begin and
    end with one, units aside, or has several names.
    """
    name, _, text = plain_math(text).strip(" \t\n.,;:").rpartition("=")
    text = text.strip()
    found = [] if SEVERAL.search(name) else find_quantities(text)
    is_whole = found and found[0].start == 0 and with_unit(text, found[-1]) == text[found[-1].start :]
    return text, found if is_whole else []


def evaluate(text: str) -> float | None:
    """Returns the value of a text that is one quantity, with or without a unit or a name before "=", else `None`."""
    _, found = find_whole(text)
    return found[0].value if len(found) == 1 else None


def strip_unit(text: str) -> str:
    """Returns a quantity without the unit at its end; a text without one as it is."""
    return UNIT_AT_END.sub("", text)


def with_unit(text: str, quantity: Quantity) -> str:
    """Returns a quantity of a text as it is written, with the unit behind it."""
    unit = BEHIND.match(text, quantity.end)
    return text[quantity.start : unit.end() if unit else quantity.end].strip()


class _Scanner:
    """Recursive descent over the tokens of a text; what fails to parse is stepped over."""

    def __init__(self, text: str):
        self.text = text
        self.tokens = [(match.lastgroup, match.group(), match.start()) for match in TOKEN.finditer(text)]
        self.tokens.append(("end", "", len(text)))

    def scan(self) -> list[Quantity]:
        found, position = [], 0
        while position < len(self.tokens) - 1:
            kind, token, start = self.tokens[position]
            is_start = kind == "number" or token in ("√", "π", "(") or (token == "-" and self._is_sign(position))
            result = self._sum(position, 0) if is_start else None
            if result is None:
                position += 1
                continue
            value, end = result
            last = self.tokens[end][2]
            used = [kind for kind, _, _ in self.tokens[position:end]]
            # a parenthesis around a remark or a list is none of an expression
            if math.isfinite(value) and (token != "(" or len(used) > 3 or "number" not in used):
                plain = used == ["number"] or (token == "-" and used == ["symbol", "number"])
                found.append(Quantity(value, self.text[start:last].strip(), start, last, plain))
                position = end
            else:
                position += 1
        return found

    def _is_sign(self, position: int) -> bool:
        before, after = self.tokens[position - 1] if position else ("space", "", 0), self.tokens[position + 1]
        glued = before[0] in ("number", "word", "mark") or before[1] in (")", "π")
        return not glued and (after[0] == "number" or after[1] in ("√", "π", "("))

    def _skip_space(self, position: int) -> int:
        return position + (self.tokens[position][0] == "space")

    def _sum(self, position: int, depth: int) -> tuple[float, int] | None:
        result = self._product(position, depth)
        while result is not None:
            value, end = result
            place = self._skip_space(end)
            sign = self.tokens[place][1]
            after = self._skip_space(place + 1) if sign in ("+", "-") else place
            # "5-3" and "2010 -2015" are ranges or two numbers; "5 - 3" is a difference
            spaced = (place > end) == (after > place + 1)
            if sign not in ("+", "-") or not spaced or (sign == "-" and place == end and self._is_range(place)):
                break
            right = self._product(after, depth)
            if right is None:
                break
            result = (value + right[0] if sign == "+" else value - right[0]), right[1]
        return result

    def _is_range(self, place: int) -> bool:
        return self.tokens[place - 1][0] == "number" and self.tokens[place + 1][0] == "number"

    def _product(self, position: int, depth: int) -> tuple[float, int] | None:
        result = self._power(position, depth)
        while result is not None:
            value, end = result
            place = self._skip_space(end)
            sign = self.tokens[place][1]
            if sign in OPERATORS[2:]:
                right = self._power(self._skip_space(place + 1), depth)
            elif self.tokens[end][1] in ("√", "π", "("):
                right, sign = self._power(end, depth), "×"
            else:
                break
            if right is None or (sign in ("÷", "/") and right[0] == 0):
                break
            result = (value / right[0] if sign in ("÷", "/") else value * right[0]), right[1]
        return result

    def _power(self, position: int, depth: int) -> tuple[float, int] | None:
        result = self._factor(position, depth)
        if result is None:
            return None
        value, end = result
        if self.tokens[end][1] == "^" and depth < MAX_DEPTH:
            exponent = self._power(end + 1, depth + 1)
            if exponent is not None:
                try:
                    power = value ** exponent[0]
                except (OverflowError, ZeroDivisionError):
                    return None
                if isinstance(power, complex):
                    return None
                value, end = power, exponent[1]
        if self.tokens[end][0] == "mark" and self.tokens[self._skip_space(end + 1)][1] in OPERATORS:
            end += 1  # degrees within a sum
        return value, end

    def _factor(self, position: int, depth: int) -> tuple[float, int] | None:
        kind, token, _ = self.tokens[position]
        if kind == "number":
            return float(_with_point(token)), position + 1
        if token == "π":
            return math.pi, position + 1
        if depth >= MAX_DEPTH or token not in ("√", "-", "("):
            return None
        inner = self._factor(position + 1, depth + 1) if token != "(" else self._group(position, depth)
        if inner is None or token == "(":
            return inner
        if token == "√":
            return (math.sqrt(inner[0]), inner[1]) if inner[0] >= 0 else None
        return -inner[0], inner[1]

    def _group(self, position: int, depth: int) -> tuple[float, int] | None:
        inner = self._sum(self._skip_space(position + 1), depth + 1)
        if inner is None:
            return None
        end = self._skip_space(inner[1])
        return (inner[0], end + 1) if self.tokens[end][1] == ")" else None
