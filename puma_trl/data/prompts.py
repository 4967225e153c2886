"""Prompts without their answers, which a batch carries so that it can be written anew with other answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL.Image import Image
from torch.nn.functional import pad

from .padding_free import PER_TOKEN


@dataclass
class Prompts:
    """
    The prompts of one side of a batch. No library moves it to a device with the batch.

    Args:
        tokens (`dict[str, torch.Tensor]`):
            `input_ids`, `attention_mask` and other tensors per token of shape (B, P), padded on the right.
        pad_token_id (`int`):
            What the ids are padded with.
        sizes (`dict[str, torch.Tensor]`):
            The sizes of pictures that positions are worked out from, if the processor gives any.
        pictures (`tuple[str, ...]`):
            Names in the batch of what the processor made of pictures; none where the only one is blank.
        has_blank (`bool`):
            Whether the batch has a blank picture.
        dropped (`list[int]`):
            Rows that bear no labels, whatever their answers.
        images (`list[list[PIL.Image.Image]]`, *optional*):
            Each row's pictures, where another program than the model's processor reads them.
        unexpanded (`list[list[int]]`, *optional*):
            Each row's ids before the processor puts as many tokens as it takes in the place of a picture, likewise.
    """

    tokens: dict[str, torch.Tensor]
    pad_token_id: int
    sizes: dict[str, torch.Tensor]
    pictures: tuple[str, ...]
    has_blank: bool
    dropped: list[int] = field(default_factory=list)
    images: list[list[Image]] | None = None
    unexpanded: list[list[int]] | None = None

    @classmethod
    def of_batch(cls, batch: dict[str, Any], pad_token_id: int, has_blank: bool, dropped: list[int]) -> "Prompts":
        """
        Cuts the answers off a side.

        Args:
            batch (`dict[str, Any]`):
                Prompts and answers, padded on the right, with labels on the answers alone, and what the processor
                makes of pictures.
            pad_token_id, has_blank, dropped:
                As above.
        """
        lengths = batch["attention_mask"].sum(1) - (batch["labels"] != -100).sum(1)
        width = int(lengths.max())
        behind = torch.arange(width) >= lengths[:, None]
        tokens = {
            name: value[:, :width].masked_fill(behind, pad_token_id if name == "input_ids" else 0)
            for name, value in batch.items()
            if name in PER_TOKEN and name != "labels"
        }
        pictures = tuple(name for name in batch if name not in PER_TOKEN)
        sizes = {name: batch[name] for name in ("image_grid_thw",) if name in batch}
        return cls(tokens, pad_token_id, sizes, pictures, has_blank, dropped)

    def rows(self) -> list[list[int]]:
        """Returns the ids of each row without padding."""
        lengths = self.tokens["attention_mask"].sum(1).tolist()
        return [row[:length] for row, length in zip(self.tokens["input_ids"].tolist(), lengths, strict=True)]

    def padded_left(self) -> dict[str, torch.Tensor]:
        """Returns the tensors per token (B, P) with the padding before the prompts, as they are continued."""
        width = self.tokens["attention_mask"].shape[1]
        shifts = width - self.tokens["attention_mask"].sum(1)
        places = (torch.arange(width) - shifts[:, None]) % width
        return {name: value.gather(1, places) for name, value in self.tokens.items()}

    def with_answers(self, answers: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """
        Puts answers behind the prompts.

        Args:
            answers (`Sequence[Sequence[int]]`):
                The tokens of each row's answer, with the one that ends it; none for a row without an answer.

        Returns:
            `dict[str, torch.Tensor]`: tensors per token (B, L), padded on the right, with labels on the answers, and
            the sizes of pictures.
        """
        starts = self.tokens["attention_mask"].sum(1).tolist()
        ends = [start + len(answer) for start, answer in zip(starts, answers, strict=True)]
        fill = {"input_ids": self.pad_token_id}
        missing = max(ends) - self.tokens["input_ids"].shape[1]
        result = {
            name: pad(value, (0, missing), value=fill.get(name, 0)) for name, value in self.tokens.items()
        }  # `missing` may be negative, where the row with the longest prompt had a short answer
        result["labels"] = torch.full_like(result["input_ids"], -100)
        for row, (start, end, answer) in enumerate(zip(starts, ends, answers, strict=True)):
            result["input_ids"][row, start:end] = result["labels"][row, start:end] = torch.tensor(
                answer, dtype=torch.long
            )
            result["attention_mask"][row, start:end] = 1
        return result | self.sizes
