"""What differs between model families: one small file each, found by `config.model_type`."""

from dataclasses import dataclass

from transformers import PretrainedConfig


@dataclass(frozen=True)
class Family:
    """
    The facts about a model family that the recipe needs and transformers does not tell.

    Args:
        model_types (`tuple[str, ...]`):
            Values of `config.model_type` that belong to the family.
        parts (`dict[str, tuple[str, ...]]`):
            Trainable part → prefixes of its parameter names. A parameter belongs to the part with the longest matching
            prefix, so `model.visual.` may be the vision tower and `model.visual.merger.` the aligner inside it.
        image_text (`str`, *optional*):
            The text that stands for one image inside a rendered prompt. `None` is the processor's `image_token`.
        end_of_answer (`str`, *optional*):
            The token that ends an answer. `None` is the tokenizer's `eos_token`.
    """

    model_types: tuple[str, ...]
    parts: dict[str, tuple[str, ...]]
    image_text: str | None = None
    end_of_answer: str | None = None


def get_family(config: PretrainedConfig) -> Family:
    """
    Returns the family of a model.

    Args:
        config ([`~transformers.PretrainedConfig`]):
            Configuration of the model; its `model_type` decides.

    Raises:
        ValueError: if no family is registered for the model type.
    """
    from . import qwen

    families = [qwen.QWEN_VL]
    for family in families:
        if config.model_type in family.model_types:
            return family
    known = sorted(name for family in families for name in family.model_types)
    raise ValueError(f"No model family is known for model type '{config.model_type}'. Known model types: {known}.")
