"""Which rows a run reads, in which order: one digest, to be compared with that of another run."""

import hashlib
import json
import os
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset


@lru_cache(maxsize=4)
def fingerprint(dataset: Dataset) -> str:
    """
    Returns a digest of all columns of all rows, in order; the same on every machine. Of pictures the names and, where
    they are in the data, sizes are read, and the lengths in tokens tell of their pixels.
    """
    digest = hashlib.sha256()
    names = sorted(dataset.column_names)
    digest.update(json.dumps(names).encode())
    for table in dataset.with_format("arrow").iter(1000):
        for name in names:
            _add(digest, table.column(name).combine_chunks(), name.startswith("image_url"))
    return digest.hexdigest()


def _add(digest: Any, values: pa.Array, is_picture: bool = False) -> None:
    """Adds values to a digest: numbers and texts; of paths of pictures the file names, of bytes how many they are."""
    kind = values.type
    digest.update(f"{len(values)} {values.null_count} ".encode())
    if values.null_count:
        digest.update(pc.is_valid(values).to_numpy(zero_copy_only=False).tobytes())
    if isinstance(values, pa.ExtensionArray):
        _add(digest, values.storage, is_picture)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        _add(digest, pc.list_value_length(values))
        _add(digest, pc.list_flatten(values), is_picture)
    elif pa.types.is_struct(kind):
        is_picture = is_picture or {field.name for field in kind} == {"bytes", "path"}
        for number in range(kind.num_fields):
            _add(digest, pc.struct_field(values, [number]), is_picture)
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        _add(digest, pc.binary_length(values))
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        wide = pa.float64() if pa.types.is_floating(kind) else pa.int64()
        digest.update(values.cast(wide).fill_null(0).to_numpy(zero_copy_only=False).tobytes())
    else:
        found = values.to_pylist()
        if is_picture and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            found = [os.path.basename(path or "") for path in found]
        digest.update(json.dumps(found, ensure_ascii=False, default=str).encode())
