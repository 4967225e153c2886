"""The levels of modality: what words and figure bear, in one process and in two, in files and in what is refused."""

import json
import math
import re
from collections import defaultdict

import pytest
from PIL import Image, ImageDraw

from puma_trl.errors import ConfigError
from puma_trl.evaluation.modality import MODALITIES
from puma_trl.pairs.__main__ import main
from puma_trl.pairs.generate import pairs
from puma_trl.pairs.generate.descriptions import describe
from puma_trl.pairs.generate.files import write_pairs
from puma_trl.pairs.generate.pairs import KINDS, _make_problem, _pairs, _sample_tasks, generate_pairs
from puma_trl.pairs.generate.printing import print_above
from puma_trl.pairs.generate.wording import word
from puma_trl.pairs.prompts import VISION_ONLY_PROMPTS

from .other_figures import MARKS, Drawing, as_row, feed, other_answer
from .problem_solvers import SOLVERS, is_equal, parse


LEVELS = (1, 2, 3)
STYLE = ((512, 384), 1)


def sample(count, seed, kinds=KINDS):
    for task, _ in zip(_sample_tasks(seed, list(kinds), "train", LEVELS, 1, STYLE), range(count), strict=False):
        yield task, _make_problem(task)


def check_levels(task, problem, drawing):
    """Words and figure together determine the answer at each level; below `text_lite` the words alone do not."""
    kind, level, answer = task.kind, task.level, parse(problem.answer)
    words = {name: word(problem, kind, level, name, task.seed) for name in MODALITIES}
    for name in ("text_dominant", "text_lite"):
        facts = words[name].removesuffix(f" {problem.question}")
        assert is_equal(SOLVERS[kind](as_row(problem, level, facts)), answer), words
    _pairs(task)
    drawn = drawing.numbers(kind)
    for name in ("vision_intensive", "vision_dominant", "vision_only"):
        assert is_equal(SOLVERS[kind](as_row(problem, level, feed(problem, words[name], drawn))), answer), words
    marks = MARKS.get(kind, ((),) * 3)[level - 1]
    assert set(marks) <= {name for name, _ in drawing.calls}, (kind, level)
    assert not is_equal(other_answer(problem, kind, level, answer), answer), words
    assert not re.search(r"\d", words["vision_dominant"] + words["vision_only"])
    assert words["text_dominant"] == f"{describe(kind, level)} {words['text_lite']}"
    assert len(set(words.values())) == len(MODALITIES)


@pytest.mark.parametrize("kind", KINDS)
def test_words_and_figure_determine_the_answer(kind, monkeypatch):
    drawing = Drawing(monkeypatch)
    for task, problem in sample(9, 1, [kind]):
        check_levels(task, problem, drawing)


@pytest.mark.slow
def test_words_and_figure_of_2000_problems(monkeypatch):
    drawing = Drawing(monkeypatch)
    for task, problem in sample(2000, 2):
        check_levels(task, problem, drawing)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_words_ask_for_several_answers(kind):
    answers = defaultdict(list)
    for task, problem in sample(90, 3, [kind]):
        for name in ("vision_dominant", "vision_only"):
            answers[word(problem, kind, task.level, name, task.seed)].append(problem.answer)
    for found in answers.values():
        assert len(found) < 5 or len(set(found)) > 1


def test_vision_only_has_no_word_of_the_problem():
    common = {"the", "in", "and", "is", "it", "picture"}
    words = {each for prompt in VISION_ONLY_PROMPTS for each in re.findall(r"\w+", prompt.lower())}
    for task, problem in sample(6 * len(KINDS), 4):
        assert word(problem, task.kind, task.level, "vision_only", task.seed) in VISION_ONLY_PROMPTS
        assert set(re.findall(r"\w+", f"{problem.facts} {problem.question}".lower())) & words <= common


def test_descriptions_have_no_number():
    for kind in KINDS:
        for level in LEVELS:
            assert re.fullmatch(r"The figure shows [^\d]+\.", describe(kind, level))


def test_a_problem_comes_at_each_level_with_one_figure():
    rows = list(generate_pairs(len(KINDS), 5, modality=MODALITIES[::-1]))
    plain = list(generate_pairs(len(KINDS), 5))
    assert len(rows) == len(MODALITIES) * len(plain)
    for index, expected in enumerate(plain):
        *others, last = rows[len(MODALITIES) * index :][: len(MODALITIES)]
        assert [row["modality"] for row in (*others, last)] == list(MODALITIES)
        figure = expected["image_url_2"]
        assert {row["image_url_2"].tobytes() for row in others} == {figure.tobytes()}
        # the question stands above it
        page = last["image_url_2"]
        top = page.height - figure.height
        assert page.crop((0, top, *page.size)).tobytes() == figure.tobytes()
        ink = page.crop((0, 0, page.width, top)).convert("L").point(lambda value: value < 128 and 255).getbbox()
        assert ink and min(ink[:2]) > 0 and ink[2] < page.width and ink[3] < top
        unchanged = ("image_url", "instruction", "output", "output_2", "kind", "level", "answer")
        assert all(row[name] == expected[name] for row in (*others, last) for name in unchanged)
        assert others[MODALITIES.index("vision_dominant")]["instruction_2"] == expected["instruction_2"]


def test_the_figure_of_all_levels_is_drawn_and_encoded_once(monkeypatch):
    calls = []
    for name in ("_draw", "_encode"):
        make = getattr(pairs, name)
        monkeypatch.setattr(pairs, name, lambda *given, make=make, name=name: calls.append(name) or make(*given))
    rows = list(generate_pairs(3, 0, modality=MODALITIES, text_rich_modality=None, encoded=True))
    assert calls.count("_draw") == 3 and calls.count("_encode") == 6  # and what is printed above it
    assert [len({row["problem_id"] for row in rows[start : start + 5]}) for start in (0, 5, 10)] == [1, 1, 1]
    assert len({row["problem_id"] for row in rows}) == 3


def test_the_whole_question_is_printed(monkeypatch):
    printed = []

    class Recorder(ImageDraw.ImageDraw):
        def text(self, xy, text, **options):
            printed.append(text)
            super().text(xy, text, **options)

    rows = list(generate_pairs(len(KINDS), 6, modality=["vision_dominant"]))
    monkeypatch.setattr(ImageDraw, "Draw", Recorder)
    for row in rows:
        printed.clear()
        print_above(row["instruction_2"], row["image_url_2"], 1)
        assert " ".join(printed) == row["instruction_2"]


def test_a_grid_of_labels_is_kept():
    """The figure moves by whole patches of a vision tower, and of two of them that become one."""
    kinds = ["triangle_angles", "bar_total"]
    for row in generate_pairs(6, 0, kinds, modality=["vision_only"], image_size=(84, 84), label_grid=14):
        assert row["image_url_2"].size == (84, 168)


def test_same_pairs_in_two_processes():
    options = {"seed": 7, "modality": ["text_lite", "vision_only"], "text_rich_modality": "text_dominant"}
    reference = list(generate_pairs(20, **options))
    for row, expected in zip(generate_pairs(20, num_proc=2, **options), reference, strict=True):
        for column in ("image_url", "image_url_2"):
            assert row.pop(column).tobytes() == expected.pop(column).tobytes()
        assert row == expected
    other = generate_pairs(20, **options | {"seed": 8})
    assert [row["instruction"] for row in other] != [row["instruction"] for row in reference]


def test_two_levels_in_files(tmp_path, monkeypatch):
    """The level before teaches the next; a figure that both sides have is one file."""
    levels = ["--text_rich_modality", "text_lite", "--modality", "vision_intensive", "vision_only"]
    monkeypatch.setattr("sys.argv", ["pairs", "generate", "--n", "5", *levels, "--output", str(tmp_path)])
    main()
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [row["modality"] for row in rows] == ["vision_intensive", "vision_only"] * 5
    expected = generate_pairs(5, 0, modality=["vision_intensive", "vision_only"], text_rich_modality="text_lite")
    for row, other in zip(rows, expected, strict=True):
        assert row["text_rich_modality"] == "text_lite"
        assert (row["image_url"] == row["image_url_2"]) == (row["modality"] == "vision_intensive")
        for column in ("image_url", "image_url_2"):
            with Image.open(tmp_path / row.pop(column)) as picture:
                assert picture.convert("RGB").tobytes() == other.pop(column).tobytes()
        assert row == other
    assert len(list(tmp_path.glob("images/**/*.png"))) == 15


def test_words_without_a_picture_do_not_send_to_one():
    for row in generate_pairs(2 * len(KINDS), 0, levels=LEVELS):
        assert row["image_url"] == "" and "the picture" not in row["instruction"]
    # with the figure, each side sends to it
    options = {"levels": LEVELS, "modality": MODALITIES[1:-1], "text_rich_modality": "text_dominant"}
    for row in generate_pairs(6, 0, ["shape_count"], **options):
        sides = row["instruction"], row["instruction_2"]
        assert all(text.endswith(" Count the shapes in the picture.") for text in sides)


def test_pictures_that_are_not_encoded_are_stored_once_too(tmp_path):
    rows = generate_pairs(2, 0, modality=["text_lite"], text_rich_modality="text_dominant")
    write_pairs(rows, tmp_path / "pairs.jsonl", "images")
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert all(row["image_url"] == row["image_url_2"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"modality": ["text_only"]}, "no modality 'text_only'. Choose from text_dominant, text_lite"),
        ({"modality": ["text_lite"], "text_rich_modality": "dominant"}, "no modality 'dominant'"),
        ({"text_rich_modality": "text_lite"}, "`modality`, the level of the vision-rich side, is not given"),
        ({"modality": []}, "is not given"),
        (
            {"modality": ["vision_only", "text_lite"], "text_rich_modality": "text_lite"},
            "is 'text_lite', but .*order",
        ),
        ({"modality": ["text_lite"], "with_images": False}, "need pictures"),
        ({"modality": ["vision_only"], "image_size": (64, 84), "kinds": ["segment_total"]}, "wider than the picture"),
    ],
)
def test_what_is_refused(arguments, match):
    with pytest.raises(ConfigError, match=match):
        list(generate_pairs(30, 0, **arguments))


def test_the_stroke_across_a_divided_side_stands_beside_its_point(monkeypatch):
    """At `vision_intensive` it alone tells which sides are equal; and that sides of the triangle are, the words."""
    drawing = Drawing(monkeypatch)
    tasks = zip(_sample_tasks(8, ["isosceles_angle"], "train", (3,), 1, STYLE), range(60), strict=False)
    for task, _ in tasks:
        _pairs(task)
        (marked,) = [args for name, args in drawing.calls if name == "equal_sides"]
        corners = next(args[0] for name, args in drawing.calls if name == "polygon")
        assert marked[0] == (corners[0], corners[1])
        part = marked[1]
        assert len({corners[0], corners[2]} & set(part)) == 1 and math.dist(*part) > 0.5 * math.dist(*corners[::2])
        text = word(_make_problem(task), task.kind, 3, "vision_intensive", task.seed)
        assert "degrees. Two sides of triangle ABC are equal, as marked. BD bisects angle ABC" in text
