"""Sampling in batches in which the tokens of a reply depend on a seed of its own, and not on the other replies."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from ...evaluation.local_model import Generator, Prompt, Reply


class PickToken(LogitsProcessor):
    """
    Samples: leaves one token to each sequence, found by one number of its own between 0 and 1.

    The tokens stand in the order of their probabilities, as far as `top_p` reaches, each on a stretch as long as its
    probability; the number points at one.

    Args:
        draws (`Sequence[random.Random]`):
            Where each sequence takes its numbers from.
        temperature (`float`):
            Sampling temperature.
        top_p (`float`):
            Share of probability that is sampled from.
    """

    def __init__(self, draws: Sequence[random.Random], temperature: float, top_p: float):
        self.draws, self.temperature, self.top_p = draws, temperature, top_p

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = scores.float()
        # below 0 first, so that a tiny temperature leads to the likeliest token and not to infinity minus infinity
        probabilities = torch.softmax((scores - scores.amax(dim=-1, keepdim=True)) / self.temperature, dim=-1)
        probabilities, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
        inside = probabilities.cumsum(dim=-1) - probabilities < self.top_p
        ends = (probabilities * inside).cumsum(dim=-1)
        numbers = ends.new_tensor([[draw.random()] for draw in self.draws])
        place = (ends <= numbers * ends[:, -1:]).sum(dim=-1, keepdim=True)
        place = place.clamp(max=inside.sum(dim=-1, keepdim=True) - 1)  # where rounding led behind the last one
        return torch.full_like(scores, float("-inf")).scatter(-1, tokens.gather(-1, place), 0.0)


class Sampler(Generator):
    """
    Answers prompts in batches, each reply by a seed of its own.

    Args:
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature; 0 takes the likeliest token.
        top_p (`float`, *optional*, defaults to `1.0`):
            Share of probability that is sampled from.
        others:
            As of [`Generator`].
    """

    def __init__(self, *arguments: Any, temperature: float = 1.0, top_p: float = 1.0, **others: Any):
        super().__init__(*arguments, **others)
        self.temperature, self.top_p = temperature, top_p

    def sample(self, prompts: Sequence[Prompt], seeds: Sequence[str]) -> list[Reply]:
        """
        Answers one batch.

        Returns:
            The replies with all their control tokens but the one that ends them.
        """
        options = {}
        if self.temperature:
            draws = [random.Random(seed) for seed in seeds]
            options["logits_processor"] = LogitsProcessorList([PickToken(draws, self.temperature, self.top_p)])
        replies = []
        for prompt, row, length, is_cut in zip(prompts, *self.complete(prompts, **options), strict=True):
            said = row[: length if is_cut else length - 1]
            text = self.processor.tokenizer.decode(said, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            replies.append(Reply(self.with_thought(prompt, text), length, is_cut))
        return replies
