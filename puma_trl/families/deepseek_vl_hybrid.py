"""DeepSeek-VL-hybrid, the network of Math-PUMA_DeepSeek-Math-VL-7B: a SigLIP tower and a SAM tower of high resolution."""

from .family import Family


DEEPSEEK_VL_HYBRID = Family(
    model_types=("deepseek_vl_hybrid",),
    parts={
        "language_model": ("model.language_model.", "lm_head."),
        "aligner": ("model.aligner.",),
        "vision_tower_low": ("model.vision_model.",),
        # the SAM encoder, its second neck, the convolutions behind both and the weight of the second
        "vision_tower_high": ("model.high_res_vision_",),
    },
)
