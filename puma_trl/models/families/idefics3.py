"""Idefics3 and SmolVLM."""

from .family import Family


IDEFICS3 = Family(
    model_types=("idefics3", "smolvlm"),
    parts={
        "language_model": ("model.text_model.", "lm_head."),
        "aligner": ("model.connector.",),
        "vision_tower_low": ("model.vision_model.",),
        "vision_tower_high": ("model.vision_model.",),
    },
    padding_free=True,
)
