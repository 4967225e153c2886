"""Pictures of a benchmark: encoded in the data set, files in a folder, or files in its zip archive."""

import base64
import hashlib
import io
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..data.images import image_size, open_image
from ..errors import DataError, EvaluationError
from .benchmarks import Benchmark
from .items import SUFFIXES, holds_pictures, load_hub


MAX_FILES = 100_000
MAX_BYTES = 16 * 2**30
# Pictures are compressed already; what shrinks a hundredfold in a zip is no archive of pictures.
MAX_RATIO = 100


def find_pictures(
    benchmark: Benchmark, items: list[dict[str, Any]], data: str | None, split: str, image_root: str | None
) -> list[list[Any]]:
    """
    Finds the pictures of every item.

    Args:
        benchmark ([`Benchmark`]):
            The benchmark.
        items (`list[dict[str, Any]]`):
            Its items, as [`load_items`] returns them.
        data (`str`, *optional*):
            Where they come from.
        split (`str`):
            Split of the Hub data set.
        image_root (`str`, *optional*):
            Folder or zip archive with the files, or `"hub"` for the archive of the official data set. By default the
            pictures are those encoded in the data, else files beside the data file or the archive of the Hub data set.

    Returns:
        For each item a list with its picture, as [`open_image`] takes it; empty for items without one (null or "").

    Raises:
        EvaluationError: if a picture is missing or unreadable.
    """
    pictures = locate_pictures(benchmark, items, range(len(items)), data, split, image_root)
    unreadable = []
    for item, found in zip(items, pictures, strict=True):
        try:
            for picture in found:
                image_size(picture)
        except DataError as error:
            unreadable.append(f"item {benchmark.item_id(item)}: {error}")
    if unreadable:
        raise EvaluationError(
            f"{len(unreadable)} pictures of {benchmark.title} cannot be read: {'; '.join(unreadable[:3])}. Download "
            "them again."
        )
    return pictures


def locate_pictures(
    benchmark: Benchmark,
    items: list[dict[str, Any]],
    positions: Sequence[int],
    data: str | None,
    split: str,
    image_root: str | None,
) -> list[list[Any]]:
    """
    Finds the pictures of some items without opening them.

    Args:
        benchmark ([`Benchmark`]):
            The benchmark.
        items (`list[dict[str, Any]]`):
            All its items.
        positions (`Sequence[int]`):
            Which of them are meant.
        data (`str`, *optional*), split (`str`), image_root (`str`, *optional*):
            As of [`find_pictures`].

    Returns:
        For each position a list with its picture; empty for items without one.

    Raises:
        EvaluationError: if a picture is missing.
    """
    data = data or benchmark.hub_id
    is_file = Path(data).suffix in SUFFIXES
    if image_root is None:
        encoded = _encoded_pictures(benchmark, data, split, is_file)
        if encoded is not None:
            pictures = (encoded[position] for position in positions)
            return [[] if picture is None else [picture] for picture in pictures]
    items = [items[position] for position in positions]
    names = [_picture_name(benchmark, item) for item in items]
    if not any(names):
        return [[] for _ in items]  # a text-only split needs no archive
    root = _find_root(benchmark, data, is_file, image_root)
    found = [_find_file(name, root) if name else None for name in names]
    missing = [
        f"item {benchmark.item_id(item)}: {name}"
        for item, name, path in zip(items, names, found, strict=True)
        if name and path is None
    ]
    if missing:
        raise EvaluationError(
            f"{len(missing)} pictures of {benchmark.title} are not in {root}: {'; '.join(missing[:3])}. Pass the "
            f"folder or {benchmark.archive} with --image_root, or --image_root hub to download that archive from "
            f"{benchmark.hub_id}."
        )
    return [[] if path is None else [path] for path in found]


def png_address(picture: Any, max_side: int | None = None) -> str:
    """
    Returns a picture as PNG in a `data:` address.

    Args:
        picture (`Any`):
            The picture, as [`open_image`] takes it.
        max_side (`int`, *optional*):
            Largest width and height in pixels. By default it keeps its size.
    """
    image, buffer = open_image(picture), io.BytesIO()
    if max_side:
        image.thumbnail((max_side, max_side))
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _encoded_pictures(benchmark: Benchmark, data: str, split: str, is_file: bool) -> Sequence[Any] | None:
    """Returns the column of encoded pictures, `{"bytes", "path"}` each, or `None` if the data has none."""
    if is_file:
        if not data.endswith(".parquet"):
            return None
        from pyarrow import parquet

        schema = parquet.read_schema(data)
        for name in benchmark.image_columns:
            if name in schema.names and holds_pictures(schema.field(name).type):
                return parquet.read_table(data, columns=[name]).column(name).to_pylist()
        return None
    from datasets import Image

    dataset = load_hub(benchmark, data, split)
    for name in benchmark.image_columns:
        if isinstance(dataset.features.get(name), Image):
            return dataset[name]
    return None


def _find_root(benchmark: Benchmark, data: str, is_file: bool, image_root: str | None) -> Path:
    if image_root is None and is_file:
        return Path(data).parent
    if image_root is None or image_root == "hub":
        if (Path(data) / benchmark.archive).is_file():
            return extract_archive(Path(data) / benchmark.archive)
        from huggingface_hub import hf_hub_download

        repository = benchmark.hub_id if is_file else data
        return extract_archive(Path(hf_hub_download(repository, benchmark.archive, repo_type="dataset")))
    root = Path(image_root)
    if root.is_dir():
        return root
    if not root.exists():
        raise EvaluationError(f"--image_root {root} does not exist.")
    return extract_archive(root)


def _picture_name(benchmark: Benchmark, item: dict[str, Any]) -> str:
    """Returns the path that the item names, "" where it has no picture."""
    if not any(column in item for column in benchmark.image_columns):
        raise EvaluationError(
            f"Item {benchmark.item_id(item)} has no column {' or '.join(benchmark.image_columns)} with the path of "
            "its picture. If the data holds the pictures themselves, leave out --image_root."
        )
    names = [item[column] for column in benchmark.image_columns if item.get(column) is not None]
    return next((name for name in names if isinstance(name, str)), "")


def _find_file(name: str, root: Path) -> str | None:
    """Returns the file of that name in the folder, or `None` where there is none or the name leaves the folder."""
    parts = PurePosixPath(name).parts
    if ".." in parts or PurePosixPath(name).is_absolute():
        return None
    # an archive may wrap the published paths in one more folder, and the root may be the first folder of the paths
    candidates = [root / name, *(folder / name for folder in _folders(root))]
    if parts[:1] == (root.name,):
        candidates.append(root.parent / name)
    return next((str(candidate) for candidate in candidates if candidate.is_file()), None)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def extract_archive(path: Path) -> Path:
    """
    Extracts a zip archive once into the cache of the Hub's library.

    Args:
        path (`Path`):
            The archive. The same file (by path, size and time) is not extracted again.

    Returns:
        The folder.

    Raises:
        EvaluationError: if the file is no zip archive, a member would leave the folder or is a link, or the content
            is larger than pictures are.
    """
    from huggingface_hub.constants import HF_HOME

    status = path.stat()
    key = hashlib.sha256(f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}".encode()).hexdigest()[:16]
    target = Path(HF_HOME) / "puma_trl" / "pictures" / f"{path.stem}-{key}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(path, members)
            # zipfile stops at the size that was checked, whatever the compressed stream holds
            archive.extractall(part, members)
        os.rename(part, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise EvaluationError(f"{path} is no intact zip archive ({error}). Download it again.") from None
    except OSError:
        if not target.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or any(":" in part for part in name.parts[:1]):
            raise EvaluationError(f"{path}: the member {member.filename!r} would leave the folder. Refused.")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise EvaluationError(f"{path}: the member {member.filename!r} is a link. Refused.")
        if member.flag_bits & 1:
            raise EvaluationError(f"{path}: the member {member.filename!r} is encrypted. Refused.")
    size, packed = sum(member.file_size for member in members), sum(member.compress_size for member in members)
    if len(members) > MAX_FILES or size > MAX_BYTES or size > MAX_RATIO * max(packed, 1):
        raise EvaluationError(
            f"{path} would unpack to {len(members):,} files of {size:,} bytes from {packed:,}; refused as too large "
            f"(limits: {MAX_FILES:,} files, {MAX_BYTES:,} bytes, {MAX_RATIO} times the packed size). If it is right, "
            "unpack it yourself and pass the folder with --image_root."
        )
