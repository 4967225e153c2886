"""The check of pairs: every defect is planted and found, clean data gives nothing, and the report says so."""

import json
import os
import shlex

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from puma_trl.data.collator import DataCollatorForPumaPairs
from puma_trl.data.files import CHUNK_BYTES
from puma_trl.data.images import open_image
from puma_trl.entry import report
from puma_trl.errors import DataError, PumaError
from puma_trl.mini import write_data
from puma_trl.models.families.qwen import QWEN_VL
from puma_trl.pairs.__main__ import main
from puma_trl.pairs.check import scan
from puma_trl.pairs.check.command import check_pairs
from puma_trl.pairs.check.report import NOTE, bin_edges
from puma_trl.pairs.generate.files import write_pairs
from puma_trl.pairs.generate.pairs import generate_pairs

from ..models.family_models import build_family


PLACE = 5  # the row that gets the defect


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """40 pairs of 512 x 384 pixels, and 20 held-out ones."""
    folder = tmp_path_factory.mktemp("generated")
    write_pairs(generate_pairs(40, seed=0), folder / "train.jsonl", "images/train")
    write_pairs(generate_pairs(20, seed=0, split="heldout"), folder / "heldout.jsonl", "images/heldout")
    return folder


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def rows(generated):
    """The generated pairs, with absolute paths, so that a file of them may stand anywhere."""
    rows = read(generated / "train.jsonl")
    return [row | {"image_url_2": str(generated / row["image_url_2"])} for row in rows]


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def kinds(report, notes=False):
    """Kind → positions of the rows, the first line being 0, of errors and warnings, or of notes too."""
    return {
        finding.kind: sorted(line - 1 for lines in finding.rows.values() for line in lines)
        for finding in report.findings
        if notes or finding.level != NOTE
    }


def level(report, kind):
    return next(finding.level for finding in report.findings if finding.kind == kind)


def draw(path, value=0):
    """Draws a picture of its own for every value."""
    rng = np.random.default_rng(value)
    Image.fromarray(np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((12, 12, 1))).astype(np.uint8)).save(path)
    return str(path)


# Clean data


def test_generated_pairs_are_clean(generated):
    report = check_pairs([str(generated / "train.jsonl")], eval_data=[str(generated / "heldout.jsonl")], num_proc=1)
    assert kinds(report) == {} and not report.has_errors
    assert (report.rows_read, report.rows_usable, report.pairs) == (40, 40, 40)
    assert (report.pictures, report.different_pictures) == (40, 40)
    assert report.compared == {"eval data": 20}


def test_mini_data_is_clean(tmp_path):
    write_data(tmp_path, 60, 40, 0, 1)
    report = check_pairs([str(tmp_path / "stage2.jsonl")], eval_data=[str(tmp_path / "heldout.jsonl")], num_proc=1)
    assert kinds(report) == {} and report.pairs == 60
    report = check_pairs([str(tmp_path / "stage3.jsonl")], eval_data=[str(tmp_path / "heldout.jsonl")], num_proc=1)
    assert kinds(report) == {} and report.pairs == 0


# Row by row


def same_sides(row):
    return {"instruction_2": row["instruction"], "image_url": row["image_url_2"]}


DEFECTS = {
    "answers differ": ("error", lambda row: {"output_2": "It is 7."}),
    "missing image": ("error", lambda row: {"image_url_2": "/nowhere.png"}),
    "empty text": ("error", lambda row: {"instruction": "  "}),
    "wrong type": ("error", lambda row: {"output": [7]}),
    "missing value": ("error", lambda row: {"instruction_2": None}),
    "not a pair": ("error", lambda row: dict.fromkeys(("image_url_2", "instruction_2", "output_2"))),
    "identical sides": ("error", same_sides),
    "no picture": ("warning", lambda row: {"image_url_2": None}),
}


@pytest.mark.parametrize("kind", DEFECTS)
def test_defects_of_a_row(kind, rows, tmp_path):
    expected, change = DEFECTS[kind]
    rows[PLACE] |= change(rows[PLACE])
    report = check_pairs([write(tmp_path / "pairs.jsonl", rows)], num_proc=1)
    assert kinds(report) == {kind: [PLACE]} and level(report, kind) == expected
    assert report.findings[0].examples[0][0] == f"pairs.jsonl:{PLACE + 1}"


def test_a_broken_line(rows, tmp_path):
    rows[PLACE] = '{"instruction": '
    report = check_pairs([write(tmp_path / "pairs.jsonl", rows)], num_proc=1)
    assert kinds(report) == {"broken JSON": [PLACE]} and report.rows_usable == 39


def test_pictures_are_decoded(rows, tmp_path):
    content = bytearray(open(rows[PLACE]["image_url_2"], "rb").read())
    content[len(content) // 2] ^= 255  # header and end stay right, so that training would only stop at the row
    (tmp_path / "broken.png").write_bytes(content)
    Image.new("RGB", (200, 100), "grey").save(tmp_path / "blank.png")
    rows[PLACE]["image_url_2"], rows[1]["image_url_2"] = "broken.png", "blank.png"
    report = check_pairs([write(tmp_path / "pairs.jsonl", rows)], num_proc=1)
    assert kinds(report) == {"unreadable image": [PLACE], "blank picture": [1]}


ANGLE = "Two angles of a triangle are 40 and 30 degrees. Find the third angle."
SOLUTION = "40 + 30 = 70. 180 - 70 = 110. Answer: 110"
VISION, TEXT, NUMBERS = "answer in vision-rich prompt", "answer in text-rich prompt", "answer among the numbers"
LEAKS = [
    # only the picture should say it
    (ANGLE, "Find the third angle.", SOLUTION, []),
    (ANGLE, "Find the third angle. The answer is 110.", SOLUTION, [VISION]),
    (ANGLE, "Find the third angle. Answer: $\\boxed{110}$", SOLUTION, [VISION]),
    (ANGLE, "Find the third angle, 110 degrees.", SOLUTION, [VISION]),
    (ANGLE, f"Find the third angle. {SOLUTION}", SOLUTION, [VISION]),
    (ANGLE, "Find the third angle of figure 1105.", SOLUTION, []),
    (ANGLE, "求第三个角。答案:110", SOLUTION, [VISION]),
    # the question may mention the number by chance, but may not announce it
    (ANGLE + " The answer is 110 degrees.", "Find the third angle.", SOLUTION, [TEXT]),
    (ANGLE + f" Solution: {SOLUTION}", "Find the third angle.", SOLUTION, [TEXT]),
    ("The angles are 60 and 60. Find the third.", "Find the third.", "180 - 120 = 60. Answer: 60", [NUMBERS]),
    ("A has 25, B 5. How many has A?", "A has 25. How many has A?", "Answer: 25", [NUMBERS, NUMBERS]),
    # rows with letters are no options
    (
        "Row A: 1, 2. Row B: 48, 4. Find 1 of row A.",
        "Row B: 48, 4. Find 1 of row A.",
        "Answer: 48",
        [NUMBERS, NUMBERS],
    ),
    ("Row A: 1, 2. Row B: 3, 4. The answer is 110.", "Find the sum.", SOLUTION, [TEXT]),
    # an answer in words
    ("Is it an obtuse isosceles triangle?", "Which is it?", "an obtuse isosceles triangle", [TEXT]),
    ("Name the triangle.", "Which is it?", "an obtuse isosceles triangle", []),
    # trivial answers, options, and the form that an answer should have
    ("Which side is 5? A. AB B. BC", "Is it A or B? Sides are 3 and 4.", "The answer is B", []),
    ("Which is 5? Options: AB, BC, 40", "Which is 5?", "40", []),
    ("Is it right?", "Answer yes or no.", "yes", []),
    ("Find x. (A) 110 (B) 70", "Find x. Choices: (A) 110 (B) 70", SOLUTION, []),
    ("Find x. A. 110 B. 70", "Find x. The answer is 110. A. 110 B. 70", SOLUTION, [VISION]),
    ("Find x. (A) 1 (B) 2", "Select from the choices, e.g., Answer: B. Find x.", "Answer: B", []),
    ("Find x.", "Find the x.", "Answer: B", ["letter without options"]),
    ("As shown in the figure, AB is 3. Find x.", "Find x.", "7", ["figure without picture"]),
    ("如图，AB=3，求x。", "求x。", "7", ["figure without picture"]),
]


@pytest.mark.parametrize("case", range(len(LEAKS)))
def test_answers_given_away(case, tmp_path):
    instruction, instruction_2, output, expected = LEAKS[case]
    row = {"instruction": instruction, "instruction_2": instruction_2, "output": output, "output_2": output}
    report = check_pairs(
        [write(tmp_path / "pairs.jsonl", [row | {"image_url_2": draw(tmp_path / "a.png")}])], num_proc=1
    )
    assert sorted(kinds(report, notes=True)) == sorted(set(expected))
    levels = {VISION: "error", TEXT: "warning", NUMBERS: "note"}
    assert all(level(report, kind) == levels.get(kind, "warning") for kind in expected)


def test_too_many_answers_among_the_numbers_are_no_chance(rows, tmp_path):
    for row in rows[:30]:
        row["instruction"] += f" ({row['answer']} cm)" if len(row["answer"]) > 1 else ""
    report = check_pairs([write(tmp_path / "pairs.jsonl", rows)], num_proc=1)
    assert len(kinds(report)[NUMBERS]) >= 20 and level(report, NUMBERS) == "warning"


# Across rows


def test_duplicates_and_contradictions(rows, tmp_path):
    rows[20] = rows[3]
    other = {"output": "Answer: 12345", "output_2": "Answer: 12345"}
    rows[21] = rows[4] | other
    rows[22]["image_url_2"] = str(tmp_path / "copy.webp")  # the same pixels in another format
    open_image(rows[6]["image_url_2"]).save(tmp_path / "copy.webp", lossless=True)
    path = write(tmp_path / "pairs.jsonl", rows)
    report = check_pairs([path], num_proc=1)
    assert kinds(report, notes=True) | {NUMBERS: []} == {
        "duplicate row": [20],
        "contradicting answers": [21],
        "duplicate picture": [20, 21, 22],
        NUMBERS: [],
    }
    assert dict(report.findings[0].examples) in (
        {"pairs.jsonl:21": "the same as pairs.jsonl:4"},
        {"pairs.jsonl:22": "pairs.jsonl:5 has another answer"},
    )
    assert report.different_pictures == 37
    del rows[22]
    twice = check_pairs([path, write(tmp_path / "more.jsonl", rows[30:32])], num_proc=1)
    assert {"more.jsonl": [1, 2]}.items() <= twice.findings[0].rows.items()


def test_chunks_and_processes_make_no_difference(rows, tmp_path, monkeypatch):
    rows[30], rows[31]["instruction_2"] = rows[3], "The answer is " + rows[31]["answer"]
    whole = check_pairs([write(tmp_path / "pairs.jsonl", rows)], num_proc=1)
    monkeypatch.setattr("puma_trl.data.files.CHUNK_BYTES", CHUNK_BYTES >> 10)
    parts = check_pairs([str(tmp_path / "pairs.jsonl")], num_proc=2)
    assert kinds(whole) == kinds(parts) == {"duplicate row": [30], VISION: [31]}
    for side, lengths in whole.lengths.items():
        assert lengths.tolist() == parts.lengths[side].tolist()
    assert (whole.pictures, whole.different_pictures) == (parts.pictures, parts.different_pictures) == (40, 39)


# Overlap


def test_overlap_with_evaluation_data(rows, generated, tmp_path):
    heldout = [row | {"image_url_2": str(generated / row["image_url_2"])} for row in read(generated / "heldout.jsonl")]
    rows[3] = heldout[0] | {
        "instruction": heldout[0]["instruction"].upper() + " !",
        "image_url_2": draw(tmp_path / "a.png"),
    }
    rows[4]["image_url_2"] = heldout[1]["image_url_2"]
    smaller = open_image(heldout[2]["image_url_2"])
    smaller.resize((smaller.width * 3 // 4, smaller.height * 3 // 4)).save(tmp_path / "b.jpg", quality=60)
    rows[6]["image_url_2"] = "b.jpg"
    smaller.save(tmp_path / "c.jpg", quality=80)
    smaller.save(tmp_path / "d.jpg", quality=90)
    # the same prompt too; with another answer row 8 is another problem
    rows[8] |= {"instruction_2": heldout[2]["instruction_2"], "image_url_2": "c.jpg"}
    rows[9] |= {name: heldout[2][name] for name in ("instruction_2", "output", "output_2")} | {"image_url_2": "d.jpg"}
    rows[7] |= {"instruction_2": heldout[3]["instruction_2"], "image_url_2": heldout[3]["image_url_2"]}
    report = check_pairs(
        [write(tmp_path / "pairs.jsonl", rows)],
        eval_data=[write(tmp_path / "eval.jsonl", heldout)],
        num_proc=1,
    )
    assert kinds(report) == {
        "same question in eval data": [3, 7],
        "same picture in eval data": [4],
        "nearly the same question in eval data": [9],
        "nearly the same picture in eval data": [6],
    }
    assert level(report, "same question in eval data") == "error" == report.findings[0].level
    assert report.findings[0].examples[0] == ("pairs.jsonl:4", "eval.jsonl:1, with the same answer")


PROBLEM = "Anna buys 12 red pens and 7 blue pens for 3 dollars each. How much does she pay for all pens?"
BENCHMARK_MATCHES = [
    (PROBLEM, PROBLEM, "same question"),
    (PROBLEM, "Hint: be brief. Question: " + PROBLEM + " Choices: (A) 57 (B) 36", "nearly the same question"),
    (PROBLEM, PROBLEM.replace("blue", "green"), None),
    (PROBLEM, PROBLEM.replace("7", "8"), None),  # the same template with other numbers is another problem
    (PROBLEM.replace("7", "12"), PROBLEM, None),
    (PROBLEM.replace("all pens", "everything"), PROBLEM, "nearly the same question"),
    ("Find $x$ .", "find x", "same question"),
    ("Find x.", "Find y.", None),
    ("Berechne den Umfang", "求周长", None),
]


@pytest.mark.parametrize("case", range(len(BENCHMARK_MATCHES)))
def test_benchmark_questions(case, tmp_path):
    question, in_benchmark, expected = BENCHMARK_MATCHES[case]
    data = write(tmp_path / "data.jsonl", [{"instruction": question, "output": "Answer: 57"}])
    benchmark = write(tmp_path / "bench.jsonl", [{"question": "1 + 1?"}, {"question": in_benchmark}])
    report = check_pairs([data], against=[benchmark], num_proc=1)
    assert kinds(report) == ({f"{expected} in benchmark": [0]} if expected else {})


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_benchmark_pictures(suffix, rows, tmp_path):
    picture = draw(tmp_path / "a.png")
    items = [{"query": "Find x.", "image": None}, {"query": "Find z.", "image": "a.png"}]
    path = tmp_path / f"bench.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(items))
    elif suffix == "jsonl":
        write(path, items)
    elif suffix == "csv":
        path.write_text("query,image\nFind x.,\nFind z.,a.png\n")
    else:
        embedded = [item | {"image": item["image"] and {"bytes": open(picture, "rb").read()}} for item in items]
        features = Features({"query": Value("string"), "image": ImageFeature()})
        Dataset.from_list(embedded, features=features).to_parquet(path)
    rows[3] |= {"instruction_2": "Find z!", "image_url_2": picture}
    rows[4] |= {"instruction_2": "Find z!"}  # the words alone say nothing
    rows[6]["image_url_2"] = picture
    report = check_pairs([write(tmp_path / "pairs.jsonl", rows)], against=[str(path)], num_proc=1)
    assert kinds(report) == {"same question in benchmark": [3], "same picture in benchmark": [6]}
    assert report.compared == {"benchmark": 2}


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize("column", ["image", "drawing"])
def test_benchmark_columns_that_the_first_rows_leave_out(suffix, column, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("puma_trl.data.files.CHUNK_BYTES", 100)
    items = [{"query": f"Find x{index}."} for index in range(20)] + [{"query": "Find z.", column: "a.png"}]
    path = tmp_path / f"bench.{suffix}"
    path.write_text(json.dumps(items)) if suffix == "json" else write(path, items)
    rows[6]["image_url_2"] = draw(tmp_path / "a.png")
    options = {} if column == "image" else {"image_column": column}
    report = check_pairs([write(tmp_path / "pairs.jsonl", rows)], against=[str(path)], num_proc=1, **options)
    assert kinds(report) == {"same picture in benchmark": [6]}
    assert report.compared == {"benchmark": 21}


def test_benchmark_rows_that_cannot_be_compared(rows, tmp_path):
    items = [{"question": "Find x.", "image": "none.png"}, {"question": rows[0]["instruction"], "image": "none.png"}]
    items.append({"question": None})
    benchmark = write(tmp_path / "bench.jsonl", items)
    report = check_pairs([write(tmp_path / "pairs.jsonl", rows)], against=[benchmark], num_proc=1)
    # a long question is compared by its words
    assert kinds(report) == {"not compared: benchmark": [0, 1, 2], "same question in benchmark": [0]}
    assert "none.png' does not exist" in report.findings[1].examples[0][1]


# With a model


@pytest.fixture
def model(processor, tiny_model, tmp_path):
    folder = tmp_path / "model"
    tiny_model().config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_tokens_are_those_of_training(rows, processor, model, tmp_path):
    rows = [row | {"image_url": row["image_url_2"] if index % 2 else None} for index, row in enumerate(rows[:6])]
    report = check_pairs([write(tmp_path / "pairs.jsonl", rows)], model=model, num_proc=1)
    collator = DataCollatorForPumaPairs(processor, QWEN_VL, placeholder_sides=())
    for position, row in enumerate(rows):
        for name in ("image_url", "image_url_2"):
            row[name] = [{"bytes": None, "path": row[name]}] if row[name] else []
        batch = collator([row | {"row_id": "pairs.jsonl:0"}])
        assert report.lengths["text-rich"][position] == batch["teacher_attention_mask"].sum()
        assert report.lengths["vision-rich"][position] == batch["attention_mask"].sum()


def test_limit_and_special_tokens(rows, model, tmp_path):
    rows[3]["instruction"] += " very" * 900
    rows[4]["instruction_2"] += " <|im_end|>"
    report = check_pairs([write(tmp_path / "pairs.jsonl", rows)], model=model, max_length=800, num_proc=1)
    assert kinds(report) == {"too long": [3], "special token in text": [4]}
    assert check_pairs([str(tmp_path / "pairs.jsonl")], num_proc=1).rows_usable == 40


def test_sides_that_training_refuses_by_default(rows, model, tmp_path):
    """Without a limit the check names both kinds of sides; with one it is training's own check."""
    rows[3]["instruction"] += " very" * scan.MAX_LENGTH
    rows[4]["instruction_2"] += " very" * scan.MAX_LENGTH
    path = write(tmp_path / "pairs.jsonl", rows)
    report = check_pairs([path], model=model, num_proc=1)
    assert kinds(report) == {"longer than max_length": [3, 4]}
    details = [detail for finding in report.findings for _, detail in finding.examples if "more than" in detail]
    assert details[0].startswith("the text-rich side") and details[1].startswith("the vision-rich side")
    assert kinds(check_pairs([path], model=model, max_length=10 * scan.MAX_LENGTH, num_proc=1)) == {}


@pytest.mark.parametrize(
    ("widths", "found", "share"),
    [([200, 100, 100], [0], "25.0%"), ([100, 200, 200], [1, 2], "40.0%"), ([102, 100, 100], [], "")],
)
def test_pictures_that_the_processor_cuts(widths, found, share, rows, tmp_path):
    """The processor keeps the square in the middle of a picture; up to one percent of all pixels are no matter."""
    processor, llava = build_family("llava")
    for part in (processor, llava.config):
        part.save_pretrained(tmp_path / "model")
    for number, width in enumerate(widths):
        rows[number]["image_url_2"] = draw(tmp_path / f"{number}.png", number)
        Image.open(rows[number]["image_url_2"]).resize((width, 100)).save(rows[number]["image_url_2"])
    path = write(tmp_path / "pairs.jsonl", rows[: len(widths)])
    report = check_pairs([path], model=str(tmp_path / "model"), num_proc=1)
    assert kinds(report) == ({"cut picture": found} if found else {}) and not report.has_errors
    assert not found or f"cuts {share} of the pixels" in report.findings[0].meaning
    assert kinds(check_pairs([path], num_proc=1)) == {}


# Columns


OTHER_NAMES = {"image_url_2": "picture", "instruction_2": "asked.text", "photo": "ignore"}


def other_names(rows):
    rows = [row | {"photo": "me.png", "asked": {"text": row["instruction_2"]}} for row in rows]
    return [row | {"picture": row.pop("image_url_2"), "instruction_2": None} for row in rows]


def test_columns_of_data_and_evaluation_data(rows, tmp_path, monkeypatch, capsys):
    """Data in other names is checked as under ours, and one of both files may have ours."""
    path = write(tmp_path / "pairs.jsonl", other_names(rows))
    evals = write(tmp_path / "eval.jsonl", [rows[PLACE]])
    report = check_pairs([path], eval_data=[evals], columns=OTHER_NAMES, num_proc=1)
    assert kinds(report) == {"same question in eval data": [PLACE]}
    assert (report.rows_usable, report.pairs, report.pictures) == (40, 40, 40)
    (form,) = report.forms
    assert form == "instruction, output, image_url, instruction_2 from asked.text, output_2, image_url_2 from picture"
    assert {"kind", "photo"} <= set(report.unread)
    assert run(monkeypatch, path, "--columns", json.dumps(OTHER_NAMES)) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert f"Columns: {form}" in page
    assert f"NOTE columns not read: {', '.join(report.unread)}" in page
    assert run(monkeypatch, path, "--columns", json.dumps({"image_url_2": "picture"})) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "`photo` has the name of pictures" in error and '{"photo": "ignore"}' in error


def test_pictures_of_several_columns_are_named_together(rows, tmp_path):
    row = {name: value for name, value in rows[0].items() if name != "image_url_2"} | {"a": "a.png", "b": "b.png"}
    report = check_pairs([write(tmp_path / "x.jsonl", [row])], columns={"image_url_2": ["a", "b"]}, num_proc=1)
    assert any("image_url_2 from a and b" in form for form in report.forms)


def test_rows_of_every_form_are_checked(tmp_path):
    turns = [{"from": "human", "value": "Two angles are 28 and 48. The third?"}, {"from": "gpt", "value": "104"}]
    problem = {"problem": "Three sides are 5 long. The perimeter?", "solution": "It is 15.", "level": 1}
    paths = [write(tmp_path / "talk.jsonl", [{"conversations": turns}]), write(tmp_path / "set.jsonl", [problem])]
    report = check_pairs(paths, num_proc=1)
    assert kinds(report) == {} and report.rows_usable == 2
    assert report.forms == {
        "messages from conversations": ["talk.jsonl"],
        "instruction from problem, output from solution": ["set.jsonl"],
    }
    assert report.unread == ["level"]


def test_unread_columns_that_come_late(tmp_path):
    later = [{"instruction": f"{number} + 1?", "output": "It is 7.", "image_url": ""} for number in range(120)]
    later[110]["note"] = "seldom"
    assert check_pairs([write(tmp_path / "pairs.jsonl", later)], num_proc=1).unread == ["note"]


@pytest.mark.parametrize("value", ["picture", "[1]", '{"image_url_2": 2}', '{"image_url_2": ""}', "{'a': 'b'}"])
def test_columns_that_are_no_mapping(value, rows, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, write(tmp_path / "pairs.jsonl", rows[:2]), "--columns", value) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert f"`--columns {value}` is not a JSON object" in error and '{"image_url_2": "picture"}' in error


def test_remedies_are_worded_as_the_option(rows, tmp_path, monkeypatch, capsys):
    odd = [{name: value for name, value in row.items() if name != "image_url_2"} for row in rows[:2]]
    path = write(tmp_path / "pairs.jsonl", [row | {"it's": "a.png"} for row in odd])
    assert run(monkeypatch, path) == 2
    (error,) = capsys.readouterr().err.splitlines()
    options = [shlex.split(part.partition("`")[0]) for part in error.split("`--columns ")[1:]]
    assert [json.loads(option) for (option,) in options] == [{"image_url_2": "it's"}, {"it's": "ignore"}]
    assert "`columns" not in error


# Command line


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["pairs", "check", *map(str, arguments), "--num_proc", "1"])
    try:
        main()
    except SystemExit as error:
        return error.code
    except (PumaError, OSError) as error:
        return report(error)
    return 0


def test_remedies_of_rows_are_worded_as_the_option(tmp_path, monkeypatch, capsys):
    """As in a row whose columns are other than those of the first ones."""
    later = [{"instruction": f"{number} + 1?", "output": "It is 7.", "image_url": ""} for number in range(120)]
    later[110]["image"] = "a.png"
    assert run(monkeypatch, write(tmp_path / "pairs.jsonl", later)) == 1
    page = " ".join(capsys.readouterr().out.split())
    assert "unread column: 1 row" in page and "`columns" not in page
    assert """`--columns '{"image_url_2": "picture"}'` says what a column is""" in page


def test_a_clean_report(generated, monkeypatch, capsys):
    assert run(monkeypatch, generated / "train.jsonl", "--eval", generated / "heldout.jsonl") == 0
    page = capsys.readouterr().out
    assert "Clean: no errors, no warnings" in page and "40 pairs" in page and "█" in page
    assert len(page.splitlines()) < 40


def test_a_report_with_findings(rows, tmp_path, monkeypatch, capsys):
    for row in rows[3:9]:
        row["instruction_2"] = f"The answer is {row['answer']}."
    rows[9] = rows[10]
    path, output = write(tmp_path / "pairs.jsonl", rows), tmp_path / "report.json"
    assert run(monkeypatch, path, "--output", output) == 1
    page = capsys.readouterr().out
    assert "ERROR   answer in vision-rich prompt: 6 rows (15.0%)" in page
    assert "WARNING duplicate row: 1 row (2.5%)" in page
    assert "pairs.jsonl:4 " in page and "… 4 more" in page and page.index("ERROR") < page.index("WARNING")
    report = json.loads(output.read_text())
    assert report["rows_read"] == 40 and report["lengths"]["unit"] == "characters"
    assert sum(bar["rows"] for bar in report["lengths"]["text-rich"]["histogram"]) == 40
    first, second = report["findings"][:2]
    assert first["kind"] == VISION and first["rows"] == {"pairs.jsonl": [4, 5, 6, 7, 8, 9]} and first["count"] == 6
    assert second["examples"] == [{"row": "pairs.jsonl:11", "detail": "the same as pairs.jsonl:10"}]
    rows[3:9] = []
    assert run(monkeypatch, write(tmp_path / "warned.jsonl", rows)) == 0  # warnings alone


BAD_INPUT = {
    "No such file": ["nowhere.jsonl"],
    "empty.jsonl' is empty. Pass a file with at least one row.": ["empty.jsonl"],
    "`--num_proc` is 0": ["pairs.jsonl", {"num_proc": 0}],
    "`--max_length 100` counts tokens": ["pairs.jsonl", {"max_length": 100}],
    "No model with a processor or tokenizer in": ["pairs.jsonl", {"model": "./empty.jsonl"}],
    "has no column question or .*but: instruction.*`--question_column`": [
        "pairs.jsonl",
        {"against": ["odd.csv"]},
    ],
    "`--image_column drawing` is not a column of 'pairs.jsonl'. Its columns are: image_url": [
        "pairs.jsonl",
        {"against": ["pairs.jsonl"], "image_column": "drawing"},
    ],
    "No row of the eval data .* can be read. The first one: bad.jsonl:1: no answer": [
        "pairs.jsonl",
        {"eval_data": ["bad.jsonl"]},
    ],
}


@pytest.mark.parametrize("message", BAD_INPUT)
def test_bad_input(message, rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pairs.jsonl", rows[:2])
    write(tmp_path / "empty.jsonl", [])
    write(tmp_path / "bad.jsonl", [{"instruction": "1 + 1?", "output": None}])
    (tmp_path / "odd.csv").write_text("instructions,text\n1,2\n")
    name, *options = BAD_INPUT[message]
    with pytest.raises(DataError, match=message):
        check_pairs([name], **{"num_proc": 1} | (options[0] if options else {}))


def test_bad_input_has_its_own_exit_code(tmp_path, rows, monkeypatch, capsys):
    assert run(monkeypatch, tmp_path / "none.jsonl") == 2
    assert "error: No such file" in capsys.readouterr().err
    path = write(tmp_path / "pairs.jsonl", rows[:2])
    assert run(monkeypatch, path, "--output", path) == 2
    assert "Give a name that ends with .json." in capsys.readouterr().err


def test_bins():
    assert bin_edges(np.array([17])) == [17]
    edges = bin_edges(np.array([*range(20, 120), 100_000]))
    assert edges == list(range(20, 120, 10)) or (len(edges) <= 11 and edges[0] <= 20 and edges[-1] <= 119)


def test_pictures_of_files_are_decoded_once(rows, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(scan, "open_image", lambda image: opened.append(image["path"]) or open_image(image))
    pictured = [row | {"image_url": row["image_url_2"]} for row in rows]
    check_pairs([write(tmp_path / "pairs.jsonl", pictured)], num_proc=1)
    assert len(opened) == 40 and all(os.path.isabs(path) for path in opened)
