"""The problem generator: exact answers, both sides of a pair, splits, determinism, drawings."""

import gc
import json
import multiprocessing
import random
import re
import subprocess
import sys
import weakref
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from puma_trl.errors import ConfigError, DataError
from puma_trl.evaluation.gap_answers import same_answer
from puma_trl.mini import IMAGE_SIZE
from puma_trl.mini import KINDS as MINI_KINDS
from puma_trl.pairs.__main__ import main
from puma_trl.pairs.generate import pairs as generator
from puma_trl.pairs.generate.drawing import Canvas, NoRoom
from puma_trl.pairs.generate.files import write_pairs
from puma_trl.pairs.generate.pairs import KINDS, _make_problem, _pairs, _sample_tasks, _Task, generate_pairs, split_of

from .problem_solvers import SOLVERS, X, is_equal, parse


LEVELS = (1, 2, 3)
# the levels of the first seven differ in the size of the numbers only
NEW_KINDS = list(KINDS)[7:]


def _equations(steps):
    """Yields the sides of every equation of a solution; words before an equation belong to no side."""
    for sentence in re.split(r"\.(?: |$)", steps):
        sides = sentence.rpartition(": ")[2].split(" = ")
        sides = [side for side in sides if re.fullmatch(r"[\dx+*/^().√π -]+", side) and side != "x"]
        yield from zip(sides, sides[1:], strict=False)


@pytest.mark.parametrize("kind", KINDS)
def test_answers(kind):
    checked = 0
    for row in generate_pairs(18, seed=1, kinds=[kind], levels=LEVELS, image_size=(336, 336)):
        answer = parse(row["answer"])
        assert is_equal(answer, SOLVERS[kind](row)), row
        steps, marker, last = row["output"].rpartition(" Answer: ")
        assert marker and last == row["answer"]
        x = answer[0] if isinstance(answer, tuple) else answer
        for left, right in _equations(steps):
            assert is_equal(*(parse(side).subs(X, x) for side in (left, right))), (left, right, row)
            checked += 1
    assert checked >= 6 or kind == "scatter_count"


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_compared_rightly(kind):
    rows = list(generate_pairs(30, seed=1, kinds=[kind], levels=LEVELS, with_images=False))
    for row in rows:
        assert same_answer(f"Some thoughts. Answer: {row['answer']}.", row["output"])
        for other in rows:
            assert same_answer(other["output"], row["output"]) == (other["answer"] == row["answer"])


@pytest.mark.parametrize("kind", KINDS)
def test_both_sides(kind):
    for row in generate_pairs(9, seed=2, kinds=[kind], levels=LEVELS):
        assert row["image_url"] == ""
        assert row["output"] == row["output_2"]
        assert not re.search(r"\d", row["instruction_2"])
        assert re.search(r"\d", row["instruction"])
        # the words alone send nobody to a picture that they do not have
        question = row["instruction_2"].removesuffix(" Count the shapes in the picture.")
        assert row["instruction"].endswith(question) and "picture." not in row["instruction"]
        assert isinstance(row["image_url_2"], Image.Image) and row["image_url_2"].size == (512, 384)


@pytest.mark.parametrize("kind", NEW_KINDS)
def test_levels_differ(kind):
    forms = []
    for level in LEVELS:
        rows = list(generate_pairs(25, seed=3, kinds=[kind], levels=[level], with_images=False))
        assert {row["level"] for row in rows} == {level}
        forms.append({re.sub(r"\d+", "#", row["instruction"] + row["output"]) for row in rows})
    assert not forms[0] & forms[1] and not forms[0] & forms[2] and not forms[1] & forms[2]


@pytest.mark.parametrize("size", [(512, 384), (336, 336)])
@pytest.mark.parametrize("kind", KINDS)
def test_labels_overlap_nothing(kind, size, monkeypatch):
    canvases = []

    class Recorder(Canvas):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            canvases.append(self)

    monkeypatch.setattr(generator, "Canvas", Recorder)
    for level in LEVELS:
        for seed in range(3):
            _pairs(_Task(kind, level, f"{seed}/{kind}", size, 1))
            canvas = canvases[-1]  # those before did not fit
            assert canvas._boxes or kind == "shape_count"
            starts, ends = (np.array(points) for points in zip(*canvas._segments, strict=True))
            steps = np.linspace(0, 1, 200)[:, None, None]
            on_lines = (starts + steps * (ends - starts)).reshape(-1, 2)
            assert on_lines.min() > 0 and (on_lines < size).all(), (kind, level, seed)
            for index, (left, top, right, bottom) in enumerate(canvas._boxes):
                assert 0 < left < right < size[0] and 0 < top < bottom < size[1]
                inside = (on_lines > (left, top)) & (on_lines < (right, bottom))
                assert not inside.all(axis=1).any(), (kind, level, seed, index)
                for other in canvas._boxes[:index]:
                    assert left >= other[2] or other[0] >= right or top >= other[3] or other[1] >= bottom


def test_a_killed_process_ends_the_work_in_a_line():
    rows = generate_pairs(10_000, seed=7, num_proc=2)
    next(rows)
    multiprocessing.active_children()[0].kill()
    with pytest.raises(DataError, match="One of the 2 processes was killed"):
        list(rows)


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
    for split, seed, count in (("train", 0, 60 * len(KINDS)), ("heldout", 1, 6 * len(KINDS))):
        tasks = _sample_tasks(seed, list(KINDS), split, LEVELS, 1, ((512, 384), 1))
        problems = [(task.kind, _make_problem(task)) for task, _ in zip(tasks, range(count), strict=False)]
        assert {kind for kind, _ in problems} == set(KINDS)
        assert all(split_of(kind, problem) == split for kind, problem in problems)
        texts = [f"{problem.facts} {problem.question}" for _, problem in problems]
        assert len(set(texts)) == len(texts)
        keys[split] = [(kind, problem.key) for kind, problem in problems]
    assert not set(keys["train"]) & set(keys["heldout"])
    # among the new kinds, another text is another problem
    new = [key for key in keys["train"] if key[0] in NEW_KINDS]
    assert len(set(new)) == len(new)


def test_mirrored_problems_count_as_two_of_one_split():
    sizes = {}
    for split, count in (("train", 1500), ("heldout", 150)):
        rows = generate_pairs(count, 0, ["rectangle_perimeter"], split=split, with_images=False)
        sizes[split] = [tuple(map(int, re.findall(r"\d+", row["instruction"]))) for row in rows]
        assert len(set(sizes[split])) == count
        assert any(wide != high and (high, wide) in sizes[split] for wide, high in sizes[split])
    assert not {tuple(sorted(size)) for size in sizes["train"]} & {tuple(sorted(size)) for size in sizes["heldout"]}


@pytest.mark.parametrize("size", [IMAGE_SIZE, (512, 384)])
def test_drawings_are_legible(size):
    kinds = MINI_KINDS if size == IMAGE_SIZE else KINDS
    for row in generate_pairs(6 * len(kinds), seed=3, kinds=kinds, image_size=size):
        ink = np.asarray(row["image_url_2"].convert("L")) < 128
        assert ink.sum() > 60
        edge = np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
        assert not edge.any(), f"{row['kind']}: ink touches the border"


def test_drawings_that_do_not_fit_are_freed_at_once(monkeypatch):
    """Not only when Python looks for reference cycles: each picture takes up to 3 MB."""
    canvases = []

    class Recorder(Canvas):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            canvases.append(weakref.ref(self))

    monkeypatch.setattr(generator, "Canvas", Recorder)
    gc.disable()
    try:
        for seed in range(20):
            _pairs(_Task("straight_angles", 1, str(seed), (84, 84), 1))
        assert len(canvases) > 20  # some did not fit
        assert [canvas for canvas in canvases if canvas() is not None] == []
    finally:
        gc.enable()


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
    with pytest.raises(NoRoom, match="'12345678901234567890'"):
        canvas.label("12345678901234567890", (50, 50), [(0, 1)])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"kinds": ["circle"]}, "no problem kind 'circle'"),
        ({"split": "test"}, "no split 'test'"),
        ({"num_proc": 0}, "`num_proc` is 0"),
        ({"label_grid": 0}, "`label_grid` is 0"),
        ({"image_size": (84, -1)}, "`image_size` is 84x-1"),
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


def test_the_other_kinds_fill_the_place_of_one_that_runs_out():
    options = {"split": "heldout", "with_images": False}
    with pytest.warns(UserWarning, match="'straight_angles' has no unseen problem left .* at level 1 after"):
        rows = list(generate_pairs(300, 0, ["straight_angles", "table"], **options))
    times = Counter(row["kind"] for row in rows)
    assert times.total() == 300 and 20 < times["straight_angles"] < times["table"]


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
                assert picture.convert("RGB").tobytes() == other.pop("image_url_2").tobytes()
            assert row == other


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["pairs", "generate", *map(str, arguments)])
    main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", -1], "`--n` is -1; it must be 0 or more"),
        (["--n", 2, "--heldout", -3], "`--heldout` is -3; it must be 0 or more"),
        (["--n", 0], "`--n` and `--heldout` are both 0, so there is nothing to write"),
        (["--n", 2, "--num_proc", 0], "`num_proc` is 0, but .* Choose 1 or more"),
        (["--n", 2, "--image_size", 0, 60], "`image_size` is 0x60, but .* Choose a larger one"),
        (["--n", 35, "--image_size", 60, 60], ".* could not be drawn in 60x60 pixels.* Choose a larger"),
        (
            ["--n", 400, "--kinds", "straight_angles", "--image_size", 200, 150, "--heldout", 120],
            r"The kind 'straight_angles' has no unseen .* after \d+ pairs, .* Ask for fewer pairs",
        ),
        (["--n", 3000, "--kinds", "straight_angles", "--image_size", 200, 150, "--heldout", 2], ".* unseen"),
    ],
)
def test_a_failed_command_leaves_the_way_free(arguments, message, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=message):
        run(monkeypatch, *arguments, "--output", tmp_path)
    assert list(tmp_path.glob("*.jsonl*")) == []
    run(monkeypatch, "--n", 3, "--heldout", 2, "--output", tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.jsonl*")) == ["heldout.jsonl", "train.jsonl"]


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("function_value", (336, 60)),
        ("parabola_zeros", (40, 40)),
        ("line_chart", (200, 40)),
        ("line_slope", (30, 300)),
    ],
)
def test_a_grid_without_room_is_an_error(kind, size):
    with pytest.raises(ConfigError, match=rf"could not be drawn in {size[0]}x{size[1]} pixels: The grid and its"):
        list(generate_pairs(1, 0, [kind], image_size=size))


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_nothing_is_overwritten(name, tmp_path, monkeypatch):
    (tmp_path / f"{name}.jsonl").write_text("mine")
    with pytest.raises(FileExistsError, match=f"{name}.jsonl exists and would be .* Choose another output folder"):
        run(monkeypatch, "--n", 3, "--heldout", 2, "--output", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.jsonl"]
    assert (tmp_path / f"{name}.jsonl").read_text() == "mine"


def test_an_interrupted_file_has_another_name(tmp_path):
    def rows():
        yield {"instruction": "1 + 1?"}
        assert not (tmp_path / "train.jsonl").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pairs(rows(), tmp_path / "train.jsonl", "images")
    assert list(tmp_path.iterdir()) == []


def test_starting_takes_no_torch():
    code = "import sys, puma_trl.pairs.__main__, puma_trl.pairs.generate.command; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
