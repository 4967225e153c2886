"""
The model types of the released Math-PUMA checkpoints: how their tensors are named natively, and their native
configuration.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import (
    AutoConfig,
    DeepseekVLHybridConfig,
    PreTrainedConfig,
    ProcessorMixin,
    SamVisionConfig,
    SiglipVisionConfig,
)

from ..errors import CheckpointError
from ..models.families import deepseek_vl_hybrid, math_puma_qwen2
from ..models.families.math_puma_qwen2 import MathPumaQwen2Config


# The sizes behind the names that a DeepSeek configuration gives its two towers. The MLPs are four times as wide.
TOWER_SIZES: dict[str, dict[str, Any]] = {
    "sam_b_downsample": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 1024,
        "patch_size": 16,
        "window_size": 14,
        "global_attn_indexes": [2, 5, 8, 11],
        "output_channels": 256,
    },
    "siglip_large_patch16_384": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 16,
    },
}

# Beginning of an original name → beginnings of the native names that the tensor is split among; the first match
# counts.
Rules = tuple[tuple[str, tuple[str, ...]], ...]

LANGUAGE_RULES: Rules = (
    (r"language_model\.model\.", ("model.language_model.",)),
    (r"language_model\.lm_head\.", ("lm_head.",)),
)

QWEN_RULES: Rules = (
    (r"vision_model\.vision_model\.", ("model.vision_tower.",)),
    (r"aligner\.(gate|up|down)_proj\.", (r"model.multi_modal_projector.\1_proj.",)),
    *LANGUAGE_RULES,
)


def _hybrid_rules() -> Rules:
    high, low = (rf"vision_model\.vision_tower_{tower}\.vision_tower\." for tower in ("high", "low"))
    sam, siglip = "model.high_res_vision_model.vision_encoder.", "model.vision_model."
    neck = ("conv1", "layer_norm1", "conv2", "layer_norm2")
    return (
        (rf"{high}pos_embed$", (f"{sam}pos_embed",)),
        (rf"{high}patch_embed\.proj\.", (f"{sam}patch_embed.projection.",)),
        (rf"{high}blocks\.(\d+)\.norm([12])\.", (rf"{sam}layers.\1.layer_norm\2.",)),
        (rf"{high}blocks\.(\d+)\.(attn|mlp)\.", (rf"{sam}layers.\1.\2.",)),
        *((rf"{high}neck\.{i}\.", (f"{sam}neck.{name}.",)) for i, name in enumerate(neck)),
        *((rf"{high}neck_hd\.{i}\.", (f"model.high_res_vision_neck.{name}.",)) for i, name in enumerate(neck)),
        *((rf"{high}downsamples\.{i}\.", (f"model.high_res_vision_proj.conv{i + 1}.",)) for i in range(2)),
        (rf"{high}hd_alpha_downsamples$", ("model.high_res_vision_alpha",)),
        (rf"{low}pos_embed$", (f"{siglip}embeddings.position_embedding.weight",)),
        (rf"{low}patch_embed\.proj\.", (f"{siglip}embeddings.patch_embedding.",)),
        (rf"{low}norm\.", (f"{siglip}post_layernorm.",)),
        (rf"{low}blocks\.(\d+)\.attn\.qkv\.", tuple(rf"{siglip}encoder.layers.\1.self_attn.{x}_proj." for x in "qkv")),
        (rf"{low}blocks\.(\d+)\.attn\.proj\.", (rf"{siglip}encoder.layers.\1.self_attn.out_proj.",)),
        (rf"{low}blocks\.(\d+)\.norm([12])\.", (rf"{siglip}encoder.layers.\1.layer_norm\2.",)),
        (rf"{low}blocks\.(\d+)\.mlp\.fc([12])\.", (rf"{siglip}encoder.layers.\1.mlp.fc\2.",)),
        (r"aligner\.low_up_proj\.", ("model.aligner.vision_proj.",)),
        (r"aligner\.high_up_proj\.", ("model.aligner.high_res_vision_proj.",)),
        (r"aligner\.layers\.1\.", ("model.aligner.proj.",)),
        *LANGUAGE_RULES,
        # without effect in the original
        (r"vision_model\.(high|low)_layer_norm\.", ()),
        (rf"{low}attn_pool\.", ()),
    )


def _language_config(config: dict[str, Any], key: str, default_type: str) -> PreTrainedConfig:
    """Returns the language model's configuration, with `tie_word_embeddings` as the original read it."""
    values = {"tie_word_embeddings": config.get("tie_word_embeddings", False)} | _section(config, key)
    return AutoConfig.for_model(values.pop("model_type", default_type), **values)


def _section(config: dict[str, Any], key: str) -> dict[str, Any]:
    """Returns a section of the original configuration without what describes the file it came from."""
    if not isinstance(config.get(key), dict):
        raise CheckpointError(f"The configuration has no section `{key}`. Is its config.json complete?")
    foreign = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
    return {name: value for name, value in config[key].items() if name not in foreign}


def _qwen_config(config: dict[str, Any]) -> MathPumaQwen2Config:
    vision_config = SiglipVisionConfig(**_section(config, "vision_config"))
    text_config = _language_config(config, "text_config", "qwen2")
    names = ("image_token_index", "projector_hidden_act", "vision_feature_layer", "vision_feature_select_strategy")
    native = MathPumaQwen2Config(
        text_config=text_config,
        vision_config=vision_config,
        tie_word_embeddings=text_config.tie_word_embeddings,
        **{name: config[name] for name in names if name in config},
    )
    num_patches = (vision_config.image_size // vision_config.patch_size) ** 2
    native.image_seq_length = num_patches - (native.vision_feature_select_strategy == "default")
    return native


def _hybrid_config(config: dict[str, Any]) -> DeepseekVLHybridConfig:
    text_config = _language_config(config, "language_config", "llama")
    if text_config.vocab_size > 100001:  # DeepSeek's vocabulary; the original configuration keeps LLaMA's 1 and 2
        text_config.bos_token_id, text_config.eos_token_id = 100000, 100001
    vision = _section(config, "vision_config")
    params = vision.get("params", vision)
    if "high_res_cfg" not in params or "low_res_cfg" not in params:
        raise CheckpointError(
            f"The vision tower '{vision.get('cls')}' of this `multi_modality` checkpoint is not the hybrid of two "
            "towers that Math-PUMA_DeepSeek-Math-VL has (`high_res_cfg` and `low_res_cfg`)."
        )
    low = _tower_sizes(params["low_res_cfg"])
    low = {"intermediate_size": 4 * low["hidden_size"], "hidden_act": "gelu", "vision_use_head": False} | low
    return DeepseekVLHybridConfig(
        text_config=text_config,
        vision_config=SiglipVisionConfig(**low),
        high_res_vision_config=SamVisionConfig(**_tower_sizes(params["high_res_cfg"])),
        image_token_id=config.get("image_token_id", config.get("image_token_index", 100015)),
        tie_word_embeddings=text_config.tie_word_embeddings,
    )


def _tower_sizes(tower: dict[str, Any]) -> dict[str, Any]:
    name = tower.get("model_name")
    if name not in TOWER_SIZES:
        raise CheckpointError(f"The vision tower '{name}' is unknown. Known towers: {', '.join(TOWER_SIZES)}.")
    if tower.get("select_layer", -1) != -1:
        raise CheckpointError(
            f"The vision tower '{name}' has `select_layer: {tower['select_layer']}`, but only -1 is native."
        )
    sizes = dict(TOWER_SIZES[name])
    if "image_size" in tower:
        sizes["image_size"] = tower["image_size"]
    return sizes


@dataclass(frozen=True)
class Original:
    """
    One of the original model types.

    Args:
        rules (`Rules`):
            How its tensors are named natively.
        native_config (`Callable[[dict], PreTrainedConfig]`):
            Makes the native configuration from the original.
        image_token (`str`):
            The token that stands for an image.
        build_processor (`Callable[[PreTrainedTokenizerBase, PreTrainedConfig], ProcessorMixin]`):
            Makes the processor.
        pad_token (`str`, *optional*):
            Padding where the tokenizer has none. `None` is its end token.
    """

    rules: Rules
    native_config: Callable[[dict[str, Any]], PreTrainedConfig]
    image_token: str
    build_processor: Callable[..., ProcessorMixin]
    pad_token: str | None = None


ORIGINALS = {
    "qwen2vlm": Original(
        QWEN_RULES, _qwen_config, math_puma_qwen2.IMAGE_TOKEN, math_puma_qwen2.build_processor, "<|endoftext|>"
    ),
    "multi_modality": Original(
        _hybrid_rules(), _hybrid_config, deepseek_vl_hybrid.IMAGE_TOKEN, deepseek_vl_hybrid.build_processor
    ),
}


def find_original(config: dict[str, Any]) -> Original:
    """
    Returns what is known of an original configuration's model type.

    Raises:
        CheckpointError: if the type is unknown.
    """
    model_type = config.get("model_type")
    if model_type not in ORIGINALS:
        hint = (
            " It is native already and needs no conversion."
            if model_type in ("llava", "deepseek_vl_hybrid", "math_puma_qwen2")
            else ""
        )
        raise CheckpointError(
            f"The model type '{model_type}' is unknown.{hint} What can be converted: {', '.join(ORIGINALS)}."
        )
    return ORIGINALS[model_type]
