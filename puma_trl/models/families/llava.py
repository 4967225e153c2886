"""LLaVA and the models with its layout: LLaVA-NeXT, LLaVA-OneVision, InternVL."""

from .family import Family


LLAVA = Family(
    model_types=("llava", "llava_next", "llava_onevision", "internvl"),
    parts={
        "language_model": ("model.language_model.", "lm_head."),
        # the embedding that ends a row of image features, in LLaVA-NeXT and LLaVA-OneVision, came with the projector
        "aligner": ("model.multi_modal_projector.", "model.image_newline"),
        "vision_tower_low": ("model.vision_tower.",),
        "vision_tower_high": ("model.vision_tower.",),
    },
    padding_free=True,
)
