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
    for table in dataset.with_format("arrow").iter(1000):
        columns = [_outline(table.column(name).combine_chunks(), name.startswith("image_url")) for name in names]
        digest.update(json.dumps([names, columns], ensure_ascii=False, default=str).encode())
    return digest.hexdigest()


def _outline(values: pa.Array, is_picture: bool = False) -> list[Any]:
    """Returns values as JSON has them: of paths the file names, of bytes the lengths."""
    kind = values.type
    if isinstance(values, pa.ExtensionArray):
        return _outline(values.storage, is_picture)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [pc.list_value_length(values).to_pylist(), _outline(pc.list_flatten(values), is_picture)]
    if pa.types.is_struct(kind):
        is_picture = is_picture or {each.name for each in kind} == {"bytes", "path"}
        return [_outline(pc.struct_field(values, [number]), is_picture) for number in range(kind.num_fields)]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pc.binary_length(values).to_pylist()
    found = values.to_pylist()
    return [os.path.basename(path or "") for path in found] if is_picture and pa.types.is_string(kind) else found
