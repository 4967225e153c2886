"""
The network of Math-PUMA_Qwen2VL: LLaVA whose projector is a gated MLP, as native transformers classes.

Importing this module registers them, so that `AutoModelForImageTextToText` and `AutoProcessor` load a checkpoint of
model type `math_puma_qwen2`.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    SiglipImageProcessor,
)
from transformers.activations import ACT2FN
from transformers.configuration_utils import SubConfigSpec

from .chat import CHATML, IMAGE
from .family import Family


IMAGE_TOKEN = "<|image|>"

CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
""" + CHATML.replace(IMAGE, f"{IMAGE_TOKEN}\\n")


@strict
class MathPumaQwen2Config(LlavaConfig):
    r"""
    Configuration of [`MathPumaQwen2ForConditionalGeneration`]; the defaults are those of the 1.5B checkpoint's vision
    tower and aligner. See [`~transformers.LlavaConfig`] for the arguments.

    SigLIP has no class token, so `vision_feature_select_strategy="default"` leaves out the first patch: 728 image
    tokens remain of 27 x 27 patches.
    """

    model_type = "math_puma_qwen2"

    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="siglip_vision_model",
            init_kwargs={
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
                "image_size": 384,
                "patch_size": 14,
            },
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2"),
    }

    image_token_index: int = 151646
    image_seq_length: int = 728
    multimodal_projector_bias: bool = False


class MathPumaQwen2Projector(nn.Module):
    """
    The aligner: `down(act(gate(x)) * up(x))`, without biases.

    Args:
        config ([`MathPumaQwen2Config`]):
            `gate_proj` and `up_proj` go from the vision tower's width to the language model's width H, `down_proj`
            from H to H.
    """

    def __init__(self, config: MathPumaQwen2Config):
        super().__init__()
        vision_size, hidden_size = config.vision_config.hidden_size, config.text_config.hidden_size
        bias = config.multimodal_projector_bias
        self.gate_proj = nn.Linear(vision_size, hidden_size, bias=bias)
        self.up_proj = nn.Linear(vision_size, hidden_size, bias=bias)
        self.down_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.act_fn = ACT2FN[config.projector_hidden_act]

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Projects features (images, patches, vision width) to (images, patches, H)."""
        return self.down_proj(self.act_fn(self.gate_proj(image_features)) * self.up_proj(image_features))


class MathPumaQwen2Model(LlavaModel):
    """Vision tower, gated aligner and language model, without the language-model head."""

    config: MathPumaQwen2Config

    def __init__(self, config: MathPumaQwen2Config):
        super().__init__(config)
        self.multi_modal_projector = MathPumaQwen2Projector(config)
        self.post_init()


class MathPumaQwen2ForConditionalGeneration(LlavaForConditionalGeneration):
    """The model with its language-model head; the arguments of `forward` are those of LLaVA."""

    config: MathPumaQwen2Config

    def __init__(self, config: MathPumaQwen2Config):
        # not LLaVA's own, which would build tower and language model once more
        super(LlavaForConditionalGeneration, self).__init__(config)
        self.model = MathPumaQwen2Model(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


def build_processor(tokenizer: PreTrainedTokenizerBase, config: MathPumaQwen2Config) -> LlavaProcessor:
    """
    Builds the processor of the original: every picture is resized to the vision tower's square, bicubic, without
    keeping its proportions, and scaled to [-1, 1].

    The original resized with Pillow. `AutoProcessor.from_pretrained(..., backend="pil")` does so too, bit for bit; the
    default, torchvision, differs by a rounding step.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer whose `image_token` is `<|image|>`.
        config ([`MathPumaQwen2Config`]):
            Gives image size, patch size and the select strategy, hence the number of tokens of an image.
    """
    vision_config = config.vision_config
    size = {"height": vision_config.image_size, "width": vision_config.image_size}
    return LlavaProcessor(
        # Workaround (transformers 5.23, no upstream issue found): LLaVA's rule for counting image tokens reads the
        # crop size, though nothing is cropped
        image_processor=SiglipImageProcessor(size=size, crop_size=size, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
    )


MATH_PUMA_QWEN2 = Family(
    model_types=("math_puma_qwen2",),
    parts={
        "language_model": ("model.language_model.", "lm_head."),
        "aligner": ("model.multi_modal_projector.",),
        "vision_tower_low": ("model.vision_tower.",),
        "vision_tower_high": ("model.vision_tower.",),
    },
    padding_free=True,
)

AutoConfig.register("math_puma_qwen2", MathPumaQwen2Config)
AutoModel.register(MathPumaQwen2Config, MathPumaQwen2Model)
AutoModelForImageTextToText.register(MathPumaQwen2Config, MathPumaQwen2ForConditionalGeneration)
AutoProcessor.register(MathPumaQwen2Config, LlavaProcessor)
