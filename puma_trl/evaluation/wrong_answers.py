"""Examples for a report: wrong answers, each with picture, question, reply, extraction and gold answer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PumaError
from .benchmarks import Benchmark
from .files import read_jsonl
from .items import load_items
from .pictures import locate_pictures, png_address
from .responses import read_responses


MAX_EXAMPLES = 10
MAX_REPLY = 800  # characters of the end of a reply
MAX_SIDE = 360  # pixels of a picture


@dataclass(frozen=True)
class WrongAnswer:
    """
    A wrong answer.

    Args:
        item (`str`):
            Id of the item, and what kind it is.
        question (`str`):
            What was asked.
        reply (`str`):
            The end of what the model said.
        extraction (`str`):
            What was taken from it.
        gold (`str`):
            The right answer.
        picture (`str`):
            The picture as a `data:` address, or empty.
    """

    item: str
    question: str
    reply: str
    extraction: str
    gold: str
    picture: str = ""


@dataclass(frozen=True)
class WrongAnswers:
    """
    Examples of a run.

    Args:
        examples (`list[WrongAnswer]`):
            Up to `MAX_EXAMPLES`, evenly spaced.
        total (`int`):
            How many answers are wrong.
        note (`str`):
            What could not be shown, and why; else empty.
    """

    examples: list[WrongAnswer]
    total: int
    note: str = ""


def find_wrong_answers(
    benchmark: Benchmark, metrics: dict[str, Any], scored_path: Path, image_root: str | None
) -> WrongAnswers:
    """
    Chooses wrong answers of a run. What cannot be read is noted and is no error: the figures do not need it.

    Args:
        benchmark ([`Benchmark`]):
            The benchmark.
        metrics (`dict[str, Any]`):
            What `score` wrote, with the names of its files.
        scored_path (`Path`):
            `scored.jsonl`.
        image_root (`str`, *optional*):
            Folder or zip archive with the pictures.
    """
    files = metrics["files"]
    try:
        scored = [row for _, row in read_jsonl(scored_path)]
        items = load_items(benchmark, files["data"], files["split"], benchmark.columns)
        responses = read_responses(scored_path.parent / files["responses"], benchmark, items)
    except (PumaError, OSError) as error:
        return WrongAnswers([], 0, f"No examples: {error}")
    by_id = {str(row["id"]): row for row in scored}
    wrong = [
        position
        for position, item in enumerate(items)
        if benchmark.item_id(item) in responses and by_id.get(benchmark.item_id(item), {}).get("correct") is False
    ]
    count = min(MAX_EXAMPLES, len(wrong))
    chosen = [wrong[index * len(wrong) // count] for index in range(count)]
    pictures, note = _show_pictures(benchmark, items, chosen, files, image_root)
    examples = []
    for position, picture in zip(chosen, pictures, strict=True):
        key = benchmark.item_id(items[position])
        reply = responses[key].get("response") or ""
        examples.append(
            WrongAnswer(
                benchmark.describe(items[position]),
                benchmark.show_question(items[position]),
                "…" * (len(reply) > MAX_REPLY) + reply[-MAX_REPLY:],
                str(by_id[key]["extraction"]),
                str(items[position]["answer"]),
                picture,
            )
        )
    return WrongAnswers(examples, len(wrong), note)


def _show_pictures(
    benchmark: Benchmark, items: list[dict[str, Any]], chosen: list[int], files: dict[str, Any], image_root: str | None
) -> tuple[list[str], str]:
    try:
        found = locate_pictures(benchmark, items, chosen, files["data"], files["split"], image_root)
        return [png_address(pictures[0], MAX_SIDE) if pictures else "" for pictures in found], ""
    except (PumaError, OSError) as error:
        return [""] * len(chosen), f"No pictures: {error}"
