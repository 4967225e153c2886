"""
Converts the released Math-PUMA checkpoints, which load in the original code only, to native transformers checkpoints.

```bash
python -m puma_trl.convert Math-PUMA/Math-PUMA_Qwen2VL-1.5B models/Math-PUMA_Qwen2VL-1.5B
python -m puma_trl.convert downloads/Math-PUMA_DeepSeek-Math-VL-7B models/Math-PUMA_DeepSeek-Math-VL-7B
```

`qwen2vlm` becomes `math_puma_qwen2`, a LLaVA with a gated aligner, and `multi_modality` becomes `deepseek_vl_hybrid`. The
weights are read and written shard by shard. Nothing is written unless every tensor of the source was used, or is known
to be unused, and every tensor of the native model filled.
"""

import argparse
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    DeepseekVLHybridConfig,
    PreTrainedConfig,
    ProcessorMixin,
    SamVisionConfig,
    SiglipVisionConfig,
)

from ..errors import CheckpointError
from ..models.families import deepseek_vl_hybrid, math_puma_qwen2
from ..models.families.math_puma_qwen2 import MathPumaQwen2Config
from ..record.hub import push_or_exit
from .files import CheckpointFiles, new_folder, read_json, require_new, write_shards
from .tokenizer import check_prompt, load_tokenizer, make_generation_config


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

EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"

# Beginning of an original name → beginnings of the native names that the tensor is split among; the first match counts.
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


def _rename(name: str, rules: Rules) -> list[str] | None:
    """Returns the native names that a tensor is split among, none if it is without effect, `None` if it is unknown."""
    for pattern, targets in rules:
        if match := re.match(pattern, name):
            return [match.expand(target) + name[match.end() :] for target in targets]
    return None


def _convert_tensor(name: str, tensor: torch.Tensor, rules: Rules) -> dict[str, torch.Tensor]:
    targets = _rename(name, rules) or []
    if len(targets) == 3:  # a fused projection of query, key and value
        return dict(zip(targets, tensor.tensor_split(3), strict=True))
    if name.endswith("vision_tower_low.vision_tower.pos_embed"):
        tensor = tensor.squeeze(0)
    return dict.fromkeys(targets, tensor)


def _listed(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:10])}{', …' if len(names) > 10 else ''})"


def _check(
    source: dict[str, torch.Tensor], native: dict[str, torch.Tensor], config: PreTrainedConfig, rules: Rules
) -> None:
    """Raises unless every tensor of the source is known and every tensor of the native model has one of its shape."""
    with torch.device("meta"):
        expected = AutoModelForImageTextToText.from_config(config).state_dict()
    filled = set(native) | ({HEAD} if config.tie_word_embeddings else set())
    unknown = [name for name in source if _rename(name, rules) is None or set(_rename(name, rules)) - set(expected)]
    missing = sorted(set(expected) - filled)
    misshapen = [
        f"{name}: {tuple(native[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in native and native[name].shape != tensor.shape
    ]
    problems = {
        "source tensors that this model type does not have": unknown,
        "native tensors that the source does not fill": missing,
        "native tensors whose shape contradicts the configuration": misshapen,
    }
    found = [f"{problem}: {_listed(names)}" for problem, names in problems.items() if names]
    if found:
        raise CheckpointError(
            "The weights and the configuration do not belong to one original Math-PUMA model. There are "
            + "; ".join(found)
            + ". Nothing was written."
        )


def _plan(config: dict[str, Any], shapes: dict[str, torch.Tensor]) -> tuple[Original, PreTrainedConfig]:
    """Returns what the type is and its native configuration, after checking names and shapes alone."""
    original = find_original(config)
    native_config = original.native_config(config)
    native = {}
    for name, tensor in shapes.items():
        native |= _convert_tensor(name, tensor, original.rules)
    _check(shapes, native, native_config, original.rules)
    # the widest type of all, so that no weight is rounded
    native_config.dtype = reduce(torch.promote_types, {tensor.dtype for tensor in shapes.values()})
    for name in native_config.sub_configs_defaults:
        getattr(native_config, name).dtype = native_config.dtype
    return original, native_config


def _untie_if_different(config: PreTrainedConfig, embedding: torch.Tensor, head: torch.Tensor) -> None:
    """Unties a model whose configuration says tied, but whose checkpoint has a head of its own."""
    if not torch.equal(embedding, head):
        warnings.warn(
            "The configuration ties the head to the input embedding, but the checkpoint holds two different tensors. "
            "Both are kept, untied."
        )
        config.tie_word_embeddings = config.text_config.tie_word_embeddings = False


def convert_state_dict(
    state_dict: dict[str, torch.Tensor], config: dict[str, Any] | PreTrainedConfig
) -> tuple[dict[str, torch.Tensor], PreTrainedConfig]:
    """
    Converts the weights of an original Math-PUMA model.

    Args:
        state_dict (`dict[str, torch.Tensor]`):
            The original's tensors under their original names.
        config (`dict` or [`~transformers.PreTrainedConfig`]):
            The original configuration; its `model_type` is `qwen2vlm` or `multi_modality`.

    Returns:
        `tuple[dict[str, torch.Tensor], PreTrainedConfig]`: tensors for the native model's `load_state_dict`, sharing
        memory with the original ones, and the native configuration. A tied head is there under both names.

    Raises:
        CheckpointError: if the type is unknown, or a tensor is unknown, missing or of the wrong shape.
    """
    if not isinstance(config, dict):
        config = config.to_dict()
    original, native_config = _plan(config, state_dict)
    native = {}
    for name, tensor in state_dict.items():
        native |= _convert_tensor(name, tensor, original.rules)
    if native_config.tie_word_embeddings and HEAD in native:
        _untie_if_different(native_config, native[EMBEDDING], native[HEAD])
    if native_config.tie_word_embeddings:
        native[HEAD] = native[EMBEDDING]
    return native, native_config


def _converted_shards(
    files: CheckpointFiles, original: Original, config: PreTrainedConfig
) -> Iterator[dict[str, torch.Tensor]]:
    """Yields the native tensors of each weight file; a tied head is left out."""
    for path in files.paths:
        shard = {}
        for name, tensor in files.read(path):
            shard |= _convert_tensor(name, tensor, original.rules)
        if config.tie_word_embeddings:
            shard.pop(HEAD, None)
        yield shard


def _find_folder(source: str, allow_pickle: bool) -> Path:
    """Returns the checkpoint folder; one of the Hub is downloaded, without its code."""
    if Path(source).is_dir():
        return Path(source)
    patterns = ["*.json", "*.safetensors"] + (["*.bin"] if allow_pickle else [])
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"'{source}' is no folder, and it could not be downloaded from the Hub: {error}. Give a checkpoint folder "
            "or the id of a model on the Hub."
        ) from error


def convert_checkpoint(
    source: str, destination: str, *, weights_only: bool = False, allow_pickle: bool = False
) -> PreTrainedConfig:
    """
    Converts a released checkpoint into a native one with processor, tokenizer, chat template and generation config.

    Everything is checked before the first byte is written, and the destination appears when it is complete.

    Args:
        source (`str`):
            Checkpoint folder, or id of a model on the Hub.
        destination (`str`):
            Folder to write, which must not exist or be empty.
        weights_only (`bool`, *optional*, defaults to `False`):
            Whether to leave out processor and tokenizer, for a folder without tokenizer files.
        allow_pickle (`bool`, *optional*, defaults to `False`):
            Whether to read `pytorch_model.bin` where there are no safetensors.

    Returns:
        The native configuration.

    Raises:
        CheckpointError: if the source cannot be converted; the message names the file or tensor.
        FileExistsError: if the destination is not empty.
    """
    require_new(destination)
    folder = _find_folder(source, allow_pickle)
    source_config = read_json(folder / "config.json")
    find_original(source_config)  # before the weights, which may not be of a kind known here
    files = CheckpointFiles(folder, allow_pickle)
    original, config = _plan(source_config, files.shapes)
    tokenizer = processor = None
    if not weights_only:
        stated_id = source_config.get("image_token_index")
        tokenizer = load_tokenizer(folder, config, original.image_token, stated_id, original.pad_token)
        processor = original.build_processor(tokenizer, config)
        check_prompt(processor)
    original_names = {name: key for key in files.shapes for name in _rename(key, original.rules)}
    if config.tie_word_embeddings and HEAD in original_names:
        pair = (files.tensor(original_names[name]) for name in (EMBEDDING, HEAD))
        _untie_if_different(config, *pair)

    with new_folder(destination) as unfinished:
        write_shards(_converted_shards(files, original, config), unfinished)
        config.architectures = [AutoModelForImageTextToText._model_mapping[type(config)].__name__]
        config.save_pretrained(unfinished)
        make_generation_config(folder, config, tokenizer).save_pretrained(unfinished)
        if processor is not None:
            processor.save_pretrained(unfinished)
    return config


def main(argv: list[str] | None = None) -> None:
    """Converts the checkpoint that the command line names, and pushes it if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m puma_trl.convert", description="Converts an original Math-PUMA checkpoint to a native one."
    )
    parser.add_argument("source", help="checkpoint folder, or id of a model on the Hub")
    parser.add_argument("destination", help="folder to write")
    parser.add_argument("--weights_only", action="store_true", help="leave out processor and tokenizer")
    parser.add_argument("--allow_pickle", action="store_true", help="read pytorch_model.bin, if you trust its source")
    parser.add_argument("--push_to_hub", action="store_true", help="upload the result to the Hub")
    parser.add_argument("--hub_model_id", help="repository to push to (default: the name of the destination)")
    parser.add_argument("--hub_private_repo", action="store_true", default=None, help="make a new repository private")
    args = parser.parse_args(argv)
    try:
        config = convert_checkpoint(
            args.source, args.destination, weights_only=args.weights_only, allow_pickle=args.allow_pickle
        )
    except (CheckpointError, FileExistsError) as error:
        sys.exit(f"error: {error}")
    print(f"{config.architectures[0]} ({config.dtype}) is in {args.destination}.")
    if args.push_to_hub:
        push_or_exit(args.destination, args.hub_model_id, args.hub_private_repo)
