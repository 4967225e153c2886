"""The weight files of a checkpoint folder: read one tensor at a time, written shard by shard."""

import fcntl
import glob
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import CheckpointError
from ..models.weights import leads_outside


SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"


def read_json(path: Path) -> dict:
    """
    Reads a JSON object.

    Raises:
        CheckpointError: if the file is missing or not valid.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing. Download the checkpoint again.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}. Download the file again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object but a {type(value).__name__}. Download the file again.")
    return value


class CheckpointFiles:
    """
    The weights of a checkpoint folder. Only names and shapes are read at first, and all files are checked.

    Args:
        folder (`Path`):
            The checkpoint folder, with `model.safetensors`, or shards and `model.safetensors.index.json`.
        allow_pickle (`bool`, *optional*, defaults to `False`):
            Whether `pytorch_model.bin` files are read where there are no safetensors.

    Attributes:
        shapes (`dict[str, torch.Tensor]`):
            Name → tensor on the meta device.
        paths (`list[Path]`):
            The weight files.

    Raises:
        CheckpointError: if there are no weight files, one is missing or cannot be read, or only pickles are there.
    """

    def __init__(self, folder: Path, allow_pickle: bool = False):
        self.paths, listed = _find_files(folder, allow_pickle)
        self.shapes: dict[str, torch.Tensor] = {}
        self._path_of: dict[str, Path] = {}
        for path in self.paths:
            for name, tensor in self.read(path):
                if name in self.shapes:
                    raise CheckpointError(
                        f"Tensor '{name}' is in two files, {self._path_of[name].name} and {path.name}."
                    )
                self.shapes[name] = torch.empty_like(tensor, device="meta")
                self._path_of[name] = path
        absent = {name: file for name, file in listed.items() if self._path_of.get(name) != folder / file}
        if absent:
            name, file = next(iter(absent.items()))
            raise CheckpointError(
                f"{len(absent)} tensors are not in the file that the index names, the first being '{name}' in {file}. "
                "Download the checkpoint again."
            )

    def read(self, path: Path) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the tensors of one file by name. They are mapped from the file, not copied into memory."""
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():
                        yield name, file.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(_unreadable(path, error)) from error
        else:
            try:
                tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
                raise CheckpointError(_unreadable(path, error)) from error
            yield from tensors.items()

    def tensor(self, name: str) -> torch.Tensor:
        """Returns one tensor."""
        return next(tensor for found, tensor in self.read(self._path_of[name]) if found == name)


def _unreadable(path: Path, error: Exception) -> str:
    return (
        f"{path} cannot be read: {error}. It holds {path.stat().st_size:,} bytes and is truncated or damaged. "
        "Download the file again."
    )


def _find_files(folder: Path, allow_pickle: bool) -> tuple[list[Path], dict[str, str]]:
    """Returns the weight files, and tensor → file name as far as an index lists them."""
    for name in (SAFETENSORS, PICKLE):
        index = folder / f"{name}.index.json"
        if not index.exists() and not (folder / name).exists():
            continue
        if name == PICKLE and not allow_pickle:
            raise CheckpointError(
                f"{folder} has only pickled weights ({name}). Unpickling a file can run code that it hides. Use a "
                "copy with safetensors, or give `--allow_pickle` if you trust its source; PyTorch's restricted "
                "unpickler is used then."
            )
        if not index.exists():
            return [folder / name], {}
        listed = read_json(index).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise CheckpointError(f"{index} has no `weight_map`. Download the file again.")
        outside = [file for file in listed.values() if not isinstance(file, str) or leads_outside(file)]
        if outside:
            raise CheckpointError(
                f"{index} names '{outside[0]}', which lies outside of its folder. Download it again."
            )
        paths = [folder / file for file in sorted(set(listed.values()))]
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} of {len(paths)} weight files: {', '.join(missing)}. Download them."
            )
        return paths, listed
    raise CheckpointError(f"{folder} has no weights: neither {SAFETENSORS} nor {SAFETENSORS}.index.json is there.")


def write_shards(shards: Iterable[dict[str, torch.Tensor]], folder: Path) -> None:
    """
    Writes `model.safetensors`, or shards and their index, holding one shard at a time.

    Args:
        shards (`Iterable[dict[str, torch.Tensor]]`):
            The tensors of each file, by name. Empty ones are left out.
        folder (`Path`):
            An existing folder.
    """
    written: list[list[str]] = []
    total_size = 0
    for shard in shards:
        if shard:
            tensors = {name: tensor.contiguous() for name, tensor in shard.items()}
            save_file(tensors, folder / f"{len(written)}.unfinished", metadata={"format": "pt"})
            total_size += sum(tensor.nbytes for tensor in tensors.values())
            written.append(list(tensors))
    weight_map = {}
    for number, names in enumerate(written):
        final = f"model-{number + 1:05d}-of-{len(written):05d}.safetensors" if len(written) > 1 else SAFETENSORS
        (folder / f"{number}.unfinished").rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    if len(written) > 1:
        index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / f"{SAFETENSORS}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@contextmanager
def new_folder(destination: str | Path) -> Iterator[Path]:
    """
    Gives a folder to write to, which takes the destination's name when all is written. On an error nothing is left,
    and what a killed process left is removed.

    Raises:
        FileExistsError: if the destination is not empty.
    """
    target = Path(destination)
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{glob.escape(target.name)}-unfinished-*"):
        _remove_unlocked(left)
    unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-unfinished-"))
    lock = os.open(unfinished, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until this process ends, however it does
        require_new(target)
        yield unfinished
        unfinished.chmod(0o755)  # temporary folders are private
        unfinished.replace(target)
    except BaseException:
        shutil.rmtree(unfinished)
        raise
    finally:
        os.close(lock)


def _remove_unlocked(folder: Path) -> None:
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    except BlockingIOError:
        pass  # another process writes there
    finally:
        os.close(lock)


def require_new(destination: str | Path) -> None:
    """
    Raises:
        FileExistsError: if there is something at the destination already.
    """
    target = Path(destination)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not empty. Choose another folder.")
