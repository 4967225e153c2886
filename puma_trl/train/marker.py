"""
When a checkpoint counts: the marker that is written last, and what is found out about a folder without a whole one.

The marker, `checkpoint_complete`, is JSON: the files of the checkpoint with their sizes, and what the run was (see
[`describe_settings`]), which a resumed run is compared with.
"""

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from ..files import whole_file
from ..models.weights import leads_outside


COMPLETE_MARKER = "checkpoint_complete"
# In a checkpoint while it is written, until it counts: so that one of ours that was cut short is known at any point
BEGUN = "checkpoint_begun"
PICKLES = (".pt", ".pth", ".bin")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model*.bin")
# Of Trainer, of FSDP and of DeepSpeed
OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_0", "latest")
# What the marker holds
FACTS = dict.fromkeys(("step", "total_steps", "num_processes", "batch_size", "rows_per_step"), int)
FACTS |= dict.fromkeys(("settings", "weights", "data", "files"), dict) | {"resumed": list}
STEP = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")


class Problem(NamedTuple):
    """
    Why a folder cannot be resumed from.

    Args:
        reason (`str`):
            To follow the name of the folder.
        is_unfinished (`bool`):
            Whether it never was a checkpoint, because its run was killed while writing it.
    """

    reason: str
    is_unfinished: bool = False


def begin_checkpoint(checkpoint: str | Path) -> None:
    """Makes the folder of a checkpoint that is to be written, of which [`write_marker`] is the end."""
    Path(checkpoint).mkdir(parents=True, exist_ok=True)
    (Path(checkpoint) / BEGUN).touch()


def write_marker(checkpoint: str | Path, facts: dict[str, Any]) -> None:
    """
    Declares a checkpoint complete. All it holds is on the disk before that, and the marker is after it.

    Args:
        checkpoint (`str` or `Path`):
            The folder, written by all ranks.
        facts (`dict[str, Any]`):
            What the run is, to stand beside `files` in the marker.
    """
    checkpoint = Path(checkpoint)
    paths = sorted(path for path in checkpoint.rglob("*") if path.name not in (COMPLETE_MARKER, BEGUN))
    for path in paths:
        _flush(path)
    files = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in paths if path.is_file()}
    with whole_file(checkpoint / COMPLETE_MARKER) as file:
        json.dump(facts | {"files": files}, file, indent=1)
    (checkpoint / BEGUN).unlink(missing_ok=True)
    for folder in (checkpoint, checkpoint.parent):
        _flush(folder)


def _flush(path: Path) -> None:
    """Waits until a file, or the list of files of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems cannot do this for folders
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def read_marker(checkpoint: str | Path) -> dict[str, Any]:
    """Returns the marker of a checkpoint that [`find_problem`] has found whole."""
    return json.loads((Path(checkpoint) / COMPLETE_MARKER).read_text(encoding="utf-8"))


def has_weights(folder: str | Path) -> bool:
    """Returns whether a folder itself holds weights of a model or adapter."""
    return any(next(Path(folder).glob(name), None) for name in WEIGHTS)


def has_model(folder: str | Path) -> bool:
    """Returns whether a folder itself holds weights or the configuration of a model or adapter."""
    return has_weights(folder) or any((Path(folder) / name).exists() for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME))


def find_problem(checkpoint: str | Path) -> Problem | None:
    """
    Returns why a folder cannot be resumed from, or `None` for a whole checkpoint.

    Sizes and the ends of files are looked at, not their contents; damage within them is named by [`find_damage`].
    """
    checkpoint = Path(checkpoint)
    if not (checkpoint / COMPLETE_MARKER).exists():
        return _explain_without_marker(checkpoint)
    try:
        marker = read_marker(checkpoint)
    except (OSError, ValueError, RecursionError):
        return Problem(f"has a torn {COMPLETE_MARKER}")
    if not isinstance(marker, dict) or not all(isinstance(marker.get(name), kind) for name, kind in FACTS.items()):
        return Problem(f"was written by another version of this software, or its {COMPLETE_MARKER} is damaged")
    for name, size in marker["files"].items():
        if leads_outside(name):
            return Problem(f"has a damaged {COMPLETE_MARKER}: it names {name}")
        path = checkpoint / name
        if not path.is_file():
            return Problem(f"lacks {name}")
        found = path.stat().st_size
        if found != size:
            return Problem(f"is torn: {name} has {found:,} of {size:,} bytes")
        if _is_torn(path):
            return Problem(f"is damaged: {name} cannot be read")
    if TRAINER_STATE_NAME not in marker["files"]:
        return Problem(f"lacks {TRAINER_STATE_NAME}")
    step = json.loads((checkpoint / TRAINER_STATE_NAME).read_bytes()).get("global_step")
    if step != marker["step"]:
        return Problem(f"is damaged: {TRAINER_STATE_NAME} is of step {step}, the marker of {marker['step']}")
    return None


def _explain_without_marker(checkpoint: Path) -> Problem:
    has_state = (checkpoint / TRAINER_STATE_NAME).exists()
    has_optimizer = any((checkpoint / name).exists() for name in OPTIMIZERS)
    if STEP.fullmatch(checkpoint.name) is None:
        if has_model(checkpoint) and not has_optimizer:
            return Problem("holds a model, and no checkpoint to go on from")
        return Problem(f"is no checkpoint: it has no {COMPLETE_MARKER}")
    if not has_state or (checkpoint / BEGUN).exists():
        return Problem("was cut short while it was written", is_unfinished=True)
    if has_model(checkpoint) and not has_optimizer:
        return Problem("holds the model only (`save_only_model`)")
    return Problem(f"was written by other software, or cut short in copying it: it has no {COMPLETE_MARKER}")


def _is_torn(path: Path) -> bool:
    """Whether the structure of a file, of which little is read, shows that it is not whole."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                pass
        elif path.suffix in PICKLES:
            with open(path, "rb") as file:
                # archives; those of the oldest format begin with a pickle's opcode
                return not zipfile.is_zipfile(file) and (file.seek(0) or file.read(1)) != b"\x80"
    except (OSError, ValueError, SafetensorError):
        return True
    return False


def find_damage(checkpoint: str | Path) -> Path | None:
    """Returns the first file of a checkpoint that is torn or whose contents do not have their checksum; reads all."""
    for path in sorted(Path(checkpoint).rglob("*")):
        if not path.is_file():
            continue
        if _is_torn(path):
            return path
        if path.suffix in PICKLES and zipfile.is_zipfile(path):
            try:
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip() is not None:
                        return path
            except (OSError, ValueError, zipfile.BadZipFile):
                return path
    return None
