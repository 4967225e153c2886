"""The model in training with all its weights on this process, to generate with, under every engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.logging import get_logger
from transformers import GenerationConfig, PreTrainedModel, Trainer
from trl.models import unwrap_model_for_generation

from ..models.adapters import below_adapters
from ..on_policy_config import OF_GENERATION
from .compare import find_changes, word_changes


logger = get_logger(__name__)


def describe_generation(config: GenerationConfig | None) -> dict[str, Any]:
    """Returns what a model's `generation_config` says of sampling, the tokens that end an answer left out."""
    return {name: getattr(config, name, None) for name in OF_GENERATION}


def name_unused(trainer: Trainer, config: GenerationConfig | None) -> None:
    """
    Names what was changed in the `generation_config` of a model since its trainer was made: sampled answers and
    measurements of the gap follow it in the tokens that end an answer alone.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer, whose `generation_seen` is what [`describe_generation`] has returned before.
        config ([`~transformers.GenerationConfig`], *optional*):
            That of its model.
    """
    now = describe_generation(config)
    if changed := find_changes(trainer.generation_seen, now):
        logger.warning(
            f"Without effect in training: {word_changes(changed)} of `model.generation_config`. Sampled answers "
            "follow the settings of `PumaKLConfig`, and the gap is measured by the likeliest tokens."
        )
        trainer.generation_seen = now


@contextmanager
def whole_model(trainer: Trainer) -> Iterator[PreTrainedModel]:
    """
    Gives the model with all its weights on this process, in evaluation, and its state back in the end.

    Yields:
        The model, unwrapped from the engine and from adapters, whose layers stay.
    """
    tokenizer = trainer.processing_class.tokenizer
    side = tokenizer.padding_side
    how = {"gradient_checkpointing_kwargs": trainer.args.gradient_checkpointing_kwargs}
    with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator, **how) as unwrapped:
        model = below_adapters(unwrapped)
        config, training = model.generation_config, unwrapped.training
        name_unused(trainer, config)
        shards = _shards(unwrapped)
        # Trainer lets FSDP2 gather and divide the weights around each `generate`, together on all processes
        gathering = vars(model).pop("generate", None)
        unwrapped.eval()
        try:
            # Workaround (PyTorch 2.14, no upstream issue found): before the first step no forward has told FSDP2 which
            # module is the outermost, and parts of the model that are called by themselves would each be one
            for shard in shards[:1]:
                shard._get_fsdp_state()._lazy_init()
            for shard in shards:
                shard.set_reshard_after_forward(False, recurse=False)
                shard.unshard()
            with torch.inference_mode(False), torch.no_grad():
                yield model
        finally:
            for shard in shards:
                shard.reshard()
                shard.set_reshard_after_forward(True, recurse=False)
            unwrapped.train(training)
            if gathering is not None:
                model.generate = gathering
            model.generation_config, tokenizer.padding_side = config, side


def _shards(model: torch.nn.Module) -> list[Any]:
    """Returns the modules whose weights FSDP2 divides over the processes."""
    if not torch.distributed.is_available():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]
