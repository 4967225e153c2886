"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: one vision tower whose last modules, the mergers, are the aligner."""

from .family import Family


QWEN_VL = Family(
    model_types=("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
    parts={
        "language_model": ("model.language_model.", "lm_head."),
        # Qwen3-VL merges features of inner layers too, each with a merger of its own
        "aligner": ("model.visual.merger.", "model.visual.deepstack_merger_list."),
        "vision_tower_low": ("model.visual.",),
        "vision_tower_high": ("model.visual.",),
    },
    image_text="<|vision_start|><|image_pad|><|vision_end|>",
    padding_free=True,
)
