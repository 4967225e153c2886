"""`Family`: the facts about a model family."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """
    The facts about a model family that the recipe needs and transformers does not tell.

    Args:
        model_types (`tuple[str, ...]`):
            Values of `config.model_type` that belong to the family.
        parts (`dict[str, tuple[str, ...]]`):
            Trainable part → prefixes of its parameter names. A parameter belongs to the part with the longest matching
            prefix, so `model.visual.` may be the vision tower and `model.visual.merger.` the aligner inside it. A
            family with one vision tower has it under both tower names.
        image_text (`str`, *optional*):
            The text that stands for one image inside a rendered prompt. `None` is the processor's `image_token`.
        padding_free (`bool`, *optional*, defaults to `False`):
            Whether rows may stand one behind the other: all layers of the language model are told where rows end, and
            no token sees a later one.
    """

    model_types: tuple[str, ...]
    parts: dict[str, tuple[str, ...]]
    image_text: str | None = None
    padding_free: bool = False
