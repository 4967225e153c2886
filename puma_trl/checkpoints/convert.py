"""
Converts the released Math-PUMA checkpoints, which load in the original code only, to native transformers checkpoints.

```bash
python -m puma_trl.convert Math-PUMA/Math-PUMA_Qwen2VL-1.5B models/Math-PUMA_Qwen2VL-1.5B
python -m puma_trl.convert downloads/Math-PUMA_DeepSeek-Math-VL-7B models/Math-PUMA_DeepSeek-Math-VL-7B
```

`qwen2vlm` becomes `math_puma_qwen2`, a LLaVA with a gated aligner, and `multi_modality` becomes `deepseek_vl_hybrid`.
The weights are read and written shard by shard. Nothing is written unless every tensor of the source was used, or is
known to be unused, and every tensor of the native model filled.
"""

import re
import warnings
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoModelForImageTextToText, PreTrainedConfig

from ..errors import CheckpointError
from .files import CheckpointFiles, new_folder, read_json, require_new, write_shards
from .originals import Original, Rules, find_original
from .tokenizer import check_prompt, load_tokenizer, make_generation_config


EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"


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
