"""Rows → the texts that are read: prompts by the chat template, answers with their end."""

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase, ProcessorMixin

from ..errors import DataError
from ..models.tokenizers import get_tokenizer
from .chat import ANSWER_STAND_IN, STAND_IN, Prompt, apply_template, make_turns, render_turns
from .frames import PROBE, Frames
from .opening import Opening
from .places import IMAGE_PLACE
from .texts import shorten
from .thoughts import TAG
from .tokens import MARK, ControlTokens


def render_prompt(
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    instruction: str,
    num_images: int,
    history: Sequence[dict[str, str]] = (),
) -> str:
    """
    Renders a conversation up to the start of the answer, with the one beginning-of-sequence token that the tokenizer
    or the template gives it. It is to be tokenised without adding special tokens.

    Args:
        processor ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`]):
            Its chat template is used. A bare tokenizer takes no images.
        instruction (`str`):
            The problem.
        num_images (`int`):
            Number of images. Each `<image>` in the instruction and in the user's turns before it is the place of one;
            without any, all come first.
        history (`Sequence[dict[str, str]]`, *optional*):
            The turns before the problem, each with `role` and `content`.

    Raises:
        DataError: if there are other numbers of places and images, or the template refuses the conversation.
    """
    return render_turns(
        processor, make_turns(processor, [*history, {"role": "user", "content": instruction}], num_images)
    )


def end_of_answer(processor: ProcessorMixin | PreTrainedTokenizerBase) -> str:
    """
    Returns what ends an answer: what the chat template closes a turn of the assistant with, up to its first control
    token; the tokenizer's `eos_token` where that is nothing, and behind it where that has no token of its own.

    Raises:
        DataError: if there is no such token, so that a model would never learn to stop.
    """
    control = ControlTokens(processor)
    closing, is_all = _closing(processor, control)
    end = control.cut(closing)
    if end is not None:
        return end
    tokenizer = get_tokenizer(processor)
    end = closing.rstrip() if is_all else ""
    if end and len(tokenizer(end.strip(), add_special_tokens=False)["input_ids"]) == 1:
        return end
    if not tokenizer.eos_token:
        raise DataError(
            "The tokenizer has no `eos_token`, and its chat template closes an answer with no token, so answers would "
            "not end. Set one and save the tokenizer again."
        )
    return end + tokenizer.eos_token


def _closing(processor: ProcessorMixin | PreTrainedTokenizerBase, control: ControlTokens) -> tuple[str, bool]:
    """Returns what the template writes behind an answer, and whether it is that and nothing but that."""
    problem, answer = {"role": "user", "content": STAND_IN}, {"role": "assistant", "content": ANSWER_STAND_IN}

    def render(*turns: dict[str, str], **options: Any) -> str:
        return apply_template(processor, make_turns(processor, turns), **options)

    closing = render(problem, answer).partition(ANSWER_STAND_IN)[2]
    asked = render(problem, add_generation_prompt=True)
    if closing.strip() and asked != render(problem):
        return closing, True
    between = render(problem, answer, problem).partition(ANSWER_STAND_IN)[2].partition(STAND_IN)[0]
    if closing.strip():
        # the start of the next answer stands behind everything; that is not what stands before another problem
        return os.path.commonprefix([closing, between]), False
    # some templates close only turns that others follow, all alike, but what opens a turn is no end of the one before
    between = os.path.commonprefix([asked.partition(STAND_IN)[2], between])
    try:
        opening = render({"role": "system", "content": STAND_IN}, problem)
    except DataError:
        opening = render(problem)
    token = control.find(between)
    return ("" if token is None or token in opening.partition(STAND_IN)[0] else between), False


def end_token_id(processor: ProcessorMixin | PreTrainedTokenizerBase) -> int:
    """
    Returns the token that a model learns to stop with, the last one of [`end_of_answer`].

    Raises:
        DataError: if there is none.
    """
    return get_tokenizer(processor)(end_of_answer(processor), add_special_tokens=False)["input_ids"][-1]


def end_token_ids(processor: ProcessorMixin | PreTrainedTokenizerBase, config: GenerationConfig) -> list[int]:
    """Returns the tokens that end an answer: the checkpoint's, the tokenizer's and the chat template's."""
    end = config.eos_token_id
    ends = [] if end is None else [end] if isinstance(end, int) else list(end)
    return sorted({*ends, get_tokenizer(processor).eos_token_id, end_token_id(processor)} - {None})


def render_answer(processor: ProcessorMixin | PreTrainedTokenizerBase, output: str) -> str:
    """
    Renders an answer: the text, without the tag of a thought that the template has opened, and what ends it.
    [`Renderer`] is faster for many.

    Raises:
        DataError: if there is nothing that ends it.
    """
    return Opening(processor).cut(output) + end_of_answer(processor)


class Renderer:
    """
    Renders the texts of many rows like [`render_prompt`] and [`render_answer`], about 30 times as fast.

    The chat template is rendered once for conversations of one structure, around stand-ins for their texts, as far as
    it does nothing to these ([`Frames`]).

    Args:
        processor ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`]):
            Processor or tokenizer of the model.
        special_tokens (`str`, *optional*, defaults to `"error"`):
            Whether control tokens in texts are a problem (`"error"`) or plain text (`"escape"`).

    Attributes:
        reader ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`]):
            What must tokenise the texts, without adding special tokens: the processor, or with `"escape"` a copy.
    """

    def __init__(self, processor: ProcessorMixin | PreTrainedTokenizerBase, special_tokens: str = "error"):
        self.processor = processor
        self.control = ControlTokens(processor)
        self.escapes = special_tokens == "escape"
        self.reader = self.control.plain_reader if self.escapes else processor
        self.frames = Frames(processor)
        self.opening = Opening(processor)

    def check_template(self) -> None:
        """
        Makes sure that the chat template writes a question and an answer once, as they are, opens an answer as it
        writes those before, and ends it.

        Raises:
            DataError: if it does not, or there is none.
        """
        if self.processor.chat_template is None:
            raise DataError(
                "There is no chat template, so how a question is put to the model is not known. Give one with "
                "`chat_template_path`, or set `chat_template` of the processor."
            )
        question, answer = ({"role": role, "content": PROBE} for role in ("user", "assistant"))
        asked = {"role": "user", "content": STAND_IN}
        for what, turns in (("a question", [question]), ("an answer", [asked, answer])):
            count = apply_template(self.processor, make_turns(self.processor, turns)).count(PROBE)
            if count != 1:
                how = f"changes {what} such as {PROBE!r}, or leaves it out"
                raise DataError(
                    f"The chat template {f'writes {what} {count} times' if count else how}, so the model would read "
                    "something else than the data. Give another with `chat_template_path`."
                )
        self.answer("")  # which looks at how it is opened too

    @cached_property
    def end(self) -> str:
        """What ends an answer."""
        return end_of_answer(self.processor)

    def prompts(self, prompts: Sequence[Prompt]) -> list[str]:
        """Renders prompts, each given as instruction, number of images and, if there is any, what comes before."""
        if self.escapes:
            prompts = [self._escape(*prompt) for prompt in prompts]
        return [self.frames.render(*prompt) for prompt in prompts]

    def answer(self, output: str) -> str:
        """Renders an answer."""
        output = self.opening.cut(output)
        if self.escapes:  # but for the tags of a thought
            pieces = self.opening.split(output)
            pieces[::2] = map(self.control.escape, pieces[::2])
            output = "".join(pieces)
        return output + self.end

    def find_problem(self, row: dict[str, Any], side: str) -> str | None:
        """
        Returns why a side of a row cannot be rendered as it should, as `"kind: details"`, or `None`.

        Args:
            row (`dict[str, Any]`):
                Row with the columns of the side.
            side (`str`):
                What their names end with: `""` or `"_2"`.
        """
        turns = row.get(f"history{side}") or []
        texts = [(f"history{side}[{index}]", turn["content"], turn["role"]) for index, turn in enumerate(turns)]
        texts += [
            (f"instruction{side}", row[f"instruction{side}"], "user"),
            (f"output{side}", row.get(f"output{side}") or "", ""),
        ]
        for name, text, role in texts:
            if self.escapes and MARK in text:
                return (
                    f"invalid text: `{name}` has the character U+{ord(MARK):X}, which is for the inner use of programs"
                )
            read = self.control.find_rewriting(text)
            if read is not None:
                return (
                    f"rewritten text: the tokenizer reads `{name}` {shorten(text)!r} as {shorten(read)!r}; take one "
                    "without a normalizer that changes characters"
                )
            pieces = text.split(IMAGE_PLACE) if role == "user" else [text]
            if role and (problem := self._find_control(name, pieces, role)):
                return problem
        problem = self._find_change(prompt_of(row, side), [name for name, _, _ in texts])
        if problem is None and (flaw := self.opening.find_problem(text, self.escapes)):
            return f"thought: in `{name}` {flaw}"
        return problem or self._find_control(name, self.opening.split(self.opening.cut(text))[::2])

    def _find_change(self, prompt: Prompt, names: list[str]) -> str | None:
        """Returns what the template does to turns other than to put something around them, if anything."""
        prompt = self._escape(*prompt) if self.escapes else prompt
        try:
            found = self.frames.find_change(*prompt)
        except DataError as error:
            return str(error)
        if found is not None:
            what, owner, text = found
            return f"conversation: the chat template {what} `{names[owner]}`: {text[:60]!r}"
        if not self.opening.opens(rendered := self.frames.render(*prompt)):
            return f"conversation: the chat template opens this answer otherwise than others: {rendered[-60:]!r}"
        for name, text in [(names[-2], prompt[0]), *((names[i], turn["content"]) for i, turn in enumerate(prompt[2]))]:
            if len([piece for piece in text.split(IMAGE_PLACE) if piece.strip()]) > 1 and not self._keeps_places:
                return (
                    f"image places: `{name}` has a picture inside, but the chat template puts pictures before or "
                    "behind the text"
                )
        return None

    @cached_property
    def _keeps_places(self) -> bool:
        """Whether the template leaves images between texts where they are."""
        messages = [{"role": "user", "content": f"{STAND_IN}{IMAGE_PLACE}{ANSWER_STAND_IN}"}]
        rendered = apply_template(self.processor, make_turns(self.processor, messages, 1))
        return bool(rendered.partition(STAND_IN)[2].partition(ANSWER_STAND_IN)[0].strip())

    def _find_control(self, name: str, pieces: list[str], role: str = "") -> str | None:
        """
        Finds a control token in the pieces of a text, also one that stands there when a template takes what is between
        them out, and says what is wrong.
        """
        if self.escapes:
            token = self.control.find("".join(map(self.control.escape, pieces)))
        else:
            texts = dict.fromkeys(["".join(pieces), *pieces])
            found = (self.control.find(text) or self.control.find_normalized(text) for text in texts)
            token = next(filter(None, found), None)
        if token is None:
            return None
        if role == "assistant" and TAG.fullmatch(token):
            return f"thought: `{name}` contains '{token}'; take out thoughts of turns before, as chat templates do"
        reason = "this tokenizer cannot read as plain text" if self.escapes else "has a meaning to the model"
        return f"special token in text: `{name}` contains '{token}', which {reason}"

    def _escape(self, instruction: str, num_images: int, history: Sequence[dict[str, str]] = ()) -> Prompt:
        def escape(text: str, role: str) -> str:
            pieces = text.split(IMAGE_PLACE) if role == "user" else [text]
            return IMAGE_PLACE.join(map(self.control.escape, pieces))

        turns = [{**turn, "content": escape(turn["content"], turn["role"])} for turn in history]
        return escape(instruction, "user"), num_images, turns


def prompt_of(row: dict[str, Any], side: str) -> Prompt:
    """
    Returns what [`Renderer.prompts`] takes of a side of a row.

    Args:
        row (`dict[str, Any]`):
            Row with the columns of the side.
        side (`str`):
            What their names end with: `""` or `"_2"`.
    """
    return row[f"instruction{side}"], len(row.get(f"image_url{side}") or []), row.get(f"history{side}") or ()
