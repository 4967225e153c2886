"""DeepSeek-VL-hybrid, the network of Math-PUMA_DeepSeek-Math-VL-7B: a SigLIP tower and a larger SAM tower."""

from transformers import (
    DeepseekVLHybridConfig,
    DeepseekVLHybridImageProcessor,
    DeepseekVLHybridProcessor,
    PreTrainedTokenizerBase,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling

from .chat import CONTENT, IMAGE
from .family import Family


IMAGE_TOKEN = "<image_placeholder>"

# The beginning-of-sequence token is part of the prompt: raw DeepSeek tokenizers do not add it.
CHAT_TEMPLATE = (
    """\
{{- bos_token -}}
{%- if messages[0]['role'] != 'system' -%}
{{- 'You are a helpful language and vision assistant. You are able to understand the visual content that the user \
provides, and assist the user with a variety of tasks using natural language.\\n\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- 'User: ' -}}
{%- elif message['role'] == 'assistant' -%}
{{- 'Assistant:' -}}
{%- endif -%}
"""
    + CONTENT.replace(IMAGE, IMAGE_TOKEN)
    + """\
{{- eos_token if message['role'] == 'assistant' else '\\n\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- 'Assistant:' -}}
{%- endif -%}
"""
)


def build_processor(tokenizer: PreTrainedTokenizerBase, config: DeepseekVLHybridConfig) -> DeepseekVLHybridProcessor:
    """
    Builds the processor of the original: the longer side of a picture is resized to the high resolution, the rest
    padded, and the low resolution made from that.

    The class's own defaults are not those of the original: its low-resolution image has SigLIP's mean and deviation
    and bilinear resizing. The shorter side is rounded where the original cut it off, so it may be one pixel longer.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer whose `image_token` is `<image_placeholder>`.
        config ([`~transformers.DeepseekVLHybridConfig`]):
            Gives the image sizes and the patch size, hence the number of tokens of an image.
    """
    low, high = config.vision_config, config.high_res_vision_config
    image_processor = DeepseekVLHybridImageProcessor(
        size={"height": low.image_size, "width": low.image_size},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        resample=PILImageResampling.BILINEAR,
        high_res_size={"height": high.image_size, "width": high.image_size},
        high_res_image_mean=OPENAI_CLIP_MEAN,
        high_res_image_std=OPENAI_CLIP_STD,
        high_res_resample=PILImageResampling.BICUBIC,
    )
    return DeepseekVLHybridProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
        num_image_tokens=(low.image_size // low.patch_size) ** 2,
    )


DEEPSEEK_VL_HYBRID = Family(
    model_types=("deepseek_vl_hybrid",),
    parts={
        "language_model": ("model.language_model.", "lm_head."),
        "aligner": ("model.aligner.",),
        "vision_tower_low": ("model.vision_model.",),
        # the SAM encoder, its second neck, the convolutions behind both and the weight of the second
        "vision_tower_high": ("model.high_res_vision_",),
    },
    padding_free=True,
)
