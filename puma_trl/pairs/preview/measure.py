"""What a model makes of pairs, for the preview: divergences, token losses on both sides, replies."""

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ...data.collator import DataCollatorForPumaPairs, split_sides
from ...data.render import render_answer
from ...errors import EvaluationError
from ...evaluation.divergence import answer_logits, divergence_per_pair
from ...evaluation.gap_answers import SIDES, answer_pairs, longest_reply
from ...evaluation.local_model import Generator, load_for_generation
from ...evaluation.progress import Progress
from ...models.families import Family, get_family


@dataclass
class LoadedModel:
    """A model with what reads for it."""

    model: PreTrainedModel
    processor: ProcessorMixin
    family: Family

    @torch.inference_mode()
    def measure_losses(self, rows: Dataset, batch_size: int) -> list[dict[str, Any]]:
        """
        Measures divergence and token losses, teacher = text-rich side, on the answer of the pair.

        Args:
            rows ([`~datasets.Dataset`]):
                Checked pairs with `length`.
            batch_size (`int`):
                Pairs in a batch.

        Returns:
            Per pair `forward_kl` and `reverse_kl` in nats per answer token, `num_tokens`, `losses` (mean of the
            text-rich and of the vision-rich side) and `tokens`: the answer in pieces `[text, loss on the text-rich
            side, loss on the vision-rich side]`. Values that are not finite are `None`.

        Raises:
            EvaluationError: if the text of tokens cannot be told.
        """
        collator = DataCollatorForPumaPairs(self.processor, self.family, placeholder_sides=())
        lengths = rows["length"][:]
        # the longest first, so that a batch too large for the memory fails at once
        order = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)
        results: list[dict[str, Any]] = [{}] * len(rows)
        with Progress("losses", len(rows)) as progress:
            for start in range(0, len(order), batch_size):
                positions = order[start : start + batch_size]
                pairs = [rows[position] for position in positions]
                student, teacher = (answer_logits(self.model, side) for side in split_sides(collator(pairs)))
                divergences = divergence_per_pair(student, teacher)
                for position, pair, divergence, *sides in zip(
                    positions, pairs, divergences, teacher, student, strict=True
                ):
                    losses = [cross_entropy(logits, labels, reduction="none").tolist() for logits, labels in sides]
                    answer = render_answer(self.processor, pair["output_2"])
                    texts = split_answer(self.processor.tokenizer, answer, sides[0][1].tolist())
                    results[position] = _round(divergence, losses, texts)
                progress.advance(len(positions))
        return results

    def reply(self, rows: Dataset, batch_size: int, max_new_tokens: int | None) -> list[list[tuple[str, bool]]]:
        """
        Answers every problem greedily on both sides.

        Args:
            rows ([`~datasets.Dataset`]):
                Checked pairs with `num_answer_tokens`.
            batch_size (`int`):
                Prompts in a batch.
            max_new_tokens (`int`, *optional*):
                Longest reply. Defaults to a quarter more than the longest answer.

        Returns:
            Per pair the reply on the text-rich and on the vision-rich side, each with whether it is right.
        """
        generator = Generator(self.model, self.processor, batch_size, longest_reply(rows, max_new_tokens))
        answers = answer_pairs(generator, rows, "preview")
        return [[(pair[f"{side}_reply"], pair[f"{side}_correct"]) for side in SIDES] for pair in answers]


def load_model(path: str, dtype: str) -> LoadedModel:
    """
    Loads a model to measure with.

    Raises:
        EvaluationError: if the folder lacks the model, its processor or its chat template.
    """
    model, processor = load_for_generation(path, dtype)
    return LoadedModel(model, processor, get_family(model.config))


def split_answer(tokenizer: PreTrainedTokenizerBase, answer: str, ids: list[int]) -> list[str]:
    """
    Returns the piece of an answer that each of its tokens stands for; together they are the answer.

    A token that ends inside a character has the empty text, and the one that completes the character has it.

    Raises:
        EvaluationError: if the tokenizer is a slow one, or makes other tokens of the answer.
    """
    if not tokenizer.is_fast:
        raise EvaluationError(
            f"{type(tokenizer).__name__} does not tell which text a token stands for. Save a fast tokenizer "
            "(tokenizer.json) with the model."
        )
    encoding = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
    if encoding["input_ids"] != ids:
        raise EvaluationError(f"The tokenizer makes other tokens of the answer {answer!r} than the processor.")
    ends = list(accumulate((end for _, end in encoding["offset_mapping"]), max))
    ends[-1] = len(answer)
    pieces, start = [], 0
    for end, following in zip(ends, [*ends[1:], math.inf], strict=True):
        # several tokens of one character all have its end
        stop = end if following > end else start
        pieces.append(answer[start:stop])
        start = stop
    return pieces


def _round(divergence: dict[str, float], losses: list[list[float]], texts: list[str]) -> dict[str, Any]:
    """Brings the measures of a pair into the form of the page; the losses of one character's tokens are added."""
    tokens, waiting = [], [0.0, 0.0]
    for text, *values in zip(texts, *losses, strict=True):
        waiting = [sum(pair) for pair in zip(waiting, values, strict=True)]
        if text:
            tokens.append([text, *map(_finite, waiting)])
            waiting = [0.0, 0.0]
    kl = {name: _finite(divergence[name]) for name in ("forward_kl", "reverse_kl")}
    means = [_finite(sum(side) / len(side)) for side in losses]
    return kl | {"num_tokens": divergence["num_tokens"], "losses": means, "tokens": tokens}


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
