"""Gemma 3, whose layout is LLaVA's. The tokens of a picture see each other both ways, so its batches are padded."""

from .family import Family


GEMMA3 = Family(
    model_types=("gemma3",),
    parts={
        "language_model": ("model.language_model.", "lm_head."),
        "aligner": ("model.multi_modal_projector.",),
        "vision_tower_low": ("model.vision_tower.",),
        "vision_tower_high": ("model.vision_tower.",),
    },
)
