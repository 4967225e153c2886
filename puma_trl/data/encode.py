"""Rows → token ids and labels, for text models; of the others the collator makes them, with their pictures."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from datasets import DatasetDict
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from .render import Renderer, prompt_of


@dataclass
class _RowTokenizer:
    """Renders and tokenises batches of rows; without what it makes on the way, it hashes the same in every process."""

    tokenizer: PreTrainedTokenizerBase
    special_tokens: str
    completion_only_loss: bool

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer(self.tokenizer, self.special_tokens)

    def __call__(self, columns: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        prompts = self._encode(self.renderer.prompts([prompt_of(row, "") for row in rows]))
        answers = self._encode([self.renderer.answer(row["output"]) for row in rows])
        input_ids = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        if not self.completion_only_loss:
            return {"input_ids": input_ids, "labels": input_ids}
        labels = [[-100] * len(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]
        return {"input_ids": input_ids, "labels": labels}

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.renderer.reader(texts, add_special_tokens=False)["input_ids"]


@dataclass
class TextCollator:
    """
    Rendered prompts and answers → a batch with labels on the answers, padded on the right, as TRL's vision collator
    makes one of a processor.

    Args:
        processor ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model; it must have a pad token.
    """

    processor: PreTrainedTokenizerBase

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collates examples of `prompt` and `completion`."""
        prompts, answers = (
            self.processor([example[name] for example in examples], add_special_tokens=False)["input_ids"]
            for name in ("prompt", "completion")
        )
        rows = [torch.tensor(prompt + answer) for prompt, answer in zip(prompts, answers, strict=True)]
        labels = [row.clone() for row in rows]
        for row, prompt in zip(labels, prompts, strict=True):
            row[: len(prompt)] = -100
        return {
            "input_ids": pad_sequence(rows, batch_first=True, padding_value=self.processor.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        }


def tokenize_rows(
    dataset: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    special_tokens: str = "error",
    completion_only_loss: bool | None = None,
    num_proc: int | None = None,
) -> DatasetDict:
    """
    Renders and tokenises rows for TRL's text path, so that they have one beginning and the end of the chat template,
    and as many tokens as were counted; for stage 1 on a text model.

    Args:
        dataset ([`~datasets.DatasetDict`]):
            Checked rows, as [`load_data`] returns them.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        special_tokens (`str`, *optional*, defaults to `"error"`):
            Whether control tokens in texts are plain text (`"escape"`).
        completion_only_loss (`bool`, *optional*):
            Whether the answer alone bears labels, or the prompt too. Defaults to the answer alone.
        num_proc (`int`, *optional*):
            Processes. Defaults to this one.

    Returns:
        [`~datasets.DatasetDict`]: rows of `input_ids` and `labels`, both (L,), -100 where there is no loss.
    """
    options = {"batched": True, "num_proc": num_proc, "desc": "Tokenising the rows"}
    return DatasetDict(
        {
            split: rows.map(
                _RowTokenizer(tokenizer, special_tokens, completion_only_loss is not False),
                remove_columns=rows.column_names,
                **options,
            )
            for split, rows in dataset.items()
        }
    )
