"""Replies of a transformers model, in batches of prompts of similar length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from ..data.images import image_size, open_image
from ..data.render import end_token_ids, render_prompt
from ..data.thoughts import find_end, find_tags
from ..errors import EvaluationError
from ..models.weights import check_folder
from .settings import check_sampling


PIXELS_PER_TOKEN = 28 * 28
MAX_PIXELS = 10**6


@dataclass(frozen=True)
class Prompt:
    """
    What a model is asked.

    Args:
        text (`str`):
            The instruction.
        images (`Sequence[Any]`):
            Its pictures, as [`open_image`] takes them.
        history (`Sequence[dict[str, str]]`):
            The turns before it, each with `role` and `content`.
    """

    text: str
    images: Sequence[Any] = ()
    history: Sequence[dict[str, str]] = ()


class Reply(str):
    """
    What a model says.

    Args:
        text (`str`):
            The text.
        num_tokens (`int`):
            Its tokens, with the one that ends it.
        is_cut (`bool`):
            Whether it was cut off before such a token.
    """

    num_tokens: int
    is_cut: bool

    def __new__(cls, text: str, num_tokens: int, is_cut: bool) -> "Reply":
        reply = super().__new__(cls, text)
        reply.num_tokens, reply.is_cut = num_tokens, is_cut
        return reply


def load_for_prompts(path: str) -> tuple[PreTrainedConfig, ProcessorMixin]:
    """
    Loads what reads prompts: configuration and processor of a model.

    Raises:
        EvaluationError: if the folder lacks them or the chat template.
        ModelError: if it holds adapters, its files are torn, or its weights are pickled.
    """
    check_folder(path)
    try:
        processor = AutoProcessor.from_pretrained(path)
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"No image-text-to-text model with its processor in {path}: {error}") from error
    if not isinstance(processor, ProcessorMixin) or processor.chat_template is None:
        raise EvaluationError(f"{path} has no processor with a chat template. Copy those of the base model into it.")
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return config, processor


def load_for_generation(path: str, dtype: str = "auto") -> tuple[PreTrainedModel, ProcessorMixin]:
    """
    Loads model and processor, on this process's device.

    Args:
        path (`str`):
            Folder or Hub name of the model.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Type of the weights; `"auto"` is that of the checkpoint.

    Raises:
        EvaluationError: if there is no such type, or the folder lacks the model, its processor or its chat template.
        ModelError: if it holds adapters, its files are torn, or its weights are pickled.
    """
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise EvaluationError(f"`dtype` is '{dtype}', but must be auto, or a type such as bfloat16 or float32.")
    _, processor = load_for_prompts(path)
    try:
        model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"No image-text-to-text model with its processor in {path}: {error}") from error
    return model.eval().to(PartialState().device), processor


class Generator:
    """
    Answers prompts in batches, greedily unless a temperature is set.

    The checkpoint's own sampling defaults and penalties are not used, so that runs are comparable.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        processor ([`~transformers.ProcessorMixin`]):
            Its processor.
        batch_size (`int`, *optional*, defaults to `16`):
            Prompts in a batch.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Longest reply in tokens.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; 0 takes the likeliest token.
        top_p (`float`, *optional*, defaults to `1.0`):
            Share of probability that is sampled from.

    Raises:
        EvaluationError: if a value is out of its range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        batch_size: int = 16,
        max_new_tokens: int = 1024,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ):
        check_sampling(batch_size, max_new_tokens, temperature, top_p)
        self.model, self.processor, self.batch_size = model, processor, batch_size
        self.processor.tokenizer.padding_side = "left"
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
        # `generate` fills what is unset from the model's own configuration, so that is replaced
        model.generation_config = GenerationConfig(
            eos_token_id=end_token_ids(processor, model.generation_config),
            pad_token_id=processor.tokenizer.pad_token_id,
            max_new_tokens=max_new_tokens,
            **(sampling or {"do_sample": False}),
        )

    def batches(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Returns positions in batches of similar length; prompts with and without pictures are not mixed."""
        lengths = [self._length(prompt) for prompt in prompts]
        batches = []
        for with_images in (True, False):
            group = [position for position, prompt in enumerate(prompts) if bool(prompt.images) == with_images]
            group.sort(key=lambda position: -lengths[position])
            batches += [group[start : start + self.batch_size] for start in range(0, len(group), self.batch_size)]
        return batches

    def _length(self, prompt: Prompt) -> float:
        sizes = (image_size(image) for image in prompt.images)
        pixels = sum(min(height * width, MAX_PIXELS) for height, width in sizes)
        return len(self.processor.tokenizer(prompt.text)["input_ids"]) + pixels / PIXELS_PER_TOKEN

    def answer(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """Answers one batch."""
        tokens, lengths, cuts = self.complete(prompts)
        texts = map(self.with_thought, prompts, self._decode(tokens))
        return [Reply(*facts) for facts in zip(texts, lengths, cuts, strict=True)]

    def with_thought(self, prompt: Prompt, text: str) -> str:
        """Returns what was said, with the tag of a thought that the chat template has opened before it."""
        found = find_end(render_prompt(self.processor, prompt.text, len(prompt.images), prompt.history))
        return f"{found[0]}\n{text.strip()}" if found and found["begins"] else text.strip()

    def _decode(self, tokens: torch.Tensor) -> list[str]:
        """Returns texts without special tokens, but with the tags of thoughts, which some tokenizers count to them."""
        tokenizer = self.processor.tokenizer
        tags = tokenizer.convert_tokens_to_ids([tag for pair in find_tags(tokenizer).items() for tag in pair])
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        if special.isdisjoint(tags):
            return self.processor.batch_decode(tokens, skip_special_tokens=True)
        special = special.union(tokenizer.all_special_ids).difference(tags)
        return self.processor.batch_decode(
            [[token for token in row if token not in special] for row in tokens.tolist()]
        )

    @torch.inference_mode()
    def complete(self, prompts: Sequence[Prompt], **options: Any) -> tuple[torch.Tensor, list[int], list[bool]]:
        """
        Answers one batch in tokens.

        Returns:
            The tokens of the replies, padded; how many each has, with the one that ends it; and whether it was cut off
            before such a token.
        """
        texts = [render_prompt(self.processor, prompt.text, len(prompt.images), prompt.history) for prompt in prompts]
        images = [[open_image(image) for image in prompt.images] for prompt in prompts]
        inputs = self.processor(
            text=texts,
            images=images if images[0] else None,
            padding=True,
            add_special_tokens=False,
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)
        # each process has all weights, and so need not go on until the last of them has come to an end
        tokens = self.model.generate(**inputs, synced_gpus=False, **options)[:, inputs["input_ids"].shape[1] :]
        ends = torch.isin(tokens, tokens.new_tensor(self.model.generation_config.eos_token_id))
        lengths = [int(row.int().argmax()) + 1 if row.any() else len(row) for row in ends]
        return tokens, lengths, [not bool(row.any()) for row in ends]
