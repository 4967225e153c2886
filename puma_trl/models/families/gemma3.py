"""Gemma 3: LLaVA's layout, and an end of turn that is not the tokenizer's end token."""

from .family import Family


GEMMA3 = Family(
    model_types=("gemma3",),
    parts={
        "language_model": ("model.language_model.", "lm_head."),
        "aligner": ("model.multi_modal_projector.",),
        "vision_tower_low": ("model.vision_tower.",),
        "vision_tower_high": ("model.vision_tower.",),
    },
    end_of_answer="<end_of_turn>",
)
