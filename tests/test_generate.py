"""The problem generator: exact answers, both sides of a pair, splits, determinism, drawings."""

import json
import random
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from puma_trl.mini import IMAGE_SIZE
from puma_trl.mini import KINDS as MINI_KINDS
from puma_trl.pairs.__main__ import main
from puma_trl.pairs.drawing import Canvas, DoesNotFit
from puma_trl.pairs.generate import KINDS, _make_problem, _sample_tasks, generate_pairs, split_of


def _numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def _bars(row):
    values = dict(re.findall(r"([ABC]) is (\d+)", row["instruction"]))
    first, second = re.findall(r"\b[ABC]\b", row["instruction_2"])
    return int(values[first]), int(values[second])


# the answers, recomputed from the words of the problem alone
SOLVERS = {
    "triangle_angles": lambda row: 180 - sum(_numbers(row["instruction"])),
    "straight_angles": lambda row: 180 - sum(_numbers(row["instruction"])),
    "rectangle_perimeter": lambda row: 2 * sum(_numbers(row["instruction"])),
    "segment_total": lambda row: sum(_numbers(row["instruction"])),
    "segment_part": lambda row: _numbers(row["instruction"])[0] - _numbers(row["instruction"])[1],
    "bar_difference": lambda row: _bars(row)[0] - _bars(row)[1],
    "bar_total": lambda row: sum(_bars(row)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_answers(kind):
    for row in generate_pairs(100, seed=1, kinds=[kind]):
        assert row["answer"] == str(SOLVERS[kind](row))
        assert int(row["answer"]) > 0
        assert row["output"].endswith(f" Answer: {row['answer']}")
        for left, result in re.findall(r"([\d+*\- ]+) = (\d+)\.", row["output"]):
            assert eval(left) == int(result), row["output"]


@pytest.mark.parametrize("kind", KINDS)
def test_both_sides(kind):
    for row in generate_pairs(20, seed=2, kinds=[kind]):
        assert row["image_url"] == ""
        assert row["output"] == row["output_2"]
        assert not _numbers(row["instruction_2"])
        assert len(_numbers(row["instruction"])) >= 2
        assert row["instruction"].endswith(row["instruction_2"])
        assert isinstance(row["image_url_2"], Image.Image) and row["image_url_2"].size == (512, 384)


@pytest.mark.parametrize("num_proc", [1, 2])
def test_same_seed_same_pairs(num_proc):
    reference = list(generate_pairs(len(KINDS) * 2, seed=7))
    for row, expected in zip(generate_pairs(len(KINDS) * 2, seed=7, num_proc=num_proc), reference, strict=True):
        assert row.pop("image_url_2").tobytes() == expected.pop("image_url_2").tobytes()
        assert row == expected
    other = list(generate_pairs(len(KINDS) * 2, seed=8, with_images=False))
    assert [row["instruction"] for row in other] != [row["instruction"] for row in reference]


def test_no_problem_twice_and_splits_are_disjoint():
    keys = {}
    for split, seed, count in (("train", 0, 1500), ("heldout", 1, 500)):
        tasks = _sample_tasks(seed, list(KINDS), split, (1,), 1, ((512, 384), 1))
        problems = [(task.kind, _make_problem(task)) for task, _ in zip(tasks, range(count), strict=False)]
        assert all(split_of(kind, problem) == split for kind, problem in problems)
        texts = [f"{problem.facts} {problem.question}" for _, problem in problems]
        assert len(set(texts)) == len(texts)
        keys[split] = {(kind, problem.key) for kind, problem in problems}
    assert not keys["train"] & keys["heldout"]


@pytest.mark.parametrize("size", [IMAGE_SIZE, (512, 384)])
def test_drawings_are_legible(size):
    kinds = MINI_KINDS if size == IMAGE_SIZE else KINDS
    for row in generate_pairs(8 * len(kinds), seed=3, kinds=kinds, image_size=size):
        ink = np.asarray(row["image_url_2"].convert("L")) < 128
        assert ink.sum() > 60
        edge = np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
        assert not edge.any(), f"{row['kind']}: ink touches the border"


def test_drawings_of_one_figure_vary_and_show_the_numbers():
    rows = list(generate_pairs(40, seed=4, kinds=["segment_total"], image_size=IMAGE_SIZE))
    assert len({row["image_url_2"].tobytes() for row in rows}) == len(rows)
    # the same problem drawn by the same random numbers differs only by what its labels say
    pictures = []
    for text in ("47", "48", "47"):
        canvas = Canvas(*IMAGE_SIZE, random.Random(0))
        canvas.line((10, 40), (70, 40))
        canvas.label(text, (40, 40), [(0, -1)])
        pictures.append(canvas.finish().tobytes())
    assert pictures[0] == pictures[2] != pictures[1]


def test_labels_keep_clear_of_lines_and_labels():
    canvas = Canvas(100, 100, random.Random(0), font_size=16)
    canvas.line((0, 50), (100, 50))
    for text in ("88", "77", "66"):
        canvas.label(text, (50, 50), [(0, 1), (0, -1)])
    boxes = canvas._boxes
    assert all(box[3] < 50 or box[1] > 50 for box in boxes)
    for index, box in enumerate(boxes):
        for other in boxes[:index]:
            assert box[0] >= other[2] or other[0] >= box[2] or box[1] >= other[3] or other[1] >= box[3]
    with pytest.raises(DoesNotFit, match="'12345678901234567890'"):
        canvas.label("12345678901234567890", (50, 50), [(0, 1)])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"kinds": ["circle"]}, "no problem kind 'circle'"),
        ({"split": "test"}, "no split 'test'"),
        ({"kinds": ["triangle_angles"], "image_size": (20, 20)}, "could not be drawn in 20x20 pixels"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        list(generate_pairs(3, 0, **arguments))


def test_a_problem_in_several_drawings():
    rows = list(generate_pairs(1400, 0, ["straight_angles"], drawings=2, with_images=False))
    times = Counter(row["instruction"] for row in rows)
    assert set(times.values()) == {1, 2}
    pictures = {}
    for row in generate_pairs(1000, 0, ["straight_angles"], drawings=2, image_size=(200, 150)):
        pictures.setdefault(row["instruction"], []).append(row["image_url_2"].tobytes())
    pairs = [drawings for drawings in pictures.values() if len(drawings) == 2]
    assert pairs and all(first != second for first, second in pairs)


def test_a_kind_runs_out():
    with pytest.raises(ValueError, match="'straight_angles' has no unseen problem left"):
        list(generate_pairs(5000, 0, kinds=["straight_angles"], with_images=False))


def test_command_line(tmp_path, monkeypatch):
    arguments = ["pairs", "generate", "--n", "14", "--heldout", "7", "--seed", "5", "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    main()
    for name, count in (("train", 14), ("heldout", 7)):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert len(rows) == count
        expected = list(generate_pairs(count, 5, split=name))
        for row, other in zip(rows, expected, strict=True):
            with Image.open(tmp_path / row.pop("image_url_2")) as picture:
                assert picture.tobytes() == other.pop("image_url_2").tobytes()
            assert row == other
    with pytest.raises(FileExistsError, match="train.jsonl exists"):
        main()
