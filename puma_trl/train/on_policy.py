"""On-policy pairs: in a share of the micro-batches the student writes the answers that both sides are scored on."""

import copy
import hashlib
import math
import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from accelerate.logging import get_logger
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel, Trainer, TrainerState
from transformers.generation import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from ..config import PumaKLConfig
from ..data.opening import Opening
from ..data.padding_free import OnHost
from ..data.render import end_token_ids
from ..data.tokens import ControlTokens
from ..errors import ConfigError
from ..on_policy_config import OF_SAMPLING, WARPERS, check_on_policy
from .compare import find_changes, word_changes
from .completions import CompletionLog, sum_completions
from .sampling import count_real_rows
from .whole_model import name_unused, whole_model


logger = get_logger(__name__)

# Of what changes which answers are learned from, what needs no preparation
READ_EACH_TIME = ("on_policy_share", "mask_truncated_completions")


def is_on_policy(number: int, share: float, seed: int) -> bool:
    """
    Whether the student writes the answers of a micro-batch. They are spread evenly: of any n in a row it is
    `share * n`, rounded up or down.

    Args:
        number (`int`):
            Number of the micro-batch in the run, on all ranks the same.
        share (`float`):
            Share of such micro-batches.
        seed (`int`):
            Seed of where they begin.
    """
    # fractions, because rounding would move a micro-batch of a long run
    step, start = Fraction(str(share)), Fraction(random.Random(f"on-policy {seed}").random())
    return math.floor((number + 1) * step + start) > math.floor(number * step + start)


class GumbelNoise(LogitsProcessor):
    """
    Adds noise after which the largest score is an exact sample, each row's from a generator of its own: what a row
    samples depends neither on the rows beside it nor on the process.

    Args:
        generators (`Sequence[torch.Generator]`):
            Generators of the rows, on the device of the scores.
    """

    def __init__(self, generators: Sequence[torch.Generator]):
        self.generators = generators

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        # in single precision a number in 16 million is 0, which would be the largest noise of all, and sampled
        noise = torch.empty_like(scores, dtype=torch.double)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores.double() - noise.clamp_min_(2**-60).log_()


def make_warpers(args: PumaKLConfig, device: torch.device | str) -> LogitsProcessorList:
    """Returns what `generate` makes of the settings when it samples, in its order."""
    kwargs = {name: (args.generation_kwargs or {}).get(name) for name in WARPERS}
    warpers: list[Any] = []
    if args.temperature != 1:
        warpers.append(TemperatureLogitsWarper(float(args.temperature)))
    if kwargs["top_h"] is not None:
        warpers.append(TopHLogitsWarper(kwargs["top_h"]))
    if args.top_k:
        warpers.append(TopKLogitsWarper(args.top_k))
    if args.top_p < 1:
        warpers.append(TopPLogitsWarper(args.top_p))
    if args.min_p is not None:
        warpers.append(MinPLogitsWarper(args.min_p))
    if kwargs["typical_p"] is not None:
        warpers.append(TypicalLogitsWarper(kwargs["typical_p"]))
    if kwargs["epsilon_cutoff"] is not None:
        warpers.append(EpsilonLogitsWarper(kwargs["epsilon_cutoff"]))
    if kwargs["eta_cutoff"] is not None:
        warpers.append(EtaLogitsWarper(kwargs["eta_cutoff"], device=device))
    return LogitsProcessorList(warpers)


class OnPolicy:
    """Lets the student write the answers of micro-batches."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.args = trainer, trainer.args
        self._base = trainer.accelerator.unwrap_model(trainer.model)
        self.log = CompletionLog(trainer.processing_class.tokenizer) if self.args.log_completions else None
        if self.log is not None:
            trainer.add_callback(self.log)
        self._settings = self._read_settings()
        self.ends = self._settings["eos_token_id"]
        self._never = self._find_suppressed(self._base.config.get_text_config().vocab_size)
        self.vllm = None
        if self.args.use_vllm:
            from .vllm_sampling import VLLMSampler  # which takes a while to import

            self.vllm = VLLMSampler(trainer, self.ends, self._never.difference(self.ends))
        else:
            self.config = self._make_config()

    def _find_suppressed(self, vocab_size: int) -> set[int]:
        """
        Returns the tokens that no answer has, unless they end one: those of pictures and turns, and those that a side
        does not know. An answer may have the thought that its opening leaves to it.
        """
        readers = [self.trainer.processing_class]
        if self.trainer.teacher_side is not None:
            readers.append(self.trainer.teacher_side.processor)
        control = [ControlTokens(reader) for reader in readers]
        unknown = set(range(vocab_size)).difference(
            set.intersection(*(set(each.tokenizer.get_vocab().values()) for each in control))
        )
        never = (
            each.ids.difference(each.tokenizer.convert_tokens_to_ids(sorted(Opening(each.processor).writable)))
            for each in control
        )
        return unknown.union(*never)

    def _read_settings(self) -> dict[str, Any]:
        """Returns what sampling depends on, as it is at the moment."""
        settings = {name: getattr(self.args, name) for name in OF_SAMPLING if name not in READ_EACH_TIME}
        ends = end_token_ids(self.trainer.processing_class, self._base.generation_config)
        return copy.deepcopy(settings) | {"eos_token_id": ends}

    def _make_config(self) -> GenerationConfig:
        args, processor = self.args, self.trainer.processing_class
        kwargs, suppressed = dict(args.generation_kwargs or {}), self._never.difference(self.ends)
        _require_words(kwargs, self._base.config.get_text_config().vocab_size, suppressed, self.ends)
        return GenerationConfig(
            do_sample=False,  # the noise does it
            eos_token_id=self.ends,
            max_new_tokens=args.max_completion_length,
            pad_token_id=processor.tokenizer.pad_token_id,
            repetition_penalty=args.repetition_penalty,
            suppress_tokens=sorted({*suppressed, *(kwargs.pop("suppress_tokens", None) or [])}),
            use_cache=True,
            **{name: value for name, value in kwargs.items() if name not in WARPERS},
        )

    def _follow_settings(self) -> None:
        """Takes up what was changed since the last sampling; vLLM keeps to what it was started with, which is told."""
        if self.vllm is not None:
            name_unused(self.trainer, self._base.generation_config)
        now = self._read_settings()
        changed = find_changes(self._settings, now)
        if changed and self.vllm is not None:
            logger.warning(
                f"Without effect: {word_changes(changed)}. vLLM keeps to the settings that the trainer was made with; "
                "make a new one."
            )
        elif changed:
            check_on_policy(self.args)
            self.ends = now["eos_token_id"]
            self.config = self._make_config()
        self._settings = now

    def _count_micro_batches(self, step: int) -> int:
        """Returns the number of micro-batches before an optimizer step; the last step of an epoch may have fewer."""
        size, loader = self.args.gradient_accumulation_steps, self.trainer.callback_handler.train_dataloader
        if not hasattr(loader, "__len__"):  # outside of a training
            return step * size
        epochs, steps = divmod(step, math.ceil(len(loader) / size))
        return epochs * len(loader) + steps * size

    def tell_if_idle(self, state: TrainerState) -> None:
        """Warns at the beginning of a training if the share is so small that it has no such micro-batch."""
        args, count = self.args, self._count_micro_batches(state.max_steps)
        if args.on_policy_share * count >= 1:
            return
        if not any(is_on_policy(number, args.on_policy_share, args.seed) for number in range(count)):
            logger.warning(
                f"`on_policy_share: {args.on_policy_share:g}` is of the {count:,} micro-batches of this run none, so "
                "no answer is sampled. Raise it, or leave it out."
            )

    def write_answers(self, batches: list[dict[str, Any]]) -> None:
        """
        Puts the student's answers into those of an optimizer step's micro-batches that are on-policy, in place.

        Such a batch has `completions` besides, the sums over its answers in the order of `COMPLETION_SUMS`.
        """
        args, accelerator, step = self.args, self.trainer.accelerator, self.trainer.state.global_step
        first = self._count_micro_batches(step)
        chosen = [
            batch
            for number, batch in enumerate(batches, first)
            if is_on_policy(number, args.on_policy_share, args.seed)
        ]
        if not chosen:
            return
        self._follow_settings()
        if self.vllm is not None:
            sampled = self.vllm.sample(chosen, step)
        else:
            with whole_model(self.trainer) as model, accelerator.autocast():
                sampled = [self.sample(model, batch, step) for batch in chosen]
        if self.log is not None:
            self.log.keep([each for batch in chosen for each in batch["prompts"].rows()], sum(sampled, []))
        for batch, answers in zip(chosen, sampled, strict=True):
            clipped = [answer[-1] not in self.ends for answer in answers]
            dropped = [row for row, is_clipped in enumerate(clipped) if is_clipped and args.mask_truncated_completions]
            self.trainer.data_collator.write_answers(batch, answers, dropped)
            real = None  # all of them count
            if batch is batches[-1]:
                real = count_real_rows(batch, accelerator, args.dataloader_drop_last, False)
            batch["completions"] = sum_completions(answers[:real], clipped[:real]).to(batch["input_ids"].device)

    def sample(self, model: PreTrainedModel, batch: dict[str, Any], step: int) -> list[list[int]]:
        """
        Samples an answer to each prompt of the vision-rich side.

        Args:
            model ([`~transformers.PreTrainedModel`]):
                The student with all its weights.
            batch (`dict[str, Any]`):
                A batch of the collator.
            step (`int`):
                Optimizer steps taken, which the noise depends on beside seed and row.

        Returns:
            `list[list[int]]`: the tokens of the answers, with the ends of those that came to one.
        """
        prompts, device = batch["prompts"], batch["input_ids"].device
        inputs = {name: value.to(device) for name, value in prompts.padded_left().items()}
        for name in prompts.pictures:
            value = batch[name].value if isinstance(batch[name], OnHost) else batch[name]
            inputs[name] = value.to(device, model.dtype if value.is_floating_point() else None)
        seeds = [f"{self.args.seed} {step} {row_id}" for row_id in batch["row_id"]]
        noise = GumbelNoise([_make_generator(seed, device) for seed in seeds])
        processors = LogitsProcessorList([*make_warpers(self.args, device), noise])
        # `generate` fills what is unset from the model's own configuration, so that is replaced
        model.generation_config = self.config
        # each process has all weights, and so need not go on until the last of them has come to an end
        tokens = model.generate(**inputs, logits_processor=processors, synced_gpus=False)
        ends, width = set(self.ends), inputs["input_ids"].shape[1]
        return [_cut(row, ends) for row in tokens[:, width:].tolist()]


def _require_words(kwargs: dict[str, Any], vocab_size: int, suppressed: set[int], ends: Sequence[int]) -> None:
    """
    Makes sure that `generation_kwargs` name tokens of the model, and leave some to write and one to end with.

    Args:
        kwargs (`dict[str, Any]`):
            The setting.
        vocab_size (`int`):
            Number of the model's tokens.
        suppressed (`set[int]`):
            Tokens that are never written, whatever the setting says.
        ends (`Sequence[int]`):
            Tokens that end an answer.
    """
    bias = kwargs.get("sequence_bias") or []
    sequences = {
        "suppress_tokens": [kwargs.get("suppress_tokens") or []],
        "begin_suppress_tokens": [kwargs.get("begin_suppress_tokens") or []],
        "bad_words_ids": kwargs.get("bad_words_ids") or [],
        "sequence_bias": list(bias) if isinstance(bias, dict) else [words for words, _ in bias],
    }
    for name, found in sequences.items():
        if unknown := [token for words in found for token in words if token >= vocab_size]:
            raise ConfigError(
                f"`generation_kwargs` has the token {unknown[0]} in `{name}`, but the model knows tokens up to "
                f"{vocab_size - 1}. Leave it out."
            )
    never = suppressed.union(*sequences["suppress_tokens"])
    if never.issuperset(ends):
        raise ConfigError(
            f"`generation_kwargs` suppresses every token that ends an answer ({', '.join(map(str, ends))}), so all "
            "would be cut off at `max_completion_length`. Leave one out of `suppress_tokens`."
        )
    if never.union(*sequences["begin_suppress_tokens"]).issuperset(set(range(vocab_size)).difference(ends)):
        raise ConfigError(
            "`generation_kwargs` suppresses every token that an answer can begin with. Leave some out of "
            "`suppress_tokens` or `begin_suppress_tokens`."
        )


def _make_generator(seed: str, device: torch.device) -> torch.Generator:
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
    return torch.Generator(device).manual_seed(number)


def _cut(tokens: list[int], ends: set[int]) -> list[int]:
    """Returns the tokens up to the first end, and with it."""
    length = next((place for place, token in enumerate(tokens, 1) if token in ends), len(tokens))
    return tokens[:length]
