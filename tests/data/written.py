"""Rows written to files of every kind, and read from there."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq

from puma_trl.data.files import find_chunks, find_sources
from puma_trl.data.readers import read_chunk


ROWS = [
    {
        "image_url": None if index % 3 else f"{index}.png",
        "instruction": f'Größe {index}, "x"\u2028\n{{[α]}}, ]' + "ß" * (index % 7),
        "output": f"= {index} €\\",
        "extra": str(index),
    }
    for index in range(50)
]


def write(path, rows, kind):
    if kind == "lines":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif kind == "lines, Windows":
        lines = "\r\n".join(json.dumps(row) for row in rows)
        path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    elif kind == "list":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    elif kind == "list, indented":
        path.write_text("\ufeff \n" + json.dumps(rows, indent=2) + "\n\n", encoding="utf-8")
    elif kind.startswith("list in an object"):
        facts = {"version": 1.5, "splits": ["train"], "data": rows, "licence": {"name": "[{"}, "none": []}
        path.write_text(json.dumps(facts, indent=None if kind.endswith("one line") else 1), encoding="utf-8")
    elif kind == "csv":
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)


def read(name):
    (source,) = find_sources([str(name)], None, None, "train")
    return [(source, index, row) for chunk in find_chunks([source]) for index, row in read_chunk(source, chunk)]
