"""The settings of on-policy pairs, whose answers the student writes itself: `OnPolicyConfig`."""

from dataclasses import dataclass, field, fields
from typing import Any

from transformers import GenerationConfig
from transformers.generation import (
    ExponentialDecayLengthPenalty,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from .errors import ConfigError
from .fields import given_fields


# What `generation_kwargs` may say of the next token, each a share
WARPERS = ("top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
# What it may say besides; all else is decided elsewhere, or is not sampling
OF_GENERATION_KWARGS = (
    *WARPERS,
    "bad_words_ids",
    "begin_suppress_tokens",
    "cache_implementation",
    "exponential_decay_length_penalty",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "remove_invalid_values",
    "sequence_bias",
    "suppress_tokens",
)
# Those that transformers looks at when it samples, and not before; it leaves out a size below 1 without a word
_PROCESSORS = {
    "bad_words_ids": NoBadWordsLogitsProcessor,
    "exponential_decay_length_penalty": lambda value: ExponentialDecayLengthPenalty(value, 0, 0),
    "no_repeat_ngram_size": NoRepeatNGramLogitsProcessor,
    "sequence_bias": SequenceBiasLogitsProcessor,
}
# Field of ours → what it is called in `generate`
_OURS = {"max_completion_length": ("max_new_tokens", "max_length")} | {
    name: (name,) for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
}

# All that a `GenerationConfig` says of sampling, but for the tokens that end an answer
OF_GENERATION = ("do_sample", "num_beams", *(name for each in _OURS.values() for name in each), *OF_GENERATION_KWARGS)


@dataclass
class OnPolicyConfig:
    r"""
    The part of [`PumaKLConfig`] that is for on-policy pairs. Names and defaults are TRL's, where it has them.

    Args:
        on_policy_share (`float`, *optional*, defaults to `0.0`):
            Share of the micro-batches in which the student writes the answers itself, from the vision-rich prompts.
            The teacher scores the same tokens behind the text-rich prompts, and the loss is the KL term alone. Where
            it is above 0, rows need no answer; such rows count in these micro-batches only.
        max_completion_length (`int`, *optional*, defaults to `512`):
            Longest answer in tokens.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature. The temperature of the KL term is `temp_kl`.
        top_p (`float`, *optional*, defaults to `1.0`):
            Share of probability that is sampled from.
        top_k (`int`, *optional*, defaults to `0`):
            Number of the likeliest tokens that are sampled from; 0 means all.
        min_p (`float`, *optional*):
            Least probability of a token, as a share of that of the likeliest one.
        repetition_penalty (`float`, *optional*, defaults to `1.0`):
            Penalty above 1 for tokens that prompt or answer have already.
        generation_kwargs (`dict[str, Any]`, *optional*):
            Further fields of [`~transformers.GenerationConfig`], such as `{no_repeat_ngram_size: 8}`, or with
            `use_vllm` of vLLM's `SamplingParams`: `bad_words`, `frequency_penalty`, `presence_penalty`, `min_tokens`.
        mask_truncated_completions (`bool`, *optional*, defaults to `False`):
            Whether answers that are cut off at `max_completion_length` are left out of the loss.
        log_completions (`bool`, *optional*, defaults to `False`):
            Whether to print some prompts and answers at each log, and to log them to Weights & Biases and Trackio.
        num_completions_to_print (`int`, *optional*):
            Number of answers to print. Defaults to all that the main process has sampled in the last step.
    """

    on_policy_share: float = field(
        default=0.0,
        metadata={"help": "Share of the micro-batches in which the student writes the answers itself."},
    )
    max_completion_length: int = field(default=512, metadata={"help": "Longest sampled answer in tokens."})
    temperature: float = field(
        default=1.0, metadata={"help": "Sampling temperature of answers; that of the KL term is `temp_kl`."}
    )
    top_p: float = field(default=1.0, metadata={"help": "Share of probability that answers are sampled from."})
    top_k: int = field(
        default=0, metadata={"help": "Number of the likeliest tokens that answers are sampled from; 0 means all."}
    )
    min_p: float | None = field(
        default=None, metadata={"help": "Least probability of a token, as a share of that of the likeliest one."}
    )
    repetition_penalty: float = field(
        default=1.0, metadata={"help": "Penalty above 1 for tokens that prompt or answer have already."}
    )
    generation_kwargs: dict | str | None = field(
        default=None,
        metadata={"help": "Further fields of `GenerationConfig`, or with vLLM of `SamplingParams`."},
    )
    mask_truncated_completions: bool = field(
        default=False,
        metadata={"help": "Leave answers that are cut off at `max_completion_length` out of the loss."},
    )
    log_completions: bool = field(
        default=False, metadata={"help": "Print and log some prompts and sampled answers at each log."}
    )
    num_completions_to_print: int | None = field(
        default=None, metadata={"help": "Number of answers to print; by default those of the last step."}
    )


OF_ON_POLICY = tuple(field.name for field in fields(OnPolicyConfig) if field.name != "on_policy_share")
# What changes which answers are learned from
OF_SAMPLING = (
    "on_policy_share",
    *(name for name in OF_ON_POLICY if name not in ("log_completions", "num_completions_to_print")),
)


def check_on_policy(args: Any) -> None:
    """
    Makes sure that on-policy pairs are pairs, and that what is said of sampling has an effect.

    Raises:
        ConfigError: if settings do not go together, or `generation_kwargs` has what is decided elsewhere.
    """
    if not args.on_policy_share and (given := given_fields(args, OF_ON_POLICY)):
        raise ConfigError(
            f"`{given[0]}: {getattr(args, given[0])}` is for answers that the student writes itself, but "
            "`on_policy_share` is 0. Set `on_policy_share`, or leave it out."
        )
    if args.on_policy_share and not args.use_kl:
        raise ConfigError(
            f"`on_policy_share: {args.on_policy_share}` does not go with `use_kl: false`: that step has no teacher to "
            "score sampled answers. Leave out one of them."
        )
    kwargs = args.generation_kwargs
    if kwargs is None:
        return
    if not isinstance(kwargs, dict):
        raise ConfigError(
            f"`generation_kwargs` is {kwargs!r}, but it must map fields of `GenerationConfig` to values: "
            "`{no_repeat_ngram_size: 8}`."
        )
    for ours, names in _OURS.items():
        if found := [name for name in names if name in kwargs]:
            raise ConfigError(f"`generation_kwargs` has `{found[0]}`. Set `{ours}` instead.")
    if args.use_vllm:
        return  # which takes others, see `check_vllm`
    if unknown := sorted(kwargs.keys() - set(OF_GENERATION_KWARGS)):
        raise ConfigError(
            f"`generation_kwargs` has `{unknown[0]}`, which is decided elsewhere or is not of sampling. It may have "
            f"{', '.join(OF_GENERATION_KWARGS)}."
        )
    if bad := [name for name in WARPERS if name in kwargs and not _is_share(kwargs[name])]:
        raise ConfigError(
            f"`generation_kwargs` has `{bad[0]}: {kwargs[bad[0]]}`, but it must be a number between 0 and 1."
        )
    if kwargs.get("cache_implementation") in ("paged", "quantized"):
        raise ConfigError(
            f"`generation_kwargs` has `cache_implementation: {kwargs['cache_implementation']}`, which needs settings "
            "that it cannot have. Take `static`, `dynamic` or `offloaded`."
        )
    _check_tokens(kwargs)
    _check_lengths(kwargs, args.max_completion_length)
    try:
        GenerationConfig(do_sample=True, **kwargs).validate(strict=True)
        for name, make in _PROCESSORS.items():
            if kwargs.get(name) is not None:
                make(kwargs[name])
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise ConfigError(f"`generation_kwargs: {kwargs}` cannot be used: {error}") from error


def _is_share(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < 1


def _check_tokens(kwargs: dict[str, Any]) -> None:
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        value = kwargs.get(name)
        if value is not None and not (isinstance(value, list) and all(map(_is_count, value))):
            raise ConfigError(f"`generation_kwargs` has `{name}: {value}`, but it must be a list of ids of tokens.")


def _check_lengths(kwargs: dict[str, Any], longest: int) -> None:
    """Makes sure that an answer may end before it is cut off."""
    least = kwargs.get("min_new_tokens")
    if least is None:
        return
    if not _is_count(least) or not 0 < least < longest:
        raise ConfigError(
            f"`generation_kwargs` has `min_new_tokens: {least}`, but it must be a whole number from 1 to below "
            f"`max_completion_length`, {longest}: no answer could end."
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
