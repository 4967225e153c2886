"""The files of a model folder, judged before anything of it is loaded."""

import json
import shlex
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import ModelError


SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
# What transformers reads of a model, a tokenizer and a processor
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.json",
)


def check_folder(folder: str | Path) -> None:
    """
    Looks at the files of a model folder: JSON that can be parsed, and weights that are there, whole, and not pickled.

    Of the weights only names and headers are read.

    Args:
        folder (`str` or `Path`):
            The folder. Anything else, such as the name of a model on the Hub, is not judged.

    Raises:
        ModelError: if it holds adapters, a file is torn, there are no weights but pickled ones, or an index names
            files that are missing or outside of the folder.
    """
    folder = Path(folder)
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds adapters and no model. Merge them into their base model first: "
            f"`puma-trl merge {folder} {folder}-merged`."
        )
    if not (folder / "config.json").is_file():  # what loads it says so
        return
    contents = {name: read_object(folder / name) for name in JSON_FILES if (folder / name).exists()}
    if "transformers_weights" in contents["config.json"]:  # a file of another name, which transformers checks
        return
    for path in find_weights(folder):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path} cannot be read: {error}. It holds {path.stat().st_size:,} bytes and is truncated or damaged. "
                "Copy or download it again."
            ) from error


def check_finite(model: torch.nn.Module, name: str) -> None:
    """
    Makes sure that no weight of a loaded model is infinite or not a number, with which nothing can be learned.

    Sums tell, so it takes one pass over the weights and no memory. What is not here is not looked at: parameters that
    ZeRO-3 has given to other processes or another one loads for this one, and quantised ones.

    Raises:
        ModelError: if there are any; the first one is named.
    """
    for key, value in model.named_parameters():
        value = value.detach()
        if value.is_meta or not value.is_floating_point() or value.element_size() < 2:
            continue
        if not torch.isfinite(value.sum(dtype=torch.float32)) and not torch.isfinite(value).all():
            count = int((~torch.isfinite(value)).sum())
            raise ModelError(
                f"The checkpoint `{name}` has {count:,} weights in {key} that are infinite or not a number, as a run "
                "leaves that has diverged. Take an earlier checkpoint, or copy or download it again."
            )


def read_object(path: Path) -> dict[str, Any]:
    """
    Reads a JSON object.

    Raises:
        ModelError: if it is not a regular file, or not valid.
    """
    if not path.is_file():
        raise ModelError(f"{path} is not a regular file. Put the model's own there.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise ModelError(
            f"{path} is not valid JSON: {error}. It is torn or damaged: copy or download it again."
        ) from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object but a {type(value).__name__}. Copy or download it again.")
    return value


def find_weights(folder: Path) -> list[Path]:
    """
    Returns the safetensors files that transformers would load from a folder.

    Raises:
        ModelError: if there are none, or the index does not lead to them.
    """
    if (folder / SAFETENSORS).is_file():
        return [folder / SAFETENSORS]
    index = folder / f"{SAFETENSORS}.index.json"
    if index.exists():
        names = shard_names(index)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"{folder} lacks {len(missing)} of the {len(names)} weight files that {index.name} names, the first "
                f"being {missing[0]}. Copy or download them."
            )
        return [folder / name for name in names]
    pickles = [name for name in (PICKLE, f"{PICKLE}.index.json") if (folder / name).exists()]
    if pickles:
        raise ModelError(
            f"{folder} has only pickled weights ({pickles[0]}), and unpickling a file can run code that it hides. Use "
            "a copy with safetensors, or, if you trust its source, write them beside it, with PyTorch's restricted "
            f"unpickler: `{convert_command(folder)}`."
        )
    raise ModelError(
        f"No usable weights were found in `{folder}`: there is neither {SAFETENSORS} nor {index.name}. A checkpoint "
        "folder needs its weights as safetensors."
    )


def convert_command(folder: str | Path) -> str:
    """Returns the command that writes safetensors beside pickled weights."""
    code = (
        "import pathlib, sys, torch; from safetensors.torch import save_file; folder = pathlib.Path(sys.argv[1]); "
        "files = sorted(folder.glob('pytorch_model*.bin')); "
        "parts = [torch.load(file, map_location='cpu', weights_only=True) for file in files]; "
        "tensors = {name: value.clone().contiguous() for part in parts for name, value in part.items()}; "
        "save_file(tensors, folder / 'model.safetensors', {'format': 'pt'})"
    )
    return f'python -c "{code}" {shlex.quote(str(folder))}'


def shard_names(index: Path) -> list[str]:
    """
    Returns the file names that the index of a sharded checkpoint lists, sorted.

    Raises:
        ModelError: if it is damaged, or a name leads out of its folder.
    """
    content = read_object(index)
    listed = content.get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()) or not listed:
        raise ModelError(f"{index} has no `weight_map` of tensors to file names. Copy or download it again.")
    if not isinstance(content.get("metadata"), dict):  # which transformers reads
        raise ModelError(f"{index} has no `metadata`. Copy or download it again.")
    names = sorted(set(listed.values()))
    outside = [name for name in names if leads_outside(name)]
    if outside:
        raise ModelError(
            f"{index} names '{outside[0]}', which lies outside of its folder. Weights are read from the folder alone: "
            "take the index that belongs to these files."
        )
    return names


def leads_outside(name: str) -> bool:
    """Returns whether a file name of an index leads out of its folder."""
    return PurePath(name).is_absolute() or ".." in PurePath(name).parts
