"""The parser of LaTeX: formulas, and pieces of formulas in running text."""

import re
from functools import lru_cache
from typing import Any

from . import commands
from .environments import align_rows, read_cells, read_environment
from .symbols import COMMANDS, FENCES, NEGATED, NOTHING, ORD, REL, REPLACED, SPACES, TYPED
from .tree import COMMAND, CannotDraw, Fenced, Fraction, Hidden, Marked, Root, Row, Scripts, Sign, Space, join


class Parser:
    """
    Reads LaTeX from a position on.

    Args:
        source (`str`):
            The text.
        position (`int`, *optional*):
            Where to start.
        loose (`bool`, *optional*):
            Whether it is running text, in which only pieces are formulas.
    """

    def __init__(self, source: str, position: int = 0, loose: bool = False):
        self.source, self.position, self.loose = source, position, loose
        self.face = ""  # of letters; italic if none is given
        self.alphabet = ""
        self.text = False  # whether blanks count

    def formula(self) -> Row:
        """Reads the whole source; rows of it become a table."""
        rows, rules = read_cells(self)
        if self.position < len(self.source):
            raise CannotDraw(f"'{self.source[self.position :][:20]}' closes nothing")
        if len(rows) == 1 and len(rows[0]) == 1 and not rules:
            return rows[0][0].body
        return Row((align_rows(rows, rules),))

    def fragment(self) -> Row:
        """Reads a piece of a formula in running text, up to a blank or a sign that ends it."""
        items = []
        while self.position < len(self.source):
            character = self.source[self.position]
            stops = character.isspace() or character in commands.STOPS or "\u2e80" <= character < "\uff00"
            if stops or self.peek() in commands.TEXT_BREAKS or commands.TEXT_END.match(self.source, self.position):
                break
            items.append(self._item())
            if items[-1] in commands.FIGURES and (blank := commands.FIGURE_NAME.match(self.source, self.position)):
                self.position = blank.end()
        return join(items)

    def peek(self) -> str:
        """Returns the name of the command that comes next, if one does."""
        match = COMMAND.match(self.source, self.position)
        return (match[1] or match[2]) if match else ""

    def take(self) -> str:
        """Goes on behind the command that comes next, if one does, and returns its name."""
        match = COMMAND.match(self.source, self.position)
        if match is None:
            return ""
        self.position = match.end()
        return match[1] or match[2]

    def skip(self) -> None:
        """Goes on to what is no white space."""
        while self.position < len(self.source) and self.source[self.position].isspace():
            self.position += 1

    def row(self, ends: str = "}") -> Row:
        """Reads up to one of `ends`, the next cell, or the end of a row, of an environment or of delimiters."""
        items: list[Any] = []
        while True:
            if not self.text:
                self.skip()
            if self.position == len(self.source) or self.source[self.position] in ends + "&":
                return join(items)
            name = self.peek()
            if name in commands.ROW_ENDS:
                return join(items)
            if name in ("over", "choose", "atop"):
                self.take()
                fraction = Fraction(join(items), self.row(ends), ruled=name == "over")
                return Row((Fenced("(", fraction, ")"),)) if name == "choose" else Row((fraction,))
            items.append(self._item())

    def _item(self) -> Any:
        """Reads the next node with what stands above and below it."""
        node = Row() if commands.SCRIPT.match(self.source, self.position) and not self.text else self.atom()
        below = above = None
        primes = 0
        while self.position < len(self.source):
            position = self.position
            if not self.loose and not self.text:
                self.skip()
            character = self.source[self.position : self.position + 1]
            if character in ("'", "′") and not self.text:
                self.position += 1
                primes += 1
            elif character == "^" and above is None:
                self.position += 1
                above = self._script()
            elif character == "_" and below is None and commands.SCRIPT.match(self.source, self.position):
                self.position += 1
                below = self._script()
            elif self.peek() in ("limits", "nolimits"):
                self.take()
            else:
                self.position = position
                break
        return commands.attach(node, below, above, primes)

    def _script(self) -> Any:
        match = commands.LOOSE_SCRIPT.match(self.source, self.position) if self.loose else None
        if match:
            self.position = match.end()
            return Parser(match[0]).formula()
        return self.argument()

    def atom(self) -> Any:
        """Reads the next node: a group, a command, a number, or a sign."""
        character = self.source[self.position]
        if character == "{":
            return self.group()
        if character == "\\":
            name = self.take()
            if not name:
                raise CannotDraw("a backslash at the end")
            return self.command(name)
        if character == "$":
            return self._inner_math()
        if commands.STRAY.match(self.source, self.position) and not self.text:
            raise CannotDraw(f"'{character}' without its counterpart")
        if character == "√" and (brace := re.compile(r"√\s*(?=\{)").match(self.source, self.position)):
            self.position = brace.end()
            return Root(self.argument())
        if blank := commands.BLANK.match(self.source, self.position):
            self.position = blank.end()
            return Sign(blank[0])
        number = commands.NUMBER.match(self.source, self.position)
        if number:
            self.position = number.end()
            return Sign(number[0], face=self.face if self.face == "bf" else "rm")
        if self.loose and not self.text and (letters := re.compile("[A-Za-z]{2,}").match(self.source, self.position)):
            self.position = letters.end()
            return Sign(letters[0])
        self.position += 1
        return self._sign(character)

    def _sign(self, character: str) -> Any:
        if character.isspace() or character == "~":
            return Space(0.3)
        if self.alphabet and character.isalnum():
            return Sign(commands.letter_of(self.alphabet, character))
        if self.text:
            return Sign(character, face=self.face or "rm")
        letter = character.isascii() and character.isalpha()
        character = REPLACED.get(character, character)
        return Sign(character, TYPED.get(character, ORD), self.face or ("it" if letter else "rm"))

    def group(self) -> Row:
        """Reads `{…}`; changes of the face end with it."""
        kept = self.face, self.alphabet, self.loose
        self.position += 1
        self.loose = False
        body = self.row()
        self.expect("}")
        self.face, self.alphabet, self.loose = kept
        return body

    def expect(self, character: str) -> None:
        """Goes on behind a character, which must come next."""
        if self.source[self.position : self.position + 1] != character:
            raise CannotDraw(f"'{character}' is missing")
        self.position += 1

    def argument(self) -> Any:
        """Reads the argument of a command: a group or the next character."""
        self.skip()
        if self.position == len(self.source):
            raise CannotDraw("an argument is missing")
        if self.source[self.position] == "{":
            return self.group()
        if self.source[self.position] == "\\":
            return self.atom()
        if self.source[self.position] in "}&":
            raise CannotDraw("an argument is missing")
        character, self.position = self.source[self.position], self.position + 1
        return self._sign(character) if not character.isdigit() else Sign(character)

    def raw(self) -> str:
        """Reads an argument as it stands, such as a length."""
        self.skip()
        match = re.compile(r"\{((?:[^{}]|\{[^{}]*\})*)\}").match(self.source, self.position)
        if match is None:
            raise CannotDraw("an argument is missing")
        self.position = match.end()
        return match[1]

    def option(self) -> str:
        """Reads `[…]` as it stands, if it comes next."""
        match = re.compile(r"\s*\[([^\[\]]*)\]").match(self.source, self.position)
        self.position = match.end() if match else self.position
        return match[1] if match else ""

    def switched(self, face: str = "", text: bool = False, alphabet: str = "") -> Any:
        """Reads an argument with another face, or as text."""
        kept = self.face, self.text, self.alphabet
        self.face, self.text, self.alphabet = face or self.face, text, alphabet
        try:
            return self.argument()
        finally:
            self.face, self.text, self.alphabet = kept

    def _inner_math(self) -> Any:
        """Reads `$…$` inside of text."""
        if not self.text:
            raise CannotDraw("a dollar inside of a formula")
        self.position += 1
        kept, self.text, self.face = (self.text, self.face), False, ""
        body = self.row(ends="}$")
        self.text, self.face = kept
        self.expect("$")
        return body

    def command(self, name: str) -> Any:
        """Reads what follows the name of a command."""
        if name in COMMANDS:
            text, kind = COMMANDS[name]
            return Sign(text, kind, "it" if "α" <= text <= "ω" and not self.text else "rm")
        if name in SPACES:
            return Space(SPACES[name])
        if name in NOTHING:
            return Row()
        if name in commands.SWITCHES:
            self.face, self.alphabet = commands.FACES.get(name, self.face), commands.ALPHABETS.get(name, "")
            return Row()
        if name in commands.TEXTS:
            return self.switched(commands.TEXTS[name], text=True)
        if name in commands.FACES:
            body = self.switched(commands.FACES[name], text=False)
            return commands.name(body) if name == "operatorname" else body
        if name in commands.ALPHABETS:
            return self.switched(alphabet=commands.ALPHABETS[name])
        if name in commands.FRACTIONS:
            fraction = Fraction(self.argument(), self.argument(), ruled=commands.FRACTIONS[name])
            return fraction if fraction.ruled else Fenced("(", fraction, ")")
        if name in commands.MARKS:
            body = self.switched(text=self.text or name in commands.TEXT_MARKS)
            return commands.mark(body, commands.MARKS[name])
        if name in commands.SIZES:
            return Fenced(self._delimiter(), Row(), "", height=commands.SIZES[name])
        if name in commands.PHANTOMS:
            return Hidden(self.argument())
        if name in commands.ARROWS:
            below = self.option()
            node = Scripts(Sign(commands.ARROWS[name], REL), None, self.argument(), stacked=True)
            return node if not below else Scripts(node.base, Parser(below).formula(), node.above, stacked=True)
        reader = getattr(self, f"_read_{name}", None)
        if reader is None:
            raise CannotDraw(f"unknown command \\{name}")
        return reader()

    def _delimiter(self) -> str:
        self.skip()
        name = self.take()
        if not name:
            name = self.source[self.position : self.position + 1]
            self.position += 1
        if name == "." or (name == "|" and self.source[self.position - 2] == "\\"):
            return "" if name == "." else "‖"
        if name not in FENCES:
            raise CannotDraw(f"'{name}' is not a delimiter")
        return FENCES[name]

    def _read_left(self) -> Any:
        left, body, kept = self._delimiter(), [], self.loose
        self.loose = False
        while True:
            body.append(self.row())
            name = self.peek()
            if name not in ("right", "middle"):
                raise CannotDraw("\\left without \\right")
            self.take()
            delimiter = self._delimiter()
            if name == "right":
                self.loose = kept
                return Fenced(left, join(body), delimiter)
            body.append(Sign(delimiter, REL))

    def _read_sqrt(self) -> Any:
        index = self.option()
        return Root(self.argument(), Parser(index).formula() if index.strip() else None)

    def _read_not(self) -> Any:
        node = self.argument()
        if isinstance(node, Sign) and node.text in NEGATED:
            return Sign(NEGATED[node.text], node.kind)
        return Marked(node, "stroke across")

    def _read_overset(self) -> Any:
        above, body = self.argument(), self.argument()
        sign = above.items[0] if isinstance(above, Row) and len(above.items) == 1 else above
        if isinstance(sign, Sign) and sign.text in ("⌢", "→", "←", "↔"):
            marks = {"⌢": "arc above", "→": "arrow above", "←": "left arrow above", "↔": "both arrow above"}
            return Marked(body, marks[sign.text])
        return Scripts(body, None, above, stacked=True)

    _read_stackrel = _read_overset

    def _read_underset(self) -> Any:
        below, body = self.argument(), self.argument()
        return Scripts(body, below, None, stacked=True)

    def _read_substack(self) -> Any:
        return Parser(self.raw()).formula()

    def _read_pmod(self) -> Any:
        return Row((Space(0.5), Sign("("), Sign("mod"), Space(0.3), self.argument(), Sign(")")))

    def _read_bmod(self) -> Any:
        return Row((Space(0.3), Sign("mod"), Space(0.3)))

    def _read_tag(self) -> Any:
        return Row((Space(1.0), Sign("("), self.switched("rm", text=True), Sign(")")))

    def _read_label(self) -> Any:
        self.raw()
        return Row()

    _read_color = _read_vspace = _read_label

    def _read_textcolor(self) -> Any:
        self.raw()
        return self.argument()

    _read_colorbox = _read_raisebox = _read_textcolor

    def _read_hspace(self) -> Any:
        return Space(commands.length(self.raw()))

    _read_mspace = _read_hspace

    def _read_hskip(self) -> Any:
        match = commands.LENGTH.match(self.source, self.position)
        if match is None:
            raise CannotDraw("a blank without its length")
        self.position = match.end()
        return Space(commands.length(match[0]))

    _read_kern = _read_mkern = _read_mskip = _read_hskip

    def _read_textsuperscript(self) -> Any:
        return Scripts(Row(), None, self.switched(text=True))

    def _read_textsubscript(self) -> Any:
        return Scripts(Row(), self.switched(text=True))

    def _read_rule(self) -> Any:
        width = commands.length(self.raw())
        self.raw()
        return Space(width, ruled=True)

    def _read_unicode(self) -> Any:
        code = re.fullmatch(r"x([0-9A-Fa-f]{2,5})", self.raw())
        if code is None:
            raise CannotDraw("a character without its number")
        return Sign(chr(int(code[1], 16)))

    def _read_begin(self) -> Any:
        return read_environment(self, self.raw())


@lru_cache(maxsize=4096)
def parse_formula(source: str) -> Row:
    """
    Parses a formula.

    Raises:
        CannotDraw: if something in it is not known, or braces and environments are not closed.
    """
    try:
        return Parser(source).formula()
    except RecursionError:
        raise CannotDraw("too many levels") from None
