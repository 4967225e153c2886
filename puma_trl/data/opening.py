"""How an answer begins: as a chat template opens those of the conversation before, and with a thought, if any."""

import re
from functools import cached_property

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..errors import DataError
from ..models.tokenizers import get_tokenizer
from .chat import ANSWER_STAND_IN, STAND_IN, apply_template, make_turns
from .texts import is_blank, shorten
from .thoughts import end_of, find_end, find_tags


# What a template for reasoning may write behind the opening of an answer: a thought, open or closed and empty
THOUGHT = re.compile(
    r"\s*(?P<start><(?P<tag>[^<>/]+)>|\[(?P<word>[A-Z]+)\])\s*(?P<end></(?P=tag)>|\[/(?P=word)\])?\s*"
)
EMPTY = re.compile(r"<(?P<tag>[^<>/]+)>\s*</(?P=tag)>\s*\Z|\[(?P<word>[A-Z]+)\]\s*\[/(?P=word)\]\s*\Z")


LONGEST = 200  # characters of such a thought, and of white space


class Opening:
    """
    The start of an answer: what a chat template writes behind a question, and the thought that the answer itself has.

    Attributes:
        tags (`dict[str, str]`):
            The tags of thoughts that are tokens of the model: what opens a thought → what closes it.
        takes_any (`bool`):
            Whether thoughts of answers may have any form, as in data that is not trained on. Defaults to `False`.
    """

    def __init__(self, processor: ProcessorMixin | PreTrainedTokenizerBase):
        self.processor = processor
        self.tags = find_tags(get_tokenizer(processor))
        self.takes_any = False

    @property
    def thought(self) -> str | None:
        """
        The tag of a thought that the template opens and does not close, if there is one.

        Raises:
            DataError: if an answer is opened otherwise than those of turns before it.
        """
        return None if self._written is None or self._written["end"] else self._written["start"]

    @cached_property
    def _written(self) -> re.Match[str] | None:
        """The thought that the template opens an answer with."""
        question, answer = {"role": "user", "content": STAND_IN}, {"role": "assistant", "content": ANSWER_STAND_IN}
        opened = self._render([question], add_generation_prompt=True).rpartition(STAND_IN)[2]
        try:
            whole = self._render([question, answer, question])
        except DataError:  # the template is for one question
            whole = ""
        if ANSWER_STAND_IN not in whole:
            whole = self._render([question, answer])
        written = whole.partition(ANSWER_STAND_IN)[0].rpartition(STAND_IN)[2]
        rest = _behind(opened, written)
        if rest is None:  # some give an empty thought to answers that have none
            rest = _behind(opened, EMPTY.sub("", written))
        found = None if rest is None else THOUGHT.fullmatch(rest)
        if rest is None or (rest.strip() and found is None):
            raise DataError(
                f"The chat template opens an answer with {opened!r} where one is to be generated, and with "
                f"{written!r} where it is there, so a model would learn another conversation than it is asked in. "
                "Give another with `chat_template_path`, whose `add_generation_prompt` opens a turn of the assistant."
            )
        return found

    @property
    def writable(self) -> set[str]:
        """The tags of thoughts that an answer of the model may have: those that its opening leaves to it."""
        if self._written is None:
            return {*self.tags, *self.tags.values()}
        return {self.tags[self.thought]} if self.thought in self.tags else set()

    def opens(self, prompt: str) -> bool:
        """Whether a prompt ends as others do: with the same thought, or none."""
        if self._written is None:
            return find_end(prompt) is None
        return prompt[-LONGEST:].rstrip().endswith(self._written[0].strip())

    def cut(self, output: str) -> str:
        """Returns an answer without the tag that the template has opened before it."""
        if self.thought is None or not output.lstrip().startswith(self.thought):
            return output
        return output.lstrip()[len(self.thought) :].lstrip()

    def split(self, output: str) -> list[str]:
        """
        Splits an answer, as [`Opening.cut`] returns it, at the tags of its thought.

        Returns:
            `list[str]`: texts, and between them tags; the answer alone, if it has no thought as models write one.
        """
        pieces = self._any_tag.split(output)
        return pieces if self.takes_any or self._find_flaw(pieces) is None else [output]

    def find_problem(self, output: str, is_plain: bool = False) -> str | None:
        """
        Says why an answer cannot stand behind the opening, and what to do, if so.

        Args:
            output (`str`):
                The answer; an empty one is none, which the model will write.
            is_plain (`bool`, *optional*, defaults to `False`):
                Whether tags that are no thought as models write one are plain text.
        """
        if self.takes_any or not output.strip() or (is_plain and self.thought is None):
            return None
        return self._find_flaw(self._any_tag.split(self.cut(output)))

    @cached_property
    def _any_tag(self) -> re.Pattern[str]:
        tags = dict(self.tags)
        if self._written is not None:  # also where its tags are no tokens
            tags[self._written["start"]] = end_of(self._written["start"])
        names = sorted({*tags, *tags.values()}, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, names))})" if names else "(?!)")

    def _find_flaw(self, pieces: list[str]) -> str | None:
        """Says what is wrong with the thought of an answer: texts, and between them tags."""
        tags, opened = pieces[1::2], self.thought
        if opened is not None and end_of(opened) not in tags:
            return (
                f"nothing closes the thought that the chat template opens with '{opened}'; write '{end_of(opened)}' "
                "behind it, or give a template that opens none with `chat_template_path`"
            )
        if not tags:
            return None
        if self._written is not None and opened is None:
            return (
                f"'{tags[0]}' stands behind the empty thought that the chat template writes; take it out, or give a "
                "template that writes none with `chat_template_path`"
            )
        start, *others = tags if opened is None else [opened, *tags]
        end = end_of(start)
        if start not in self.tags and start != opened:
            return f"'{start}' closes a thought that nothing opens; write the tag that opens it at the beginning"
        if opened is None and pieces[0].strip():
            return f"'{start}' stands behind {shorten(pieces[0].strip())!r}; write the thought first"
        if end not in others:
            return f"nothing closes the thought that '{start}' opens; write '{end}' behind it"
        if others != [end]:
            other = others[0] if others[0] != end else others[1]
            return f"'{other}' stands there besides the tags of its thought; write one thought"
        return f"nothing stands behind '{end}'; write the answer there" if is_blank(pieces[-1]) else None

    def _render(self, messages: list[dict[str, str]], **options: bool) -> str:
        return apply_template(self.processor, make_turns(self.processor, messages), **options)


def _behind(text: str, start: str) -> str | None:
    """Returns what stands in a text behind its start, whatever white space either has; `None` without it."""
    match = re.match(r"\s*".join(map(re.escape, start.split())) if start.strip() else "", text.strip())
    return None if match is None else text.strip()[match.end() :]
