"""What a chat template puts around the texts of conversations: once each, in order, and nothing else done to them."""

import ast
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import Environment
from jinja2 import TemplateError as JinjaError
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..errors import DataError
from .chat import breaks_after_image, make_turns, render_turns


# What templates that escape, quote or rewrite texts would change
PROBE = """1 < 2 & "3" > '4' \\frac{1}{2}\n  é ∠ Ab"""
# Texts of other kinds, for templates that look at length, signs, lines, markup, or numbers
PROBES = (
    "7",
    "a",
    PROBE,
    f"{PROBE}\n\n\n\t# {string.punctuation} http://a.b/c?d=e me@a.bc <b>b</b>  <think>\nx\n</think>\n\n/no_think 1. A",
)
LONGEST_PROBE = 100_000

STAND = "turn\ue000{}\ue000here"
STANDS = re.compile(STAND.format(r"(\d+)"))


@dataclass
class Frame:
    """
    What a template writes around the texts of conversations of one structure.

    Args:
        pieces (`list[str]`):
            Before, between and behind the texts.
        order (`list[int]`):
            Position in the conversation of each text that is written.
        flaw (`tuple[int, str]`, *optional*):
            Position of a text that is not written as it should, and what happens to it.
        is_opaque (`bool`):
            Whether texts of any kind are put there as they are, but for white space at their ends.
        keeps_ends (`bool`):
            Whether that is kept too.
    """

    pieces: list[str]
    order: list[int]
    flaw: tuple[int, str] | None = None
    is_opaque: bool = False
    keeps_ends: bool = False

    def takes(self, texts: Sequence[str]) -> bool:
        """Whether the template writes what [`Frame.fill`] returns for these texts."""
        return self.flaw is None and (
            self.keeps_ends or (self.is_opaque and all(text == text.strip() for text in texts))
        )

    def fill(self, texts: Sequence[str]) -> str:
        """Puts texts in."""
        parts = [self.pieces[0]]
        for position, piece in zip(self.order, self.pieces[1:], strict=True):
            parts += (texts[position], piece)
        return "".join(parts)

    def fits(self, rendered: str, texts: Sequence[str]) -> bool:
        """Whether a rendering has these texts and nothing else in the frame; white space at their ends may differ."""
        if rendered == self.fill(texts):
            return True
        patterns = [rf"\s*{re.escape(text.strip())}\s*" for text in texts]
        pieces = [re.escape(piece) for piece in self.pieces]
        return re.fullmatch(Frame(pieces, self.order).fill(patterns), rendered) is not None


class Frames:
    """
    The frames of a chat template, each found out when it is first needed.

    A template may look at the texts it is given, cut them, or write them twice. So every frame is tried with texts of
    many kinds, with every text and number in the source of the template among them; where one comes out otherwise, all
    conversations of that structure are rendered in full and compared with their texts.
    """

    def __init__(self, processor: ProcessorMixin | PreTrainedTokenizerBase):
        self.processor = processor
        self.frames: dict[Any, Frame] = {}

    def render(self, instruction: str, num_images: int, history: Sequence[dict[str, str]] = ()) -> str:
        """Renders a prompt as the template does."""
        turns = self._turns(instruction, num_images, history)
        texts = _texts_of(turns)
        frame = self._frame(turns)
        if frame.takes(texts):
            return frame.fill(texts)
        return render_turns(self.processor, turns)

    def find_change(
        self, instruction: str, num_images: int, history: Sequence[dict[str, str]] = ()
    ) -> tuple[str, int, str] | None:
        """
        Returns what the template does to a prompt other than to put something around its texts, if anything.

        Returns:
            `tuple[str, int, str]`, *optional*: what it does, the position of the turn, and the text.

        Raises:
            DataError: if the template refuses the conversation.
        """
        turns = self._turns(instruction, num_images, history)
        texts, owners = _texts_of(turns), _owners_of(turns)
        frame = self._frame(turns)
        if frame.flaw is not None:
            position, what = frame.flaw
            return what, owners[position], texts[position]
        if frame.takes(texts):
            return None
        rendered = render_turns(self.processor, turns)
        if rendered == frame.fill(texts):
            return None
        if not frame.fits(rendered, texts):
            lost = (position for position, text in enumerate(texts) if text.strip() not in rendered)
            position = next(lost, len(texts) - 1)
            return "leaves out or changes", owners[position], texts[position]
        for position, text in enumerate(texts):
            if re.match(r"\s*?([ ]{2}|\t)[ \t]*\S", text) and text.rstrip() not in rendered:
                return "cuts the indentation of", owners[position], text
        return None

    def _turns(self, instruction: str, num_images: int, history: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
        messages = [*history, {"role": "user", "content": instruction}]
        return make_turns(self.processor, messages, num_images, self._writes_breaks)

    @cached_property
    def _writes_breaks(self) -> bool:
        return isinstance(self.processor, ProcessorMixin) and breaks_after_image(self.processor)

    def _frame(self, turns: list[dict[str, Any]]) -> Frame:
        structure = _structure_of(turns)
        if structure not in self.frames:
            self.frames[structure] = self._find_frame(turns)
        return self.frames[structure]

    def _find_frame(self, turns: list[dict[str, Any]]) -> Frame:
        owners = _owners_of(turns)
        stands = [STAND.format(position) for position in range(len(owners))]
        pieces = STANDS.split(render_turns(self.processor, _with_texts(turns, stands)))
        frame = Frame(pieces[::2], [int(position) for position in pieces[1::2]])
        for position in range(len(owners)):
            if (count := frame.order.count(position)) != 1:
                frame.flaw = position, f"writes {count} times" if count else "leaves out or changes"
                return frame
        # a system prompt may be written at any place: some templates give it to the last question
        rest = [position for position in frame.order if turns[owners[position]]["role"] != "system"]
        moved = next((here for here, position in zip(rest, sorted(rest), strict=True) if here != position), None)
        if moved is not None:
            frame.flaw = moved, "writes at another place than the conversation has it"
            return frame
        for position in range(len(owners)):
            texts = [PROBE if here == position else stand for here, stand in enumerate(stands)]
            if not self._keeps(frame, turns, texts):
                frame.flaw = position, "leaves out or changes"
                return frame
        bare = dict.fromkeys(probe.strip() for probe in self._probes)
        frame.is_opaque = all(self._keeps(frame, turns, [text] * len(owners)) for text in bare if text)
        frame.keeps_ends = frame.is_opaque and all(
            self._keeps(frame, turns, [text] * len(owners)) for text in self._probes if text not in bare
        )
        return frame

    def _keeps(self, frame: Frame, turns: list[dict[str, Any]], texts: list[str]) -> bool:
        try:
            return render_turns(self.processor, _with_texts(turns, texts)) == frame.fill(texts)
        except DataError:
            return False

    @cached_property
    def _probes(self) -> list[str]:
        """Texts of many kinds, and with whatever the template may look for."""
        strings, numbers = _constants_of(str(self.processor.chat_template))
        length = min(max([2000, *(2 * number for number in numbers)]), LONGEST_PROBE)
        mixed = " ".join([*PROBES, *strings, *reversed(strings)])
        long = mixed * (length // len(mixed) + 1)
        probes = [*PROBES, mixed, long, f" {PROBE} ", f"\n\t{PROBE}\n"]
        for text in strings:
            probes += (text, f"{text}{PROBE}{text}", f"{PROBE}{text}{PROBE}")
        return list(dict.fromkeys(probes))


def _constants_of(template: str) -> tuple[list[str], list[int]]:
    """Returns the texts and the numbers in the expressions of a template."""
    strings, numbers = [], []
    try:
        for _, kind, value in Environment().lex(template):
            if kind == "string":
                strings.append(ast.literal_eval(value.replace("\n", "\\n")))
            elif kind == "integer":
                numbers.append(int(value, 0))
    except (JinjaError, ValueError, SyntaxError):  # the template is refused where it is rendered
        pass
    return list(dict.fromkeys(strings)), numbers


def _texts_of(turns: list[dict[str, Any]]) -> list[str]:
    return [part["text"] for turn in turns for part in _parts_of(turn) if part["type"] == "text"]


def _owners_of(turns: list[dict[str, Any]]) -> list[int]:
    """Returns of each text the position of its turn."""
    return [index for index, turn in enumerate(turns) for part in _parts_of(turn) if part["type"] == "text"]


def _parts_of(turn: dict[str, Any]) -> list[dict[str, Any]]:
    content = turn["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _structure_of(turns: list[dict[str, Any]]) -> Any:
    return tuple(
        (turn["role"], None if isinstance(turn["content"], str) else tuple(part["type"] for part in turn["content"]))
        for turn in turns
    )


def _with_texts(turns: list[dict[str, Any]], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the turns with other texts."""
    following = iter(texts)
    return [
        {
            "role": turn["role"],
            "content": next(following)
            if isinstance(turn["content"], str)
            else [
                {"type": "text", "text": next(following)} if part["type"] == "text" else part
                for part in turn["content"]
            ],
        }
        for turn in turns
    ]
