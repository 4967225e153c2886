"""
Merges adapters into their base model: a plain checkpoint that needs no PEFT, the start of the next stage.

```bash
python -m puma_trl.merge outputs/qwen2_vl/lora/stage2 outputs/qwen2_vl/lora/stage2-merged
python -m puma_trl.merge outputs/qwen2_vl/lora/stage3 models/math-puma --push_to_hub --hub_model_id me/math-puma
```

The base is read in its own dtype, without quantisation for QLoRA adapters too, and merged layer by layer in place, so
the model is in memory once. Nothing is written unless every tensor of the adapters has found its place.
"""

import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from ..errors import MergeError
from ..models.families import get_auto_class
from ..record.hub import CURVES, write_card
from ..record.provenance import RECIPE, read_provenance, save_provenance
from .files import new_folder, require_new


SHARD_SIZE = "5GB"


def merge_adapter(
    adapter: str, destination: str | Path, max_shard_size: str = SHARD_SIZE, trust_remote_code: bool = False
) -> PreTrainedModel:
    """
    Writes the base model with the adapters merged in, beside it processor, chat template, generation config and card.

    Args:
        adapter (`str`):
            Folder of the adapters, or their id on the Hub.
        destination (`str` or `Path`):
            Folder to write; it must not exist, or be empty.
        max_shard_size (`str`, *optional*, defaults to `"5GB"`):
            Size above which the weights are divided among several files.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code that comes with the base model.

    Returns:
        The merged model.

    Raises:
        MergeError: if there are no usable adapters, they do not fit their base model, or it cannot be found.
        FileExistsError: if the destination is not empty.
    """
    require_new(destination)
    peft_config = _read_config(adapter)
    options = {"trust_remote_code": trust_remote_code}
    config = _read_base_config(adapter, peft_config, options)
    processor = _load_processor(adapter, peft_config, options)
    model = _merge(_load_base(adapter, config, peft_config, options), adapter, peft_config)

    with new_folder(destination) as unfinished:
        model.save_pretrained(unfinished, max_shard_size=max_shard_size)
        processor.save_pretrained(unfinished)
        _describe(Path(adapter), unfinished, str(destination))
    return model


def _read_config(adapter: str) -> PeftConfig:
    try:
        return PeftConfig.from_pretrained(adapter)
    except (ValueError, OSError, TypeError) as error:
        raise MergeError(
            f"`{adapter}` holds no adapters: {error}. Name the output folder of a run with `use_peft: true`, with its "
            "adapter_config.json, or adapters on the Hub."
        ) from error


@contextmanager
def _explain_base(adapter: str, peft_config: PeftConfig):
    try:
        yield
    except (OSError, ValueError) as error:
        raise MergeError(
            f"The base model `{peft_config.base_model_name_or_path}` of the adapters in {adapter} cannot be loaded: "
            f"{error}. A relative path starts from the folder that the command is run in; it stands in "
            "adapter_config.json as `base_model_name_or_path`."
        ) from error


def _read_base_config(adapter: str, peft_config: PeftConfig, options: dict) -> PreTrainedConfig:
    name = peft_config.base_model_name_or_path
    with _explain_base(adapter, peft_config):
        config = AutoConfig.from_pretrained(name, revision=peft_config.revision or "main", **options)
    if config.to_dict().get("quantization_config") is not None:
        raise MergeError(
            f"The base model `{name}` is stored quantised, and adapters can only be merged into whole weights. Name "
            f"the unquantised model as `base_model_name_or_path` in the adapter_config.json of {adapter}."
        )
    return config


def _load_processor(adapter: str, peft_config: PeftConfig, options: dict) -> ProcessorMixin | PreTrainedTokenizerBase:
    """Loads the processor saved beside the adapters, or that of the base model."""
    for source in (adapter, peft_config.base_model_name_or_path):
        try:
            return AutoProcessor.from_pretrained(source, **options)
        except (OSError, ValueError) as error:
            failure = error
    raise MergeError(
        f"Neither `{adapter}` nor its base model `{source}` has a processor or tokenizer: {failure}. Copy the base "
        "model's files into the folder of the adapters."
    ) from failure


def _load_base(adapter: str, config: PreTrainedConfig, peft_config: PeftConfig, options: dict) -> PreTrainedModel:
    with _explain_base(adapter, peft_config):
        return get_auto_class(config).from_pretrained(
            peft_config.base_model_name_or_path, dtype="auto", revision=peft_config.revision or "main", **options
        )


def _merge(base: PreTrainedModel, adapter: str, peft_config: PeftConfig) -> PreTrainedModel:
    try:
        saved = load_peft_weights(adapter, device="cpu")
        model = PeftModel.from_pretrained(base, adapter, config=peft_config)
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise MergeError(
            f"The adapters in {adapter} do not fit the base model `{peft_config.base_model_name_or_path}`, or their "
            f"file is damaged: {error}"
        ) from error
    expected = get_peft_model_state_dict(model).keys()
    wrong = sorted(expected ^ saved.keys())
    if wrong:
        raise MergeError(
            f"The adapters in {adapter} and the base model `{peft_config.base_model_name_or_path}` do not have the "
            f"same {len(wrong)} tensors, the first being {wrong[:3]}. Name the base model that they were trained on "
            "as `base_model_name_or_path` in adapter_config.json."
        )
    infinite = [name for name, tensor in saved.items() if not torch.isfinite(tensor).all()]
    if infinite:
        raise MergeError(f"The adapters in {adapter} hold values that are not finite, first in {infinite[0]}.")
    del saved
    # which also unties head and embedding where one of the two was trained whole
    return model.merge_and_unload(safe_merge=True)


def _describe(adapter: Path, merged: Path, repo_id: str) -> None:
    """Takes recipe, provenance and curves along, and writes the card; adapters of other makers have none of them."""
    facts = read_provenance(adapter)
    if facts is None:
        return
    facts["merged_adapters"] = facts.pop("adapters")
    recipe = yaml.safe_load((adapter / RECIPE).read_text(encoding="utf-8"))
    # where the adapters were pushed to is not where the merged model goes
    save_provenance(merged, {name: value for name, value in recipe.items() if not name.startswith("hub_")}, facts)
    if (adapter / CURVES).exists():
        shutil.copy(adapter / CURVES, merged / CURVES)
    write_card(merged, facts, repo_id)
