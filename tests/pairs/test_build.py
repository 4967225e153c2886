"""Pairs from ordinary problems: every format of input, every level, bad rows, determinism, and training on them."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from datasets import Image as DatasetImage
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError
from PIL import Image

from puma_trl import run
from puma_trl.data.files import find_chunks, find_sources
from puma_trl.data.forms import find_forms
from puma_trl.data.readers import read_chunk
from puma_trl.data.rows import read_row
from puma_trl.errors import DataError, PumaError
from puma_trl.mini import build_model, build_processor
from puma_trl.pairs.__main__ import main
from puma_trl.pairs.build import files as build_files
from puma_trl.pairs.build import pairs as builder
from puma_trl.pairs.build.compose import Composition
from puma_trl.pairs.build.settings import LEVELS


PLAIN = [
    {"question": "A train goes 60 km in one hour. How far does it go in 3 hours?", "answer": "180 km"},
    {"question": "Let $x^2 = 16$ and $x > 0$. Find $\\frac{x}{2}$.", "answer": "2"},
]
GSM8K = [
    {
        "question": f"Ann has {n} pens. She buys 2 more. How many has she?",
        "answer": f"{n}+2=<<{n}+2={n + 2}>>{n + 2}\n#### {n + 2}",
    }
    for n in range(3, 9)
]
MATH = [
    {
        "problem": "Simplify $\\sqrt{8}$. Give it exactly.",
        "solution": "It is $\\boxed{2\\sqrt{2}}$.",
        "level": "Level 1",
    }
]


SECOND = {"instruction_2": "Solve it.", "output_2": "1", "image_url_2": "d.png"}


def conversation(name, n):
    question = f"<image>\nIn the triangle, angle A is {n} degrees.\nWhat is the sum of the other two?\n"
    question += f"Choices:\nA: {180 - n}\nB: 90"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": f"180 - {n} = {180 - n}. Answer: A"}]
    return {"id": str(n), "image": name, "conversations": turns}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def draw(path, size=(200, 150)):
    image = Image.new("RGB", size, "white")
    image.paste((0, 0, 0), (40, 40, 120, 100))
    image.save(path)


def command(source, output, *options):
    return ["build", "--input", str(source), "--output", str(output), *map(str, options)]


def run_build(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["pairs", *command(*arguments)])
    main()


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def build_rows(tmp_path, monkeypatch):
    """Returns a function that builds rows and returns the pairs."""

    def build_rows(rows, *options):
        run_build(monkeypatch, write(tmp_path / "in.jsonl", rows), tmp_path / "out", *options)
        return read(tmp_path / "out" / "train.jsonl")

    return build_rows


def test_text_only_problems(build_rows, tmp_path, capsys):
    rows = build_rows(PLAIN)
    assert [row["instruction"] for row in rows] == [row["question"] for row in PLAIN]
    for row, source in zip(rows, PLAIN, strict=True):
        assert row["output"] == row["output_2"] == source["answer"]
        assert row["image_url"] == "" and row["instruction_2"] in builder.VISION_ONLY_PROMPTS
        assert Image.open(tmp_path / "out" / row["image_url_2"]).size[0] >= 512
    assert "2 pairs from 2 rows" in capsys.readouterr().out


def test_levels(build_rows):
    rows = build_rows(PLAIN, "--levels", "vision_only", "vision_dominant")
    assert [row["kind"] for row in rows] == ["vision_only", "vision_dominant"] * 2
    assert [row["instruction_2"] for row in rows[1::2]] == ["How far does it go in 3 hours?", "Find $\\frac{x}{2}$."]
    assert len({row["image_url_2"] for row in rows}) == 4


def test_columns(build_rows):
    row = {"q": "Find the area.", "a": 12, "given": "The sides are 3 and 4.", "options": ["12", "7"]}
    options = [
        "--question_column",
        "q",
        "--answer_column",
        "a",
        "--facts_column",
        "given",
        "--choices_column",
        "options",
    ]
    (pair,) = build_rows([row], *options, "--levels", "vision_dominant")
    assert pair["instruction"] == "The sides are 3 and 4.\nFind the area.\nA. 12\nB. 7"
    assert pair["instruction_2"] == "Find the area.\nA. 12\nB. 7"
    assert pair["output_2"] == "12"


def test_choices_in_a_column_each(build_rows):
    rows = [
        {"question": "Which?", "answer": "C", "A": "103,7°", "B": "", "C": "93,6°", "D": None},
        {"question": "How many?", "answer": "A", "A": 3, "B": 4, "C": None, "D": None},
        {"question": "How far?", "answer": "5 km", "A": None, "B": None, "C": None, "D": None},
    ]
    pairs = build_rows(rows, "--choices_column", "A", "B", "C", "D")
    assert [pair["instruction"].split("\n") for pair in pairs] == [
        ["Which?", "A. 103,7°", "C. 93,6°"],
        ["How many?", "A. 3", "B. 4"],
        ["How far?"],
    ]


def test_answers_by_position_are_told(build_rows, capsys):
    rows = [{"question": "Which?", "answer": 1, "options": ["red", "blue"]}] * 2
    pairs = build_rows(rows, "--choices_column", "options")
    assert [pair["output"] for pair in pairs] == ["B", "B"]
    assert "2 answers were positions of choices, counted from 0, and are letters now." in capsys.readouterr().out


def test_pictures_of_the_columns_of_any_form_are_read(build_rows, tmp_path):
    draw(tmp_path / "t.png")
    row = {"problem": "<image>Find x.", "answer": "3", "images": ["t.png"]}
    (pair,) = build_rows([row], "--question_column", "problem")
    assert pair["instruction"] == "Find x." and (tmp_path / "out" / pair["image_url"]).is_file()


def test_gsm8k(build_rows):
    rows = build_rows(GSM8K, "--preset", "gsm8k")
    assert rows[0]["output"] == "3+2=5\nAnswer: 5"


def test_math(build_rows):
    (row,) = build_rows(MATH, "--preset", "math")
    assert row["output"] == MATH[0]["solution"] and row["instruction"] == MATH[0]["problem"]


@pytest.mark.parametrize("preset", ["geoqa", "mathv360k"])
@pytest.mark.parametrize("text_rich_image", ["keep", "drop"])
def test_image_questions(build_rows, tmp_path, preset, text_rich_image):
    draw(tmp_path / "d.png")
    (row,) = build_rows([conversation("d.png", 30)], "--preset", preset, "--text_rich_image", text_rich_image)
    assert (
        row["instruction"].startswith("In the triangle, angle A is 30 degrees.")
        and "<image>" not in row["instruction"]
    )
    if text_rich_image == "keep":
        assert (tmp_path / "out" / row["image_url"]).read_bytes() == (tmp_path / "d.png").read_bytes()
    else:
        assert row["image_url"] == ""
    picture = Image.open(tmp_path / "out" / row["image_url_2"])
    assert picture.mode == "P" and picture.height > 150  # the diagram, which has no colours, and the words
    assert {red == green == blue for _, (red, green, blue) in picture.convert("RGB").getcolors(999)} == {True}


@pytest.mark.parametrize("level", ["vision_only", "vision_dominant"])
def test_how_to_answer_stays_in_the_prompt(build_rows, monkeypatch, level):
    """Geo170K and MathV360K say first in which form they want the answer."""
    printed = []
    compose = builder.compose
    monkeypatch.setattr(
        builder, "compose", lambda text, *rest, **more: printed.append(text) or compose(text, *rest, **more)
    )
    hint, facts, asked = (
        "Hint: Give the letter, e.g., A.",
        "AB is parallel to CD.",
        "Then angle 2 is ()\nChoices:\nA:40°\nB:50°",
    )
    turns = [{"from": "human", "value": f"{hint}\nQuestion: {facts} {asked}"}, {"from": "gpt", "value": "A"}]
    (row,) = build_rows([{"conversations": turns}], "--preset", "mathv360k", "--levels", level)
    assert row["instruction"] == f"{hint}\n{facts} {asked}"
    if level == "vision_only":
        assert printed == [f"{facts} {asked}"]
        assert row["instruction_2"] in [f"{hint}\n{prompt}" for prompt in builder.VISION_ONLY_PROMPTS]
    else:
        assert printed == [facts] and row["instruction_2"] == f"{hint}\n{asked}"


def test_a_row_loses_only_the_levels_that_it_cannot_have(build_rows, tmp_path, monkeypatch, capsys):
    long = {"question": "Words " * 3000 + "end here. What is it?", "answer": "1"}  # in the picture at either level
    half = {"question": "AB is 3. What " + "is it " * 3000 + "?", "answer": "1"}  # in the picture at one
    rows = [PLAIN[0], {"question": "What is 3 + 4?", "answer": "7"}, half]
    pairs = build_rows(rows, "--levels", "vision_only", "vision_dominant")
    assert [row["kind"] for row in pairs] == ["vision_only", "vision_dominant", "vision_only", "vision_dominant"]
    report = capsys.readouterr().out
    assert "4 pairs from 3 rows" in report and not (tmp_path / "out" / "dropped_rows.jsonl").exists()
    assert "Levels that rows cannot have: 1 vision_dominant: no conditions, 1 vision_only: text too long." in report
    with pytest.raises(PumaError, match=r"1 of 2 rows cannot be used(.|\n)*in.jsonl:2: text too long"):
        source = write(tmp_path / "in.jsonl", [PLAIN[0], long])
        run_build(monkeypatch, source, tmp_path / "long", "--levels", *LEVELS)


def test_rows_without_the_only_level_do_not_stop_a_build(build_rows, tmp_path, monkeypatch, capsys):
    rows = [{"question": "What is 3 + 4?", "answer": "7"}, PLAIN[0]]
    (pair,) = build_rows(rows, "--levels", "vision_dominant")
    assert pair["instruction"] == PLAIN[0]["question"]
    assert "Levels that rows cannot have: 1 vision_dominant: no conditions." in capsys.readouterr().out
    source = write(tmp_path / "in.jsonl", rows[:1])
    with pytest.raises(PumaError, match=r"No pair could be built from 1 rows \(1 vision_dominant: no conditions\)"):
        run_build(monkeypatch, source, tmp_path / "none", "--levels", "vision_dominant")


@pytest.mark.parametrize(
    ("choices", "lines"),
    [
        (["12", 7], ["A. 12", "B. 7"]),
        (["(A) 12", "(B) 7"], ["(A) 12", "(B) 7"]),
        (["A. 12", "A. 7"], ["A. A. 12", "B. A. 7"]),
        (None, []),
    ],
)
def test_choices(build_rows, choices, lines):
    row = {"question": "What is it?", "answer": "12", "choices": choices}
    (pair,) = build_rows([row], "--choices_column", "choices")
    assert pair["instruction"].split("\n") == ["What is it?", *lines]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"question": "What?"}], "fits no form of rows. Its columns are: `question`"),
        ([{"question": "What?", "answer": None}], r"No pair could be built from 1 rows \(1 no answer\)"),
        ([], "is empty. Pass a file with at least one row"),
    ],
)
def test_nothing_left_is_an_error(tmp_path, monkeypatch, rows, reason):
    source = write(tmp_path / "in.jsonl", rows)
    with pytest.raises(PumaError, match=reason):
        run_build(monkeypatch, source, tmp_path / "out", "--bad_rows", "drop")
    run_build(monkeypatch, write(source, PLAIN), tmp_path / "out")  # corrected, in the same folder


def test_columns_that_a_preset_does_not_read_are_refused(tmp_path, monkeypatch):
    source = write(tmp_path / "in.jsonl", [conversation("d.png", 30)])
    with pytest.raises(PumaError, match="`--choices_column` names 27 columns.* 26 letters"):
        run_build(monkeypatch, source, tmp_path / "out", "--choices_column", *map(str, range(27)))
    with pytest.raises(PumaError, match="leave `--choices_column` out"):
        run_build(monkeypatch, source, tmp_path / "out", "--preset", "geoqa", "--choices_column", "choices")


def test_table_of_conversations_with_embedded_pictures(tmp_path, monkeypatch):
    draw(tmp_path / "d.png")
    rows = [conversation(None, 30) | {"image": str(tmp_path / "d.png")}] * 3
    Dataset.from_list(rows).cast_column("image", DatasetImage()).to_parquet(tmp_path / "in.parquet")
    monkeypatch.setattr(build_files, "ROWS_PER_GROUP", 2)
    for file_format in ("jsonl", "parquet"):
        run_build(
            monkeypatch, tmp_path / "in.parquet", tmp_path / file_format, "--preset", "geoqa", "--format", file_format
        )
    for pair in read(tmp_path / "jsonl" / "train.jsonl"):
        assert Image.open(tmp_path / "jsonl" / pair["image_url"]).size == (200, 150)
    (file,) = (tmp_path / "parquet" / "data").iterdir()
    pairs = Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    assert pairs.features == build_files.PAIR_FEATURES and len(pairs) == 3
    assert pairs[0]["image_url"].size == (200, 150) and pairs[2]["image_url_2"].width >= 512


def test_csv_list_and_table(tmp_path, monkeypatch):
    (tmp_path / "in.csv").write_text("question,answer,source\nWhat is 1 + 2?,3,x\n")
    (tmp_path / "in.json").write_text(json.dumps([{"question": "What is 1 + 2?", "answer": "3"}]))
    Dataset.from_list([{"question": "What is 1 + 2?", "answer": "3"}]).to_parquet(tmp_path / "in.parquet")
    for name in ("in.csv", "in.json", "in.parquet"):
        run_build(monkeypatch, tmp_path / name, tmp_path / f"{name}-out")
        assert read(tmp_path / f"{name}-out" / "train.jsonl")[0]["output"] == "3"


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize(
    "options", [(), ("--preset", "math", "--question_column", "question", "--answer_column", "answer")]
)
def test_diagrams_are_found_in_the_column_image(tmp_path, monkeypatch, capsys, suffix, options):
    draw(tmp_path / "d.png")
    rows = [PLAIN[0] | {"image": "d.png"}, PLAIN[1] | {"image": None}]
    source = tmp_path / f"in{suffix}"
    if suffix == ".csv":
        source.write_text("question,answer,image\nWhat is it?,1,d.png\nWhat?,2,\n")
    elif suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(source)
    else:
        source.write_text(json.dumps(rows) if suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    run_build(monkeypatch, source, tmp_path / "out", *options)
    first, second = read(tmp_path / "out" / "train.jsonl")
    assert (tmp_path / "out" / first["image_url"]).read_bytes() == (tmp_path / "d.png").read_bytes()
    assert second["image_url"] == ""
    assert "2 pairs from 2 rows, 1 with a diagram" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["image", "choices", "facts"])
def test_a_named_column_that_no_row_has_is_an_error(tmp_path, monkeypatch, name):
    source = write(tmp_path / "in.jsonl", PLAIN)
    with pytest.raises(
        PumaError, match="`columns` names `imgae`, but no row has that column. There are: question, answer"
    ):
        run_build(monkeypatch, source, tmp_path / "out", f"--{name}_column", "imgae")
    assert not (tmp_path / "out").exists()


def test_a_named_column_may_come_late(build_rows, tmp_path):
    draw(tmp_path / "d.png")
    rows = build_rows([*PLAIN, PLAIN[0] | {"figure": "d.png"}], "--image_column", "figure")
    assert [bool(row["image_url"]) for row in rows] == [False, False, True]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Look at <image1>. Find x.", "Look at the picture. Find x."),
        ("Find x in the <image>.", "Find x in the picture."),
        ("如<image>所示，求x。", "如图所示，求x。"),
        ("<image>\nFind x.", "Find x."),
        ("Find x.\n<image>", "Find x."),
    ],
)
def test_the_place_of_a_picture_in_a_sentence_is_named(build_rows, tmp_path, question, expected):
    draw(tmp_path / "d.png")
    (row,) = build_rows([{"question": question, "answer": "3", "image": "d.png"}])
    assert row["instruction"] == expected


TURNS = [{"from": "human", "value": "<image>\nFind AB."}, {"from": "gpt", "value": "It is 3."}]
WORDS = [{"from": "human", "value": "Find AB."}, {"from": "gpt", "value": "It is 3."}]
FORMS = {
    "conversations": {"conversations": TURNS, "image": "d.png"},
    "messages": {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Find AB."}]},
            {"role": "assistant", "content": "It is 3."},
        ],
        "images": ["d.png"],
    },
    "published": {"instruction": "Find AB.", "output": "It is 3.", "image_url": "d.png"},
    "prompt": {"prompt": "Find AB.", "completion": "It is 3.", "images": ["d.png"]},
    "problem": {"problem": "Find AB.", "solution": "It is 3.", "image": "d.png"},
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_every_form_are_built(build_rows, tmp_path, form, capsys):
    draw(tmp_path / "d.png")
    (pair,) = build_rows([FORMS[form] | {"note": "seen"}])
    assert (pair["instruction"], pair["output"], pair["output_2"]) == ("Find AB.", "It is 3.", "It is 3.")
    assert (tmp_path / "out" / pair["image_url"]).read_bytes() == (tmp_path / "d.png").read_bytes()
    assert "Columns not read: note." in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "out" / "build.yaml").read_text())["result"]["unread"] == []


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_a_system_prompt_stays_on_both_sides(tmp_path, monkeypatch, file_format):
    row = {"system": "Answer briefly.", "instruction": "Find the third.", "input": "Two are 1 and 2.", "output": "3"}
    source = write(tmp_path / "in.jsonl", [row, row | {"system": ""}])
    run_build(monkeypatch, source, tmp_path / "out", "--format", file_format)
    data = tmp_path / "out" / ("train.jsonl" if file_format == "jsonl" else "data")
    (found,) = find_forms(find_sources([str(data)], None, None, "train"))
    (chunk,) = find_chunks([found])
    first, second = (read_row(raw, found.root, found.form) for _, raw in read_chunk(found, chunk))
    assert first["instruction"] == "Find the third.\n\nTwo are 1 and 2."
    assert first["history"] == first["history_2"] == [{"role": "system", "content": "Answer briefly."}]
    assert second["history"] == second["history_2"] == []


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": "Find AB.", "output": "3", "image": "d.png"}, "`image` .*image_url.*image"),
        ({"question": "Find AB.", "answer": "3", "Photo": "d.png"}, "`Photo` has the name of pictures"),
        ({"question": "Find AB.", "answer": "3", "source": "d.png"}, "`source` holds a picture"),
        ({"question": "Find AB.", "answer": "3", "choices": ["3", "4"]}, "`choices` .*`--choices_column` names"),
        ({"question": "Find AB.", "answer": "3", "context": "AC is 2."}, "`context` .*`--facts_column` a text"),
        ({"question": "Find AB.", "answer": "3", "messages": TURNS}, "can be read in several ways"),
    ],
)
def test_columns_that_would_be_lost_are_refused(tmp_path, monkeypatch, row, words):
    with pytest.raises(DataError, match=words) as refused:
        run_build(monkeypatch, write(tmp_path / "in.jsonl", [row]), tmp_path / "out")
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


def test_columns_are_mapped_and_ignored(build_rows, tmp_path):
    draw(tmp_path / "d.png")
    row = {"q": {"text": "Find AB."}, "answer": 3, "shown": "d.png", "photo": "me.png"}
    mapping = {"instruction": "q.text", "image_url": "shown", "photo": "ignore"}
    (pair,) = build_rows([row], "--columns", json.dumps(mapping))
    assert pair["instruction"] == "Find AB." and pair["image_url"] and pair["output"] == "3"


def test_a_lookalike_of_a_later_row_is_refused_with_the_remedy(tmp_path, monkeypatch):
    rows = [PLAIN[0]] * 101 + [PLAIN[0] | {"Photo": "d.png"}]
    monkeypatch.setattr(builder, "compose", lambda *_, **__: Composition(Image.new("L", (9, 9)), 0, ()))
    with pytest.raises(PumaError, match=r"in.jsonl:102: unread column: `Photo` (.|\n)*says what"):
        run_build(monkeypatch, write(tmp_path / "in.jsonl", rows), tmp_path / "out")


def test_rows_without_facts_are_split_like_others(build_rows):
    row = {"question": "AB is 3. Find BC.", "answer": "4"}
    facts = [row | {"hint": hint} for hint in ("AC is 7.", "", None)]
    options = ["--facts_column", "hint", "--levels", "vision_dominant"]
    first, *others = build_rows([*facts, row], *options)
    assert first["instruction_2"] == "AB is 3. Find BC."
    assert [row["instruction_2"] for row in others] == ["Find BC."] * 3


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_choices_of_later_rows_and_of_tables(tmp_path, monkeypatch, suffix, capsys):
    """Choices that are numbers are not what a form looks at, and no column of the options counts as unread."""
    rows = [{"question": "AB is 3. Find BC.", "answer": "4", "given": "AC is 7."}] * 101
    rows.append(rows[0] | {"options": [3, 4], "note": "seen"})
    source = write(tmp_path / "in.jsonl", rows)
    if suffix == ".parquet":
        Dataset.from_list([{"options": None, "note": None} | row for row in rows]).to_parquet(
            source.with_suffix(suffix)
        )
    monkeypatch.setattr(builder, "compose", lambda *_, **__: Composition(Image.new("L", (9, 9)), 0, ()))
    options = ["--choices_column", "options", "--facts_column", "given"]
    run_build(monkeypatch, source.with_suffix(suffix), tmp_path / "out", *options)
    *_, before, last = read(tmp_path / "out" / "train.jsonl")
    assert before["instruction"] == "AC is 7.\nAB is 3. Find BC."
    assert last["instruction"] == "AC is 7.\nAB is 3. Find BC.\nA. 3\nB. 4"
    assert "Columns not read: note." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "preset", "reason"),
    [
        ([GSM8K[0], GSM8K[0] | {"answer": "3"}], "gsm8k", "missing value: the solution has no final answer"),
        ([MATH[0], MATH[0] | {"problem": "[asy] draw(x); [/asy] Find x."}], "math", "diagram as code"),
        ([PLAIN[0], PLAIN[0] | {"question": "<table><tr><td>1</td></tr></table> x?"}], None, "diagram as code.* HTML"),
        (
            [PLAIN[0], PLAIN[0] | {"question": "Is $\x08ar{z}$ 1?"}],
            None,
            "broken escape: the question has a backspace",
        ),
        ([PLAIN[0], PLAIN[0] | {"answer": "$\x0crac{1}{2}$"}], None, "broken escape: the answer has a form feed"),
        ([PLAIN[0], PLAIN[0] | {"question": "<image>", "image": "d.png"}], None, "empty text: `question`"),
        ([PLAIN[0], PLAIN[0] | {"question": "<image>\nFind x."}], None, "image places: `question` has 1 for pictures"),
        ([{"messages": WORDS}, {"messages": WORDS * 2}], None, "several turns: .* has 4 turns"),
        ([{"instruction": "a?", "output": "1"}, {"instruction": "a?", "output": "1"} | SECOND], None, "two sides"),
    ],
)
def test_rows_that_are_no_single_problem(tmp_path, monkeypatch, rows, preset, reason):
    draw(tmp_path / "d.png")
    options = ["--preset", preset] if preset else []
    with pytest.raises(PumaError, match=rf"1 of 2 rows cannot be used(.|\n)*in.jsonl:2: {reason}"):
        run_build(monkeypatch, write(tmp_path / "in.jsonl", rows), tmp_path / "out", *options)


def test_math_with_its_final_answers_beside_the_solutions(build_rows):
    (pair,) = build_rows([MATH[0] | {"answer": "2"}], "--preset", "math")
    assert pair["output"] == MATH[0]["solution"]


def test_missing_column_is_named(tmp_path, monkeypatch):
    (tmp_path / "in.csv").write_text("prompt,answer\nWhat?,3\n")
    with pytest.raises(PumaError, match="fits no form of rows. Its columns are: `prompt`, `answer`"):
        run_build(monkeypatch, tmp_path / "in.csv", tmp_path / "out")


BAD = [
    ({"question": "What?"}, "no answer: `answer`"),
    ({"question": " ", "answer": "1"}, "empty text: `question`"),
    ({"answer": "1"}, "missing value: `question`"),
    ({"question": "What?", "answer": float("nan")}, "wrong type: `answer` is float nan, not text"),
    ({"question": float("-inf"), "answer": "1"}, "wrong type: `question` is float -inf, not text"),
    ({"question": "What?", "answer": "1", "image": "none.png"}, "missing image"),
    ({"question": "What?", "answer": "1", "image": "torn.png"}, "unreadable image"),
    ({"question": "What? " * 2000, "answer": "1"}, "text too long"),
    ({"question": "$\\sqrt{" + "x+" * 300 + "x}$", "answer": "1"}, "too wide"),
    ({"question": "\u0645\u0627", "answer": "1"}, "unsupported script"),
    ([1], "wrong type"),
]


@pytest.mark.parametrize(("row", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_bad_rows(tmp_path, monkeypatch, row, reason):
    draw(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:100])
    source = write(tmp_path / "in.jsonl", [PLAIN[0], row, PLAIN[1]])
    arguments = (source, tmp_path / "out")
    with pytest.raises(PumaError, match=rf"1 of 3 rows cannot be used(.|\n)*in.jsonl:2: {reason}"):
        run_build(monkeypatch, *arguments)
    run_build(monkeypatch, *arguments, "--bad_rows", "drop")  # goes on in the same folder
    assert len(read(tmp_path / "out" / "train.jsonl")) == 2
    (dropped,) = read(tmp_path / "out" / "dropped_rows.jsonl")
    assert dropped["row_id"] == "in.jsonl:2" and dropped["reason"].startswith(reason)
    assert yaml.safe_load((tmp_path / "out" / "build.yaml").read_text())["result"]["rows"] == 2


def test_no_processes_are_refused_first(tmp_path, monkeypatch):
    source = write(tmp_path / "in.jsonl", PLAIN)
    with pytest.raises(PumaError, match="`--num_proc` is 0"):
        run_build(monkeypatch, source, tmp_path / "out", "--num_proc", "0")
    assert not (tmp_path / "out").exists()


def test_bad_rows_of_a_worker_end_the_build(tmp_path, monkeypatch):
    source = write(tmp_path / "in.jsonl", [*PLAIN, {"question": "What?"}])
    with pytest.raises(PumaError, match=r"^1 of 3 rows cannot be used.*\n  in.jsonl:3: no answer.*\nRepair"):
        run_build(monkeypatch, source, tmp_path / "out", "--format", "parquet", "--num_proc", "2")
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["build.yaml"]


def test_a_build_that_ends_early_leaves_no_half_file(tmp_path, monkeypatch):
    monkeypatch.setattr(build_files, "ROWS_PER_GROUP", 1)  # written at once
    source = write(tmp_path / "in.jsonl", [*PLAIN, {"question": "What?"}])
    with pytest.raises(PumaError, match="1 of 3 rows cannot be used"):
        run_build(monkeypatch, source, tmp_path / "out", "--format", "parquet")
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["build.yaml"]


SHOWN = {"question": "Is $\\unknowncommand{x}$ more than $x^2$?", "answer": "1"}


def test_pictures_that_would_show_source_are_left_out_and_counted(build_rows, tmp_path, capsys):
    (pair,) = build_rows([PLAIN[0], SHOWN])
    report = capsys.readouterr().out
    assert pair["instruction"] == PLAIN[0]["question"]
    assert "1 of 2 pictures (50.0%) would have shown source, and were left out" in report
    assert "in.jsonl:2: '$\\unknowncommand{x}$' (unknown command \\unknowncommand)" in report
    (dropped,) = read(tmp_path / "out" / "dropped_rows.jsonl")
    assert dropped["reason"].startswith("shows source: '$\\unknowncommand{x}$' cannot be drawn")


def test_pictures_that_show_source_are_kept_or_stop_the_build(build_rows, tmp_path, monkeypatch, capsys):
    assert len(build_rows([PLAIN[0], SHOWN], "--source", "keep")) == 2
    assert "1 of 2 pictures (50.0%) show source." in capsys.readouterr().out
    with pytest.raises(PumaError, match=r"1 of 2 rows cannot be used(.|\n)*shows source(.|\n)*`--source drop` to"):
        run_build(monkeypatch, tmp_path / "in.jsonl", tmp_path / "error", "--source", "error")


def test_a_level_that_shows_source_leaves_the_other(build_rows, capsys):
    row = {"question": "AB is 3. Is $\\unknowncommand{x}$ more?", "answer": "1"}
    (pair,) = build_rows([row], "--levels", *LEVELS)
    assert pair["kind"] == "vision_dominant"
    assert "1 vision_only: shows source" in capsys.readouterr().out


def test_another_build_is_refused(tmp_path, monkeypatch, capsys):
    source = write(tmp_path / "in.jsonl", PLAIN)
    run_build(monkeypatch, source, tmp_path / "out")
    run_build(monkeypatch, source, tmp_path / "out")
    assert "holds this build already" in capsys.readouterr().out
    with pytest.raises(PumaError, match="holds another build: its `seed` is 0, this one's 1"):
        run_build(monkeypatch, source, tmp_path / "out", "--seed", "1")
    write(source, PLAIN + PLAIN)
    with pytest.raises(PumaError, match="another build: its `versions`"):
        run_build(monkeypatch, source, tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(PumaError, match="is not empty, and not a build"):
        run_build(monkeypatch, source, tmp_path / "other")


@pytest.mark.parametrize("content", ["steps: 3\n", "- a\n", "a: [", "settings: 3"])
def test_a_foreign_build_file_is_refused(tmp_path, monkeypatch, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "build.yaml").write_text(content)
    with pytest.raises(PumaError, match="build.yaml was not written by a build"):
        run_build(monkeypatch, write(tmp_path / "in.jsonl", PLAIN), tmp_path / "out")
    assert (tmp_path / "out" / "build.yaml").read_text() == content


@pytest.mark.parametrize("font", ["none.ttf", "in.jsonl"])
def test_a_wrong_font_claims_no_folder(tmp_path, monkeypatch, font):
    source = write(tmp_path / "in.jsonl", PLAIN)
    with pytest.raises((PumaError, OSError), match=font):
        run_build(monkeypatch, source, tmp_path / "out", "--font", str(tmp_path / font))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_repaired_input_is_built_in_the_same_folder(tmp_path, monkeypatch, file_format):
    """As the error advises; what the first command left is gone, and a finished part is kept from such replacement."""
    source = write(tmp_path / "in.jsonl", [*PLAIN, {"question": "What?"}])
    with pytest.raises(PumaError, match="Repair them"):
        run_build(monkeypatch, source, tmp_path / "out", "--format", file_format)
    write(source, PLAIN[:1])
    run_build(monkeypatch, source, tmp_path / "out", "--format", file_format)
    run_build(monkeypatch, source, tmp_path / "fresh", "--format", file_format)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")

    monkeypatch.setattr("puma_trl.data.files.CHUNK_BYTES", 100)
    write(source, [*PLAIN, {"question": "What?"}])
    with pytest.raises(PumaError, match="Repair them"):
        run_build(monkeypatch, source, tmp_path / "parts", "--format", file_format)
    write(source, PLAIN)
    with pytest.raises(PumaError, match="another build: its `versions`"):
        run_build(monkeypatch, source, tmp_path / "parts", "--format", file_format)


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (ConnectionError("no network"), "the Hub cannot be used at .*: no network"),
        (RuntimeError("timed out"), "the Hub cannot be used at .*: timed out"),
        (LocalTokenNotFoundError("no token"), "nobody is logged in to the Hub. Run `hf auth login`"),
    ],
)
def test_a_hub_that_cannot_be_used_is_an_error_before_the_build(tmp_path, monkeypatch, problem, words):
    def whoami(self):
        raise problem

    monkeypatch.setattr(HfApi, "whoami", whoami)
    source = write(tmp_path / "in.jsonl", PLAIN)
    with pytest.raises(PumaError, match=words):
        run_build(monkeypatch, source, tmp_path / "out", "--format", "parquet", "--push_to_hub", "me/pairs")
    assert not (tmp_path / "out").exists()


def test_a_push_that_fails_leaves_the_build(tmp_path, monkeypatch):
    def create_repo(self, *args, **kwargs):
        raise RuntimeError("timed out")

    monkeypatch.setattr(HfApi, "whoami", lambda self: {})
    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    source = write(tmp_path / "in.jsonl", PLAIN)
    with pytest.raises(
        PumaError, match="is finished, but could not be pushed to the Hub at .*: timed out. The same command"
    ):
        run_build(monkeypatch, source, tmp_path / "out", "--format", "parquet", "--push_to_hub", "me/pairs")
    assert len(list((tmp_path / "out" / "data").iterdir())) == 1


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_same_bytes_with_two_workers_and_after_a_kill(tmp_path, monkeypatch, file_format):
    monkeypatch.setattr("puma_trl.data.files.CHUNK_BYTES", 300)  # several chunks
    source = write(tmp_path / "in.jsonl", GSM8K)
    options = ("--preset", "gsm8k", "--format", file_format, "--levels", "vision_only", "vision_dominant")
    run_build(monkeypatch, source, tmp_path / "one", *options)
    run_build(monkeypatch, source, tmp_path / "two", *options, "--num_proc", "2")
    expected = contents(tmp_path / "one")
    assert len([name for name in expected if name.endswith((".png", ".parquet"))]) >= 2
    assert contents(tmp_path / "two") == expected

    calls = []
    finish = build_files.ChunkWriter.finish

    def killed(self, dropped):
        calls.append(self.number)
        if len(calls) == 2:
            raise KeyboardInterrupt  # after the pictures of this chunk, before its rows
        finish(self, dropped)

    monkeypatch.setattr(build_files.ChunkWriter, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        run_build(monkeypatch, source, tmp_path / "killed", *options)
    assert not (tmp_path / "killed" / "train.jsonl").exists()
    monkeypatch.setattr(build_files.ChunkWriter, "finish", finish)
    run_build(monkeypatch, source, tmp_path / "killed", *options)
    assert contents(tmp_path / "killed") == expected


def test_pictures_in_folders_of_limited_size(build_rows, monkeypatch):
    monkeypatch.setattr(build_files, "FILES_PER_FOLDER", 2)
    rows = build_rows(GSM8K, "--preset", "gsm8k")
    assert [row["image_url_2"].split("/")[1] for row in rows] == ["00000-0"] * 2 + ["00000-1"] * 2 + ["00000-2"] * 2


def test_push_needs_parquet(tmp_path, monkeypatch):
    with pytest.raises(PumaError, match="needs `--format parquet`"):
        run_build(monkeypatch, write(tmp_path / "in.jsonl", PLAIN), tmp_path / "out", "--push_to_hub", "me/pairs")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_workers_end_with_a_killed_command(tmp_path):
    """Otherwise they would write beside those of the command that goes on."""
    source = write(
        tmp_path / "in.jsonl", [{"question": f"What is {n} + {n}?" * 20, "answer": "1"} for n in range(8000)]
    )
    arguments = command(source, tmp_path / "out", "--num_proc", 2)
    process = subprocess.Popen([sys.executable, "-m", "puma_trl.pairs", *arguments])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_for(lambda: len(list(tmp_path.glob("out/images/*/*"))) > 5)
    workers = children.read_text().split()
    process.kill()
    process.wait()
    assert len(workers) == 3  # with the tracker that comes with spawned processes
    wait_for(lambda: not any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers))


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_mini_stage_2_trains_on_what_was_built(tmp_path, kind, file_format):
    """From the command line to a trained model, with nothing between."""
    rng = random.Random(0)
    rows = GSM8K
    if kind == "image":
        draw(tmp_path / "d.png", size=(60, 60))
        rows = [conversation("d.png", rng.randint(20, 80)) for _ in range(6)]
    source = write(tmp_path / "in.jsonl", rows)
    options = ["--preset", "gsm8k" if kind == "text" else "geoqa", "--format", file_format]
    arguments = command(source, tmp_path / "out", *options)
    subprocess.run([sys.executable, "-m", "puma_trl.pairs", *arguments], check=True)
    processor = build_processor()
    for part in (processor, build_model("qwen2_vl", processor)):
        part.save_pretrained(tmp_path / "model")
    data = tmp_path / "out" / ("train.jsonl" if file_format == "jsonl" else "data")
    flags = {"model_name_or_path": tmp_path / "model", "dataset_name": data, "output_dir": tmp_path / "trained"}
    flags |= {
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "max_length": 1024,
        "dtype": "float32",
        "use_cpu": True,
    }
    flags |= {"bf16": False, "report_to": "none", "logging_steps": 1}
    run.main([str(piece) for key, value in flags.items() for piece in (f"--{key}", value)])
    log = json.loads((tmp_path / "trained" / "trainer_state.json").read_text())["log_history"]
    assert [row["step"] for row in log if "kl" in row] == [1, 2, 3]
