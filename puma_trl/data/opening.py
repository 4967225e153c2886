"""How a chat template opens an answer: as it opens those of the conversation before, or with a thought besides."""

import re
from functools import cached_property

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..errors import DataError
from .chat import ANSWER_STAND_IN, STAND_IN, apply_template, make_turns


# What a template for reasoning may write behind the opening of an answer: a thought, open or closed and empty
THOUGHT = re.compile(
    r"\s*(?P<start><(?P<tag>[^<>/]+)>|\[(?P<word>[A-Z]+)\])\s*(?P<end></(?P=tag)>|\[/(?P=word)\])?\s*"
)


class Opening:
    """The start of an answer that a chat template writes behind a question."""

    def __init__(self, processor: ProcessorMixin | PreTrainedTokenizerBase):
        self.processor = processor

    @cached_property
    def thought(self) -> str | None:
        """
        The tag of a thought that is opened and not closed, if there is one.

        Raises:
            DataError: if an answer is opened otherwise than those of turns before it.
        """
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
        found = None if rest is None else THOUGHT.fullmatch(rest)
        if rest is None or (rest.strip() and found is None):
            raise DataError(
                f"The chat template opens an answer with {opened!r} where one is to be generated, and with "
                f"{written!r} where it is there, so a model would learn another conversation than it is asked in. "
                "Give another with `chat_template_path`, whose `add_generation_prompt` opens a turn of the assistant."
            )
        return found["start"] if found and not found["end"] else None

    def cut(self, output: str) -> str:
        """Returns an answer without the tag that the template has opened before it."""
        if self.thought is None or not output.lstrip().startswith(self.thought):
            return output
        return output.lstrip()[len(self.thought) :].lstrip()

    def find_problem(self, output: str) -> str | None:
        """Says why an answer cannot stand behind the opening, if so."""
        if self.thought is None or (self.thought[:1] + "/" + self.thought[1:]) in output:
            return None
        return f"the chat template opens a thought with '{self.thought}' before the answer, and nothing closes it"

    def _render(self, messages: list[dict[str, str]], **options: bool) -> str:
        return apply_template(self.processor, make_turns(self.processor, messages), **options)


def _behind(text: str, start: str) -> str | None:
    """Returns what stands in a text behind its start, whatever white space either has; `None` without it."""
    match = re.match(r"\s*".join(map(re.escape, start.split())) if start.strip() else "", text.strip())
    return None if match is None else text.strip()[match.end() :]
