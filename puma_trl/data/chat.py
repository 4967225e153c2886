"""Conversations as a chat template takes them, with the pictures at their places, and what it makes of them."""

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..errors import DataError
from ..models.tokenizers import get_tokenizer
from .places import IMAGE_PLACE


# In place of a text these show what a chat template puts around it
STAND_IN = "instruction\ue000stands\ue000here"
ANSWER_STAND_IN = "\ue000\ue001\ue000"

Prompt = tuple[str, int] | tuple[str, int, Sequence[dict[str, str]]]


def apply_template(
    processor: ProcessorMixin | PreTrainedTokenizerBase, messages: list[dict[str, Any]], **options: Any
) -> str:
    """
    Renders turns by the chat template.

    Raises:
        DataError: if the template refuses them.
    """
    try:
        return processor.apply_chat_template(messages, tokenize=False, **options)
    except TemplateError as error:
        raise DataError(f"conversation: the chat template refuses it: {error}") from error


def render_turns(processor: ProcessorMixin | PreTrainedTokenizerBase, turns: list[dict[str, Any]]) -> str:
    """Renders turns up to the start of an answer, with the one beginning-of-sequence token that a prompt has."""
    rendered = apply_template(processor, turns, add_generation_prompt=True)
    tokenizer = get_tokenizer(processor)
    bos = tokenizer.bos_token
    if bos is None or rendered.lstrip().startswith(bos):
        return rendered
    return bos + rendered if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] else rendered


def make_turns(
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    messages: Sequence[dict[str, str]],
    num_images: int = 0,
    writes_breaks: bool | None = None,
) -> list[dict[str, Any]]:
    """
    Gives the turns the contents that the template takes: texts, or for a processor parts, with the images at their
    places, or before the first text of the user.

    Args:
        processor ([`~transformers.ProcessorMixin`] or [`~transformers.PreTrainedTokenizerBase`]):
            Processor or tokenizer of the model.
        messages (`Sequence[dict[str, str]]`):
            The turns, each with `role` and `content`.
        num_images (`int`, *optional*, defaults to 0):
            Number of images.
        writes_breaks (`bool`, *optional*):
            What [`breaks_after_image`] returns, if that is known.

    Raises:
        DataError: if there are other numbers of places and images.
    """
    if not isinstance(processor, ProcessorMixin):
        return list(messages)
    user_texts = [message["content"] for message in messages if message["role"] == "user"]
    num_places = sum(text.count(IMAGE_PLACE) for text in user_texts)
    if num_places not in (0, num_images):
        raise DataError(
            f"image places: the texts have {num_places} '{IMAGE_PLACE}', but there are {num_images} images"
        )
    place = IMAGE_PLACE
    if any(f"{IMAGE_PLACE}\n" in text for text in user_texts):
        if breaks_after_image(processor) if writes_breaks is None else writes_breaks:
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


def breaks_after_image(processor: ProcessorMixin) -> bool:
    """Whether the template itself writes the line break that many datasets have after an image's place."""
    parts = [{"type": "image"}, {"type": "text", "text": STAND_IN}]
    rendered = apply_template(processor, [{"role": "user", "content": parts}])
    return rendered.partition(STAND_IN)[0].endswith("\n")
