"""Small generated data sets in the official formats of MathVerse, MathVista and We-Math."""

import json
from pathlib import Path

from PIL import Image


VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")
IDS = {"mathverse": "sample_index", "mathvista": "pid", "wemath": "question number"}
CONCEPTS = ("Area of Circles", "Area of Squares", "Axial Symmetry")


def verse_item(index, version="Text Lite", **changes):
    """Returns one MathVerse item as published."""
    item = {
        "sample_index": str(index),
        "problem_index": str(index),
        "problem_version": version,
        "question": "" if version == "Vision Only" else f"Find angle {index}.",
        "image": "" if version == "Text Only" else f"images_version_1-4/image_{index}.png",
        "answer": "B",
        "question_type": "multi-choice",
        "metadata": {"split": "testmini", "source": "made", "subject": "Plane Geometry", "subfield": "Angle"},
        "query_wo": f"Answer directly.\nQuestion: Find angle {index}.",
        "query_cot": f"Reason first.\nQuestion: Find angle {index}.",
        "question_for_eval": f"Find angle {index}. A: 10 B: 20 C: 30 D: 40",
    }
    return item | changes


def vista_item(index, question_type="multi_choice", answer_type="text", metadata=None, **changes):
    """Returns one MathVista item as published."""
    choice = question_type == "multi_choice"
    item = {
        "pid": str(index),
        "question": f"How long is segment {index}?",
        "image": f"images/{index}.jpg",
        "choices": ["10 cm", "20 cm", "30 cm"] if choice else None,
        "unit": None,
        "precision": 1.0 if answer_type == "float" else None,
        "answer": {"text": "20 cm", "integer": "14", "float": "1.4", "list": "[1, 2]"}[answer_type],
        "question_type": question_type,
        "answer_type": answer_type,
        "metadata": {
            "split": "testmini",
            "language": "english",
            "img_width": 28,
            "img_height": 28,
            "source": "made",
            "category": "math-targeted-vqa",
            "task": "geometry problem solving",
            "context": "geometry diagram",
            "grade": "high school",
            "skills": ["geometry reasoning", "arithmetic reasoning"],
        }
        | (metadata or {}),
    }
    return item | changes


def wemath_group(number, steps, first_number, concepts=CONCEPTS):
    """Returns the rows of one We-Math group as published, numbered from `first_number`."""
    keys = [f"{steps}steps_{step}" for step in range(1, steps + 1)] + [f"{steps}steps_multi"]
    return [
        {
            "ID": f"{steps}steps_{number}",
            "split": "testmini",
            "knowledge concept": "; ".join(concepts[:steps]) if key.endswith("multi") else concepts[index],
            "question": f"Part {index} of {steps}-step problem {number}?",
            "option": "A. 10; B. 20; C. 30; D. No correct answer",
            "answer": "B",
            "image_path": f"{steps}steps/image/{number}-{index}.png",
            "key": key,
            "question number": first_number + index,
            "knowledge concept description": "Squares: four equal sides.",
        }
        for index, key in enumerate(keys)
    ]


def make_items(benchmark):
    """Returns a small whole data set: about a dozen items of every kind."""
    if benchmark == "wemath":
        return wemath_group(1, 2, 1) + wemath_group(2, 2, 4) + wemath_group(1, 3, 7)
    if benchmark == "mathvista":
        kinds = (("multi_choice", "text"), ("free_form", "integer"), ("free_form", "float"), ("free_form", "list"))
        return [vista_item(index, *kinds[index % 4], unit="cm" if index == 5 else None) for index in range(1, 11)]
    items = [verse_item(index, VERSIONS[index % 5]) for index in range(1, 9)]
    free = {"question_type": "free-form", "answer": "20"}
    return items + [verse_item(9, **free), verse_item(10, "Text Only"), verse_item(11, "Text Only", **free)]


def write_data(folder, benchmark, items=None):
    """Writes data and pictures in the official layout; returns the data file."""
    items = make_items(benchmark) if items is None else items
    folder = Path(folder)
    for index, item in enumerate(items):
        name = item.get("image_path") or item.get("image")
        if name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (28 + 28 * (index % 3), 28), (20 * index % 256, 90, 0)).save(folder / name)
    content = {item["pid"]: item for item in items} if benchmark == "mathvista" else items
    path = folder / "testmini.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def write_rows(path, rows):
    """Writes jsonl."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path):
    """Reads jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
