"""Qwen2-VL and Qwen2.5-VL: one vision tower whose last module, the merger, is the aligner."""

from . import Family


QWEN_VL = Family(
    model_types=("qwen2_vl", "qwen2_5_vl"),
    parts={
        "language_model": ("model.language_model.", "lm_head."),
        "aligner": ("model.visual.merger.",),
        "vision_tower_low": ("model.visual.",),
        "vision_tower_high": ("model.visual.",),
    },
    image_text="<|vision_start|><|image_pad|><|vision_end|>",
)
