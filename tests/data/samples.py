"""Rows, and how tests write and read them."""

import json

from puma_trl.data.files import find_chunks
from puma_trl.data.readers import read_chunk
from puma_trl.data.rows import read_row


ONE = {"instruction": "a", "output": "b"}
PAIR = ONE | {"instruction_2": "c", "output_2": "b"}
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def texts(source):
    """What is read of each row: question and answer of both sides, and the paths of pictures."""
    found = []
    for chunk in find_chunks([source]):
        for _, raw in read_chunk(source, chunk):
            row = read_row(raw, None, source.form)
            images = [image["path"] for side in ("", "_2") for image in row[f"image_url{side}"] or ()]
            found.append([row[name] for name in ("instruction", "output", "instruction_2", "output_2")] + images)
    return found


ROW = {"image_url": None, "instruction": "a", "output": "b", "history": []}


def pair(index, **change):
    answer = f"It is {index}."
    row = {
        "image_url": None,
        "instruction": f"What is {index}?",
        "output": answer,
        "image_url_2": f"{index % 3}.png",
        "instruction_2": "What?",
        "output_2": answer,
    }
    return row | change


def single(index):
    return {"instruction": f"What is {index}?", "output": f"It is {index}."}


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def dropped(folder):
    return [json.loads(line) for line in (folder / "out" / "dropped_rows.jsonl").read_text().splitlines()]
