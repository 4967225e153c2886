"""The data of the mini study: pairs, and the same pairs with other answers, other words, or none."""

import hashlib
import itertools
import json
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.modality import MODALITIES
from ..mini import DRAWINGS, IMAGE_SIZE, LABEL_GRID
from ..pairs.generate.files import write_pairs
from ..pairs.generate.pairs import generate_pairs


TOWER_KINDS = ("triangle_angles", "segment_part", "bar_total")
KINDS = ("segment_total", "rectangle_perimeter")
LARGER = 2  # level of problems with numbers that stage 1 has not seen
NUM_TOWER = 8_000
NUM_ROWS, NUM_HELDOUT, NUM_ELSEWHERE = 6_400, 200, 120
NOISE = 0.5  # share of wrong answers
NUM_FEW = 200
DATA_SEED = 1
STEPS = (None, *MODALITIES[1:])  # of the ladder: words without a picture, then less and less words beside it
NO_ANSWER = {"output": None, "output_2": None}


def digest(*settings: Any) -> str:
    """Returns a few characters that change with the settings, for the name of the folder that they decide about."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def data_folder(output: Path) -> Path:
    """Returns the folder of the data that the constants above describe."""
    amounts = (NUM_TOWER, NUM_ROWS, NUM_HELDOUT, NUM_ELSEWHERE, NUM_FEW, NOISE, DATA_SEED, LARGER, STEPS)
    return output / f"data-{digest(TOWER_KINDS, KINDS, amounts, DRAWINGS, IMAGE_SIZE, LABEL_GRID)}"


def write_data(folder: Path) -> None:
    """
    Writes the data with its pictures, unless it is there.

    Args:
        folder (`Path`):
            Gets `tower.jsonl` (pairs of `TOWER_KINDS`), `teacher.jsonl` (words alone), the files that
            recipes/mini/study/variants.yaml describes, and `heldout.jsonl`, `heldout_larger.jsonl` and
            `heldout_jump.jsonl`: problems of `KINDS`, behind them some of `TOWER_KINDS`.
    """
    done = folder / "done"
    if done.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    _write(folder, "tower", _generate(NUM_TOWER, TOWER_KINDS))
    _write(folder, "teacher", _generate(NUM_ROWS, KINDS, LARGER, with_images=False))
    jump = {"modality": MODALITIES[-1:]}
    for suffix, level, options in (("", 1, {}), ("_larger", LARGER, {}), ("_jump", 1, jump)):
        heldout = _generate(NUM_HELDOUT, KINDS, level, "heldout", drawings=1, **options)
        elsewhere = _generate(NUM_ELSEWHERE, TOWER_KINDS, split="heldout", drawings=1)
        _write(folder, f"heldout{suffix}", itertools.chain(heldout, elsewhere))
    _write(folder, "jump", _generate(NUM_ROWS, KINDS, **jump))
    for number, (words, fewer) in enumerate(itertools.pairwise(STEPS), 1):
        options = {"seed": DATA_SEED + number, "text_rich_modality": words, "modality": [fewer]}
        _write(folder, f"ladder{number}", _generate(NUM_ROWS // (len(STEPS) - 1), KINDS, **options))
    _write(folder, "larger", _generate(NUM_ROWS, KINDS, LARGER))
    _write(folder, "clean", _generate(NUM_ROWS, KINDS))
    rows = [json.loads(line) for line in (folder / "clean.jsonl").read_text().splitlines()]
    for name, changed in change_rows(rows).items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    done.touch()


def _generate(
    count: int, kinds: Sequence[str], level: int = 1, split: str = "train", **options: Any
) -> Iterator[dict]:
    style = {"image_size": IMAGE_SIZE, "label_grid": LABEL_GRID, "drawings": DRAWINGS, "num_proc": os.cpu_count()}
    others = {"seed": DATA_SEED, "split": split, "levels": (level,)}
    return generate_pairs(count, kinds=kinds, **others | style | options)


def _write(folder: Path, name: str, rows: Iterator[dict]) -> None:
    write_pairs(rows, folder / f"{name}.jsonl", f"images/{name}")


def change_rows(rows: list[dict]) -> dict[str, list[dict]]:
    """
    Returns name → rows of the files that are made from `clean`.

    Args:
        rows (`list[dict]`):
            The pairs, of which the kinds take turns.
    """
    wrong = set(random.Random(DATA_SEED).sample(range(len(rows)), round(NOISE * len(rows))))

    def stranger(index: int, *names: str) -> dict:
        # another problem of the same kind, some rounds further
        other = rows[(index + 17 * len(KINDS)) % len(rows)]
        return rows[index] | {name: other[name] for name in names}

    places = range(len(rows))
    return {
        "shuffled": [stranger(index, "instruction") for index in places],
        "noisy": [stranger(index, "output", "output_2") if index in wrong else rows[index] for index in places],
        "few": rows[:NUM_FEW],
        "few_answered": rows[:NUM_FEW] + [row | NO_ANSWER for row in rows[NUM_FEW:]],
        "unanswered": [row | NO_ANSWER for row in rows],
        "terse": [row | dict.fromkeys(NO_ANSWER, f"Answer: {row['answer']}") for row in rows],
    }
