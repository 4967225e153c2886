"""Splits without leaks, and clean subsets: whole groups, the same rows, and pictures that are still found."""

import json

import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw

from puma_trl.errors import DataError
from puma_trl.pairs.__main__ import main
from puma_trl.pairs.check.command import check_pairs
from puma_trl.pairs.check.content import tie_of
from puma_trl.pairs.split.command import split_pairs

from .test_build import run_build


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def draw(path, number):
    """Draws another figure for each number."""
    image = Image.new("RGB", (200, 150), "white")
    pen = ImageDraw.Draw(image)
    pen.rectangle((10 + 7 * (number % 13), 10 + 5 * (number % 11), 90 + 3 * number, 100), outline="black", width=3)
    pen.line((0, 3 * number, 200, 150 - 2 * number), fill="black", width=2)
    path.parent.mkdir(exist_ok=True)
    image.save(path)
    return str(path.relative_to(path.parent.parent))


WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda omega sigma".split()


def question(number):
    words = " ".join(WORDS[(number * step + step) % 13] for step in range(1, 12))
    return f"Ann has {number} pens and {number + 40} books {words}. How many has she?"


@pytest.fixture
def pairs(tmp_path):
    """40 rows: 20 problems of two levels each, and near copies of three of them with other pictures."""
    rows = []
    for number in range(20):
        for level in range(2):
            picture = draw(tmp_path / "images" / f"{number}-{level}.png", 2 * number + level)
            rows.append(
                {"instruction": question(number), "output": "1", "instruction_2": "Solve it.", "output_2": "1"}
                | {"image_url": "", "image_url_2": picture}
            )
    for number in range(3):
        picture = draw(tmp_path / "images" / f"copy-{number}.png", 50 + number)
        copy = question(number).replace("How many has she?", "How many has she now?")
        rows.append(rows[0] | {"instruction": copy, "image_url_2": picture})
    return write(tmp_path / "pairs.jsonl", rows)


def test_rows_that_belong_together_stay_together(pairs, tmp_path):
    done = split_pairs([str(pairs)], tmp_path / "split", eval_size=0.3, num_proc=1)
    train, held_out = read(tmp_path / "split" / "train.jsonl"), read(tmp_path / "split" / "eval.jsonl")
    assert (len(train), len(held_out)) == (done["train"], done["eval"]) and len(train) + len(held_out) == 43
    assert 8 <= len(held_out) <= 13
    problems = [{row["instruction"].split(".")[0] for row in rows} for rows in (train, held_out)]
    assert not problems[0] & problems[1]
    assert done["groups"] <= 20 and done["largest"] >= 3


def levels(folder, name="problem_id", number=lambda problem: f"p{problem}", problems=20):
    """Rows of problems at two levels that share neither words nor a picture, in two files."""
    for level, words in enumerate(("How many pens?", "How many?")):
        rows = [
            {"instruction": f"{words} {question(2 * problem + level)}", "output": "1", name: number(problem)}
            | {"instruction_2": "Solve it.", "output_2": "1", "level": problem}
            | {"image_url_2": draw(folder / "images" / f"{level}-{problem}.png", 2 * problem + level)}
            for problem in range(problems)
        ]
        yield str(write(folder / f"level-{level}.jsonl", rows))


@pytest.mark.parametrize(
    ("name", "number"), [("problem_id", lambda problem: f"p{problem}"), ("problem_index", lambda problem: problem)]
)
def test_levels_of_one_problem_stay_together(tmp_path, capsys, name, number):
    main(["split", *levels(tmp_path, name, number), "--eval_size", "10", "--output", str(tmp_path / "split")])
    train, held_out = (read(tmp_path / "split" / f"{part}.jsonl") for part in ("train", "eval"))
    assert len(held_out) == 10 and not {row["level"] for row in train} & {row["level"] for row in held_out}
    assert f"Rows of one `{name}` stay together." in capsys.readouterr().out


def test_numbers_that_tie_nothing_are_no_ties(tmp_path):
    done = split_pairs([*levels(tmp_path, number=lambda problem: None)], tmp_path / "none", num_proc=1)
    assert done["largest"] == 1
    with pytest.raises(
        DataError, match="1 groups of similar problems and of one `problem_id`, the largest of 40 rows"
    ):
        split_pairs([*levels(tmp_path, number=lambda problem: 7)], tmp_path / "one", num_proc=1)


def test_the_check_finds_another_level_of_a_problem(tmp_path):
    data, held_out = levels(tmp_path)
    report = check_pairs([data], eval_data=[held_out], num_proc=1)
    (finding,) = [finding for finding in report.findings if "eval data" in finding.kind]
    assert (finding.kind, finding.level, finding.count) == ("same problem in eval data", "warning", 20)
    assert report.tied_by == ["problem_id"]


def test_numbers_are_the_same_in_files_of_any_kind():
    assert tie_of({"problem_index": 3}) == tie_of({"problem_index": " 3"}) == tie_of({"problem_index": 3.0}) != 0
    assert {tie_of({"problem_id": value}) for value in (None, "", float("nan"), [3], {})} | {tie_of("3")} == {0}


def test_the_check_finds_no_leak(pairs, tmp_path):
    split_pairs([str(pairs)], tmp_path / "split", eval_size=8, num_proc=1)
    folder = tmp_path / "split"
    report = check_pairs([str(folder / "train.jsonl")], eval_data=[str(folder / "eval.jsonl")], num_proc=1)
    assert report.rows_usable == report.rows_read  # the pictures are found from there
    assert not [finding.kind for finding in report.findings if "eval data" in finding.kind]


def test_the_seed_decides(pairs, tmp_path):
    texts = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        split_pairs([str(pairs)], tmp_path / name, eval_size=0.3, seed=seed, num_proc=1)
        texts.append((tmp_path / name / "eval.jsonl").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_tables_stay_tables(tmp_path):
    files = [str(tmp_path / draw(tmp_path / "images" / f"{number}.png", number)) for number in range(12)]
    table = Dataset.from_list(
        [{"question": question(number), "answer": "1", "image": file} for number, file in enumerate(files)]
    )
    table.cast_column("image", ImageFeature()).to_parquet(tmp_path / "in.parquet")
    done = split_pairs([str(tmp_path / "in.parquet")], tmp_path / "split", eval_size=3, num_proc=1)
    held_out = Dataset.from_parquet(str(done["eval_file"]), cache_dir=str(tmp_path / "cache"))
    assert len(held_out) == done["eval"] == 3 and held_out[0]["image"].size == (200, 150)


def test_data_that_hangs_together_cannot_be_split(tmp_path):
    path = write(tmp_path / "in.jsonl", [{"question": question(1), "answer": "1"}] * 5)
    with pytest.raises(
        DataError,
        match="Cannot split: the 5 rows form 1 groups of similar .* with more than one group",
    ):
        split_pairs([str(path)], tmp_path / "split", eval_size=2, num_proc=1)
    with pytest.raises(DataError, match="`--eval_size` is 1.5"):
        split_pairs([str(path)], tmp_path / "split", eval_size=1.5, num_proc=1)
    with pytest.raises(DataError, match="`--num_proc` is 0"):
        split_pairs([str(path)], tmp_path / "split", eval_size=1, num_proc=0)
    path = write(tmp_path / "apart.jsonl", [{"question": question(number), "answer": "1"} for number in range(3)])
    with pytest.raises(DataError, match="`--eval_size 0.1` would leave no evaluation rows. Try 0.34"):
        split_pairs([str(path)], tmp_path / "split", eval_size=0.1, num_proc=1)
    assert split_pairs([str(path)], tmp_path / "split", eval_size=0.34, num_proc=1)["eval"] == 1


def test_clean_rows_are_written(pairs, tmp_path):
    rows = read(pairs)
    rows[3]["output_2"] = "2"  # an error
    rows[5] |= {"output": "B", "output_2": "B"}  # a warning
    path = write(tmp_path / "pairs.jsonl", [*rows, rows[0]])  # a duplicate
    report = check_pairs([str(path)], num_proc=1, write_clean=tmp_path / "clean")
    clean = read(report.clean)
    assert report.clean_rows == len(clean) == 41
    assert all((tmp_path / "clean" / row["image_url_2"]).resolve().is_file() for row in clean)
    assert [row["instruction"] for row in clean] == [
        row["instruction"] for index, row in enumerate(rows) if index not in (3, 5)
    ]
    again = check_pairs([str(report.clean)], num_proc=1)
    assert not [finding for finding in again.findings if finding.level != "note"]
    with pytest.raises(DataError, match="is read, and would be written over"):
        check_pairs([str(report.clean)], num_proc=1, write_clean=tmp_path / "clean")
    with pytest.raises(DataError, match="exists, and would be written over"):
        check_pairs([str(path)], num_proc=1, write_clean=tmp_path / "clean")
    assert len(read(report.clean)) == 41


def test_a_split_writes_over_nothing(tmp_path):
    path = write(tmp_path / "in.jsonl", [{"question": question(number), "answer": "1"} for number in (1, 5)])
    kept = write(tmp_path / "eval.jsonl", [{"question": "Kept?", "answer": "1"}])
    with pytest.raises(DataError, match="eval.jsonl' exists, and would be written over"):
        split_pairs([str(path)], tmp_path, eval_size=1, num_proc=1)
    assert len(read(kept)) == 1 and not (tmp_path / "train.jsonl").exists()


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_pictures_that_show_source_are_found(tmp_path, monkeypatch, file_format):
    rows = [{"question": "Is $\\nosuch$ more?", "answer": "1"}, {"question": "What is 2 + 4?", "answer": "6"}]
    options = ("--source", "keep", "--format", file_format)
    run_build(monkeypatch, write(tmp_path / "in.jsonl", rows), tmp_path / "out", *options)
    data = tmp_path / "out" / ("train.jsonl" if file_format == "jsonl" else "data")
    report = check_pairs([str(data)], num_proc=1)
    (finding,) = [finding for finding in report.findings if finding.kind == "picture shows source"]
    assert finding.count == 1 and finding.level == "warning"
