"""Rows → the texts that are read: prompts by the chat template, answers with their end."""

import os
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..errors import DataError
from .places import IMAGE_PLACE
from .tokens import MARK, ControlTokens, get_tokenizer


# In place of a text these show what a chat template puts around it
STAND_IN = "instruction\ue000stands\ue000here"
ANSWER_STAND_IN = "\ue000\ue001\ue000"

# What templates that escape, quote or rewrite texts would change
PROBE = """1 < 2 & "3" > '4' \\frac{1}{2}\n  é ∠ Ab"""

Prompt = tuple[str, int] | tuple[str, int, Sequence[dict[str, str]]]


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
    messages = [*history, {"role": "user", "content": instruction}]
    if isinstance(processor, ProcessorMixin):
        messages = _place_images(processor, messages, num_images)
    rendered = _apply_template(processor, messages, add_generation_prompt=True)
    tokenizer = get_tokenizer(processor)
    bos = tokenizer.bos_token
    if bos is None or rendered.lstrip().startswith(bos):
        return rendered
    return bos + rendered if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] else rendered


def _apply_template(
    processor: ProcessorMixin | PreTrainedTokenizerBase, messages: list[dict[str, Any]], **options: Any
) -> str:
    try:
        return processor.apply_chat_template(messages, tokenize=False, **options)
    except TemplateError as error:
        raise DataError(f"conversation: the chat template refuses it: {error}") from error


def _place_images(processor: ProcessorMixin, messages: list[dict[str, str]], num_images: int) -> list[dict[str, Any]]:
    """Gives the turns contents in parts, with the images at their places, or before the first text of the user."""
    user_texts = [message["content"] for message in messages if message["role"] == "user"]
    num_places = sum(text.count(IMAGE_PLACE) for text in user_texts)
    if num_places not in (0, num_images):
        raise DataError(
            f"image places: the texts have {num_places} '{IMAGE_PLACE}', but there are {num_images} images"
        )
    place = IMAGE_PLACE
    if any(f"{IMAGE_PLACE}\n" in text for text in user_texts) and _breaks_after_image(processor):
        place = re.compile(rf"{re.escape(IMAGE_PLACE)}\n?")
    first = [{"type": "image"}] * (num_images if num_places == 0 else 0)
    turns = []
    for message in messages:
        content = message["content"]
        if message["role"] == "user":
            pieces = re.split(place, content) if num_places else [content]
            parts = (
                first + [part for text in pieces for part in ({"type": "image"}, {"type": "text", "text": text})][1:]
            )
            content, first = [part for part in parts if part.get("text") != ""], []
        else:
            content = [{"type": "text", "text": content}]
        turns.append({"role": message["role"], "content": content})
    return turns


def _breaks_after_image(processor: ProcessorMixin) -> bool:
    """Whether the template itself writes the line break that many datasets have after an image's place."""
    parts = [{"type": "image"}, {"type": "text", "text": STAND_IN}]
    rendered = _apply_template(processor, [{"role": "user", "content": parts}])
    return rendered.partition(STAND_IN)[0].endswith("\n")


def end_of_answer(processor: ProcessorMixin | PreTrainedTokenizerBase) -> str:
    """
    Returns what ends an answer: what the chat template closes a turn of the assistant with, up to its first control
    token; the tokenizer's `eos_token` where that is nothing, and behind it where that has no token of its own.

    Args:
        processor ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`]):
            Processor or tokenizer of the model.

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
        turns = _place_images(processor, turns, 0) if isinstance(processor, ProcessorMixin) else list(turns)
        return _apply_template(processor, turns, **options)

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

    Args:
        processor ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`]):
            Processor or tokenizer of the model.

    Raises:
        DataError: if there is none.
    """
    return get_tokenizer(processor)(end_of_answer(processor), add_special_tokens=False)["input_ids"][-1]


def render_answer(processor: ProcessorMixin | PreTrainedTokenizerBase, output: str) -> str:
    """
    Renders an answer: the text and what ends it. [`Renderer`] is faster for many.

    Args:
        processor ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`]):
            Processor or tokenizer of the model.
        output (`str`):
            The answer.

    Raises:
        DataError: if there is nothing that ends it.
    """
    return output + end_of_answer(processor)


class Renderer:
    """
    Renders the texts of many rows like [`render_prompt`] and [`render_answer`], about 30 times as fast.

    The chat template is rendered once per number of images, around a stand-in for the instruction. A template that
    does more with the instruction than trim it is noticed, because the first such prompt of every call is rendered in
    full too.

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
        self.frames: dict[int, list[str]] = {}
        self.verbatim = True

    def check_template(self) -> None:
        """
        Makes sure that the chat template writes a question and an answer once, as they are, and ends an answer.

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
            turns = _place_images(self.processor, turns, 0) if isinstance(self.processor, ProcessorMixin) else turns
            count = _apply_template(self.processor, turns).count(PROBE)
            if count != 1:
                how = f"writes {what} {count} times" if count else f"changes {what} such as {PROBE!r}, or leaves it out"
                raise DataError(
                    f"The chat template {how}, so the model would read something else than the data. Give another with "
                    "`chat_template_path`."
                )
        self.answer("")

    @cached_property
    def end(self) -> str:
        """What ends an answer."""
        return end_of_answer(self.processor)

    def prompts(self, prompts: Sequence[Prompt]) -> list[str]:
        """Renders prompts, each given as instruction, number of images and, if there is any, what comes before."""
        if self.escapes:
            prompts = [self._escape(*prompt) for prompt in prompts]
        sample = next((prompt for prompt in prompts if _fits_frame(*prompt)), None)
        if sample is not None and self.verbatim:
            self.verbatim = self._render(*sample) == render_prompt(self.processor, *sample)
        return [self._render(*prompt) for prompt in prompts]

    def answer(self, output: str) -> str:
        """Renders an answer."""
        return (self.control.escape(output) if self.escapes else output) + self.end

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
            token = self._find_control(text, role == "user")
            if token is not None:
                reason = "this tokenizer cannot read as plain text" if self.escapes else "has a meaning to the model"
                return f"special token in text: `{name}` contains '{token}', which {reason}"
        if turns or IMAGE_PLACE in row[f"instruction{side}"]:
            return self._find_change(prompt_of(row, side), texts[:-1])
        return None

    def _find_change(self, prompt: Prompt, texts: list[tuple[str, str, str]]) -> str | None:
        """Returns what the template does to turns other than to put something around them, if anything."""
        try:
            (rendered,) = self.prompts([prompt])
        except DataError as error:
            return str(error)
        for name, text, role in texts:
            pieces = text.split(IMAGE_PLACE) if role == "user" else [text]
            pieces = [(self.control.escape(piece) if self.escapes else piece).strip() for piece in pieces]
            pieces = [piece for piece in pieces if piece]
            for piece in pieces:
                if piece not in rendered:
                    return f"conversation: the chat template leaves out or changes `{name}`: {piece[:60]!r}"
            if len(pieces) > 1 and not self._keeps_places:
                return (
                    f"image places: `{name}` has a picture inside, but the chat template puts pictures before or "
                    "behind the text"
                )
        return None

    @cached_property
    def _keeps_places(self) -> bool:
        """Whether the template leaves images between texts where they are."""
        messages = [{"role": "user", "content": f"{STAND_IN}{IMAGE_PLACE}{ANSWER_STAND_IN}"}]
        rendered = _apply_template(self.processor, _place_images(self.processor, messages, 1))
        return bool(rendered.partition(STAND_IN)[2].partition(ANSWER_STAND_IN)[0].strip())

    def _find_control(self, text: str, has_places: bool) -> str | None:
        """Finds a control token, also one that stands there when a template takes the pictures out of the text."""
        pieces = text.split(IMAGE_PLACE) if has_places else [text]
        if self.escapes:
            return self.control.find("".join(map(self.control.escape, pieces)))
        # joined as well
        for piece in dict.fromkeys(["".join(pieces), *pieces]):
            token = self.control.find(piece) or self.control.find_normalized(piece)
            if token is not None:
                return token
        return None

    def _escape(self, instruction: str, num_images: int, history: Sequence[dict[str, str]] = ()) -> Prompt:
        def escape(text: str, role: str) -> str:
            pieces = text.split(IMAGE_PLACE) if role == "user" else [text]
            return IMAGE_PLACE.join(map(self.control.escape, pieces))

        turns = [{**turn, "content": escape(turn["content"], turn["role"])} for turn in history]
        return escape(instruction, "user"), num_images, turns

    def _render(self, instruction: str, num_images: int, history: Sequence[dict[str, str]] = ()) -> str:
        if not self.verbatim or not _fits_frame(instruction, num_images, history):
            return render_prompt(self.processor, instruction, num_images, history)
        if num_images not in self.frames:
            self.frames[num_images] = render_prompt(self.processor, STAND_IN, num_images).split(STAND_IN)
        frame = self.frames[num_images]
        if len(frame) != 2:
            return render_prompt(self.processor, instruction, num_images)
        return instruction.join(frame)


def _fits_frame(instruction: str, num_images: int, history: Sequence[dict[str, str]] = ()) -> bool:
    return not history and IMAGE_PLACE not in instruction and instruction == instruction.strip()


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
