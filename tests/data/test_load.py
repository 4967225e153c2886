"""From the names of data sets to checked rows: policies, splits, reports, caches and several processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from puma_trl.config import PumaKLConfig, PumaScriptArguments
from puma_trl.data import files as data_files
from puma_trl.data import load as data
from puma_trl.data.checks import RowChecker
from puma_trl.data.collator import DataCollatorForPumaPairs
from puma_trl.data.load import DataReport, load_data
from puma_trl.errors import DataError
from puma_trl.mini import build_processor
from puma_trl.models.families.qwen import QWEN_VL


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


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for index in range(3):
        Image.new("RGB", (28 * (index + 1), 56), "red").save(tmp_path / f"{index}.png")
    return tmp_path


@pytest.fixture
def load(folder, processor):
    """Returns a function that loads data: fields of either argument class → `(DatasetDict, reports)`."""

    def load(*names, processor=processor, **fields):
        script_fields = PumaScriptArguments.__dataclass_fields__.keys() & fields.keys()
        script_args = PumaScriptArguments(
            dataset_name=[str(name) for name in names], **{name: fields.pop(name) for name in script_fields}
        )
        defaults = {"output_dir": str(folder / "out"), "use_cpu": True, "bf16": False, "max_length": None}
        return load_data(script_args, PumaKLConfig(**defaults | {"report_to": []} | fields), processor, QWEN_VL)

    return load


def dropped(folder):
    return [json.loads(line) for line in (folder / "out" / "dropped_rows.jsonl").read_text().splitlines()]


def test_pairs_come_out_ready_to_collate(folder, load, processor):
    rows = [pair(0, extra=1), pair(1, image_url="1.png", image_url_2=["0.png", str(folder / "2.png")]), pair(2)]
    dataset, reports = load(write(folder / "pairs.jsonl", rows))
    train = dataset["train"]
    assert list(dataset) == ["train"] and train["row_id"] == [f"pairs.jsonl:{line}" for line in (1, 2, 3)]
    sides = [f"{name}{side}" for side in ("", "_2") for name in ("image_url", "instruction", "output", "history")]
    assert train.column_names == ["row_id", *sides, "length", "num_answer_tokens"]
    assert train.features["image_url"] == List(ImageFeature(decode=False))
    assert train[1]["image_url_2"] == [{"bytes": None, "path": str(folder / name)} for name in ("0.png", "2.png")]
    assert train[0]["image_url"] == []
    collator = DataCollatorForPumaPairs(processor, QWEN_VL, placeholder_sides=())
    for row in train:
        batch = collator([row])
        assert row["length"] == batch["attention_mask"].sum() + batch["teacher_attention_mask"].sum()
        assert row["num_answer_tokens"] == (batch["labels"] != -100).sum()
    images = {"text-rich": 1, "vision-rich": 4}
    assert reports == {"train": DataReport(3, 3, {}, sum(train["num_answer_tokens"]), images, ["extra"])}


def test_single_sided_rows_have_the_columns_of_a_side(folder, load, processor):
    dataset, reports = load(
        write(folder / "text.jsonl", [single(0), single(1) | {"image_url": "1.png"}]), use_kl=False
    )
    train = dataset["train"]
    side = ["image_url", "instruction", "output", "history"]
    assert train.column_names == ["row_id", *side, "length", "num_answer_tokens"]
    assert reports["train"].images == {"one-sided": 1}
    collator = DataCollatorForPumaPairs(processor, QWEN_VL, use_kl=False, placeholder_sides=())
    assert [collator([row])["attention_mask"].sum() for row in train] == train["length"][:]


def test_pairs_without_kl_count_and_check_the_student_side_only(folder, load, processor):
    rows = [pair(0, output="other", image_url="none.png"), pair(1)]
    dataset, _ = load(write(folder / "pairs.jsonl", rows), use_kl=False)
    collator = DataCollatorForPumaPairs(processor, QWEN_VL, use_kl=False)
    assert "instruction_2" in dataset["train"].column_names
    assert [collator([row])["attention_mask"].sum() for row in dataset["train"]] == dataset["train"]["length"][:]


def test_pairs_and_single_sides_mix_only_without_kl(folder, load):
    pairs = write(folder / "pairs.jsonl", [pair(index) for index in range(3)])
    text = write(folder / "text.jsonl", [single(7), single(8)])
    more = write(folder / "more.jsonl", ["broken", pair(9)])
    dataset, reports = load(pairs, text, more, use_kl=False, bad_rows="drop")
    train = dataset["train"]
    lines = [f"pairs.jsonl:{line}" for line in (1, 2, 3)]
    assert train["row_id"] == [*lines, "text.jsonl:1", "text.jsonl:2", "more.jsonl:2"]
    assert train["instruction"] == ["What?"] * 3 + ["What is 7?", "What is 8?", "What?"]
    assert [len(images) for images in train["image_url"]] == [1, 1, 1, 0, 0, 1]
    assert reports["train"].rows_kept == 6
    with pytest.raises(DataError, match="`use_kl: true` trains on pairs, but '.*text.jsonl' .* has one side only"):
        load(pairs, text)


@pytest.mark.parametrize("place", [5, 119])
def test_a_pair_in_a_file_of_single_sides_is_the_odd_one(place, folder, load):
    rows = [single(index) for index in range(120)]
    rows[place] = pair(0)
    path = write(folder / "text.jsonl", rows)
    with pytest.raises(DataError, match=f"1 of 120 rows .*text.jsonl:{place + 1}: .* has a vision-rich side"):
        load(path, use_kl=False, allow_text_only=True)
    _, reports = load(path, use_kl=False, allow_text_only=True, bad_rows="drop")
    assert reports["train"].rows_kept == 119


def test_several_names_folders_and_an_image_root(folder, load):
    (folder / "data").mkdir()
    write(folder / "data" / "a.jsonl", [pair(0)])
    write(folder / "b.jsonl", [pair(1)])
    dataset, _ = load(f"{folder / 'data'}, {folder / 'b.jsonl'}", image_root=str(folder))
    assert dataset["train"]["row_id"] == ["a.jsonl:1", "b.jsonl:1"]
    with pytest.raises(DataError, match="(?s)missing image: .*data/0.png.*`image_root`"):
        load(folder / "data")


def test_hub_data_sets_with_decoded_images(folder, load, processor, monkeypatch):
    features = Features(
        {name: Value("string") for name in pair(0)} | {"image_url_2": ImageFeature(), "n": Value("int64")}
    )
    rows = [pair(index, image_url_2=Image.new("RGB", (56, 28 * index + 28)), n=index) for index in range(3)]
    table = Dataset.from_list(rows, features=features)
    monkeypatch.setattr(data_files, "load_dataset", lambda *args, **kwargs: table)
    dataset, _ = load("owner/pairs")
    assert dataset["train"]["row_id"] == [f"owner/pairs#{row}" for row in (1, 2, 3)]
    batch = DataCollatorForPumaPairs(processor, QWEN_VL)(dataset["train"].to_list())
    assert len(batch["image_grid_thw"]) == 3


def test_several_processes_give_the_same_rows(folder, load, monkeypatch):
    path = write(folder / "pairs.jsonl", [pair(index) for index in range(60)] + ["broken"])
    one, _ = load(path, bad_rows="drop", dataset_num_proc=1)
    monkeypatch.setattr(data_files, "CHUNK_BYTES", 500)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "other cache")
    two, reports = load(path, bad_rows="drop", dataset_num_proc=2)
    assert one["train"].to_list() == two["train"].to_list()
    assert reports["train"].dropped == {"broken JSON": 1}


def test_names_with_commas(folder, load):
    path = write(folder / "a,b.jsonl", [pair(0)])
    for names in ([path], [path, write(folder / "c.jsonl", [pair(1)])], [f"{folder}/c.jsonl, {folder}/d.jsonl"]):
        write(folder / "d.jsonl", [pair(2)])
        assert len(load(*names)[0]["train"]) == len(names) + ("c.jsonl, " in names[0])
    assert PumaScriptArguments(dataset_name=path).dataset_name == [path]
    assert PumaScriptArguments(dataset_name=["a,b", "c"]).dataset_name == ["a,b", "c"]
    assert PumaScriptArguments(dataset_name="a, b").dataset_name == ["a", "b"]


def test_pictures_of_several_columns(folder, load):
    rows = [{name: value for name, value in pair(0).items() if name != "image_url_2"} | {"a": "0.png", "b": "1.png"}]
    path = write(folder / "pairs.jsonl", rows)
    _, reports = load(path, columns={"image_url_2": ["a", "b"]})
    assert reports["train"].images == {"text-rich": 0, "vision-rich": 2}
    for value in ([], [2], [""], {"a": "b"}):
        with pytest.raises(ValueError, match="`columns` is .* must map our columns to those of the data"):
            load(path, columns={"image_url_2": value})


@pytest.mark.parametrize("kind", ["same", "link", "hard link", "in a folder"])
def test_data_that_is_trained_on_cannot_be_evaluated_on(kind, folder, load):
    path = write(folder / "pairs.jsonl", [pair(0), pair(1)])
    other = folder / "other" / "x.jsonl"
    other.parent.mkdir()
    if kind == "link":
        other.symlink_to(path)
    elif kind == "hard link":
        os.link(path, other)
    name = {"same": path, "in a folder": folder}.get(kind, other)
    with pytest.raises(DataError, match="is among the train data and the eval data.*`eval_split_size`"):
        load(path, eval_dataset_name=str(name))
    load(path, eval_dataset_name=write(folder / "other" / "y.jsonl", [pair(2)]), image_root=str(folder))


def test_a_dataset_in_memory_cannot_be_evaluated_on_if_it_is_trained_on(folder, processor):
    table = Dataset.from_list([pair(0), pair(1)])
    args = PumaKLConfig(str(folder / "out"), use_cpu=True, bf16=False, max_length=None, image_root=str(folder))
    with pytest.raises(DataError, match="'b' is among the train data and the b data"):
        load_data({"train": table, "b": table}, args, processor, QWEN_VL)
    load_data({"train": table.select([0]), "b": table.select([1])}, args, processor, QWEN_VL)


def copy_rows(folder, rows):
    """Writes rows to a folder of its own, with copies of their pictures."""
    (folder / "copy").mkdir(exist_ok=True)
    for picture in folder.glob("*.png"):
        shutil.copy(picture, folder / "copy")
    return write(folder / "copy" / "eval.jsonl", rows)


def test_rows_of_the_same_content_cannot_be_evaluated_on(folder, load, caplog):
    train = write(folder / "pairs.jsonl", [pair(0), pair(1), pair(2)])
    with pytest.raises(DataError, match="All 2 rows of the eval data are among the train data.*`eval_split_size`"):
        load(train, eval_dataset_name=copy_rows(folder, [pair(2), pair(1, note="other")]))
    load(train, eval_dataset_name=copy_rows(folder, [pair(2), pair(4)]))
    assert "1 of the 2 rows of the eval data are among the train data too" in caplog.text
    assert "repeat" not in caplog.text
    caplog.clear()
    Image.new("RGB", (140, 140), "blue").save(folder / "copy" / "2.png")  # another picture of the same name
    write(folder / "copy" / "eval.jsonl", [pair(2), pair(1, image_url_2="0.png"), pair(0, image_url="0.png")])
    load(train, eval_dataset_name=str(folder / "copy" / "eval.jsonl"))
    assert "are among" not in caplog.text


def test_rows_that_repeat_others_are_counted(folder, load, caplog):
    load(write(folder / "pairs.jsonl", [pair(0)] * 3 + [pair(1), pair(1), pair(2)]))
    assert "3 of the 6 rows of the train data repeat another one" in caplog.text


def test_rows_that_are_marked_as_wrong_are_left_out_or_stop(folder, load):
    path = write(folder / "pairs.jsonl", [pair(0, is_correct=True), pair(1, is_correct=False)])
    with pytest.raises(DataError, match="marked wrong: `is_correct` is bool False, .*`columns: {is_correct: ignore}`"):
        load(path)
    dataset, reports = load(path, bad_rows="drop")
    assert dataset["train"]["row_id"] == ["pairs.jsonl:1"] and reports["train"].dropped == {"marked wrong": 1}
    assert reports["train"].unread == ["is_correct"]
    assert len(load(path, columns={"is_correct": "ignore"})[0]["train"]) == 2


def test_a_mapping_may_be_for_one_split(folder, load):
    rows = [{name: value for name, value in pair(0).items() if name != "image_url_2"} | {"picture": "0.png"}]
    train, evaluation = write(folder / "train.jsonl", rows), write(folder / "eval.jsonl", [pair(1)])
    dataset, reports = load(train, eval_dataset_name=evaluation, columns={"image_url_2": "picture"})
    assert [reports[split].images["vision-rich"] for split in ("train", "eval")] == [1, 1]
    with pytest.raises(DataError, match="`picture` has the name of pictures"):
        load(train, eval_dataset_name=evaluation)


def test_columns_that_are_not_read_are_in_the_report(folder, load):
    rows = [pair(0, id=1)] * 120 + [pair(0, note="n")]
    _, reports = load(write(folder / "a.jsonl", rows), write(folder / "b.jsonl", [pair(0, source="s", id=2)]))
    assert reports["train"].unread == ["id", "source", "note"]


class TestPictures:
    def test_stage_2_needs_one_on_the_vision_rich_side(self, folder, load):
        rows = [pair(0, image_url_2=None, image_url="0.png"), pair(1, image_url_2=None, kind="k")]
        with pytest.raises(DataError, match="No row of the train data has a picture on its vision-rich .*: kind.$"):
            load(write(folder / "pairs.jsonl", rows), allow_text_only=True)
        rows.append(pair(2))
        _, reports = load(write(folder / "pairs.jsonl", rows))
        assert reports["train"].images == {"text-rich": 1, "vision-rich": 1}
        with pytest.raises(DataError, match="No row of the eval data has a picture on its vision-rich side"):
            load(folder / "pairs.jsonl", eval_dataset_name=write(folder / "eval.jsonl", rows[:1]))

    @pytest.mark.parametrize("row", [single(0), pair(0, image_url="0.png", image_url_2=None)])
    def test_towers_need_one_unless_text_alone_is_wanted(self, row, folder, load):
        path = write(folder / "text.jsonl", [row])
        for parts in (["all"], ["aligner"], ["language_model", "aligner"]):
            with pytest.raises(DataError, match="No row of the train data has a picture, but `trainable_parts`"):
                load(path, use_kl=False, trainable_parts=parts)
        load(path, use_kl=False, trainable_parts=["language_model"])
        load(path, use_kl=False, allow_text_only=True)
        load(write(folder / "a.jsonl", [pair(0)]), eval_dataset_name=path, use_kl=False)

    def test_a_text_model_needs_none(self, folder, load):
        load(write(folder / "text.jsonl", [single(0)]), use_kl=False, processor=text_tokenizer())


def text_tokenizer():
    tokenizer = build_processor("qwen2_vl").tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}<|im_end|>{% if m.role == 'user' %}:{% endif %}{% endfor %}"
    )
    return tokenizer


def test_a_text_model_reads_the_text_rich_side_of_pairs(folder, load):
    rows = [pair(0), pair(1, instruction_2="", output_2="other"), single(2), pair(3, image_url="0.png")]
    path = write(folder / "pairs.jsonl", rows)
    with pytest.raises(DataError, match="pairs.jsonl:4: image for a text model: `image_url` has 1"):
        load(path, use_kl=False, processor=text_tokenizer())
    dataset, reports = load(path, use_kl=False, processor=text_tokenizer(), bad_rows="drop")
    train = dataset["train"]
    assert train.column_names[1:5] == ["image_url", "instruction", "output", "history"]
    assert "instruction_2" not in train.column_names
    assert train["instruction"] == ["What is 0?", "What is 1?", "What is 2?"]
    assert train["output"] == ["It is 0.", "It is 1.", "It is 2."]
    assert reports["train"].images == {"one-sided": 0}


def test_turns_before_the_question_are_kept(folder, load):
    turns = [("system", "s"), ("user", "<image>a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns], "images": ["0.png"]}
    dataset, _ = load(write(folder / "chat.jsonl", [row]), use_kl=False)
    (found,) = dataset["train"]
    assert found["history"] == row["messages"][:3] and (found["instruction"], found["output"]) == ("c", "d")


class TestPolicies:
    BAD = [
        pair(0),
        pair(1, image_url_2="none.png"),
        '{"broken": ',
        pair(3, instruction=""),
        pair(4, output=[5]),
        pair(5, image_url="none.png"),
        {name: value for name, value in pair(6).items() if name != "output_2"},
        single(7),
        pair(8),
    ]

    def test_error_counts_names_and_advises(self, folder, load):
        with pytest.raises(DataError) as error:
            load(write(folder / "pairs.jsonl", self.BAD))
        message = str(error.value)
        assert message.startswith(
            "7 of 9 rows of the train data cannot be used (2 missing image, 2 missing value, 1 broken JSON, 1 empty "
            "text, 1 wrong type). The first ones: pairs.jsonl:2: missing image: "
            f"'{folder / 'none.png'}' does not exist"
        )
        assert "; pairs.jsonl:3: broken JSON: line 3: " in message and "\n" not in message
        assert "; pairs.jsonl:4: empty text: `instruction` is empty. Repair them." in message
        assert "`bad_rows: drop`" in message and "dropped_rows.jsonl" in message and "pairs.jsonl:5" not in message
        assert not (folder / "out").exists()

    def test_drop_records_every_row(self, folder, load):
        evaluation = write(folder / "eval.jsonl", [pair(9), pair(1, instruction_2=" ")])
        dataset, reports = load(write(folder / "pairs.jsonl", self.BAD), bad_rows="drop", eval_dataset_name=evaluation)
        assert dataset["train"]["row_id"] == ["pairs.jsonl:1", "pairs.jsonl:9"]
        report = reports["train"]
        assert (report.rows_read, report.rows_kept, sum(report.dropped.values())) == (9, 2, 7)
        assert report.answer_tokens == sum(dataset["train"]["num_answer_tokens"])
        assert reports["eval"].dropped == {"empty text": 1}
        records = dropped(folder)
        assert [record["row_id"] for record in records] == [*(f"pairs.jsonl:{i}" for i in range(2, 9)), "eval.jsonl:2"]
        assert [record["split"] for record in records] == ["train"] * 7 + ["eval"]
        assert all(record["reason"] for record in records)
        assert records[0]["image_url_2"] == [str(folder / "none.png")] and records[0]["output"] == "It is 1."
        assert records[1]["raw"] == '{"broken": ' and json.loads(records[3]["raw"])["output"] == [5]
        assert "unlike other rows" in records[6]["reason"]
        assert os.listdir(folder / "out") == ["dropped_rows.jsonl"]

    def test_nothing_is_written_when_nothing_is_dropped(self, folder, load):
        load(write(folder / "pairs.jsonl", [pair(0)]), bad_rows="drop")
        assert not (folder / "out").exists()

    def test_no_row_left_is_an_error(self, folder, load):
        path = write(folder / "pairs.jsonl", [pair(0, instruction="")])
        with pytest.raises(DataError, match="No row of the train data can be used. 1 of 1 rows"):
            load(path, bad_rows="drop")

    def test_answers_that_differ_have_a_policy_of_their_own(self, folder, load):
        path = write(folder / "pairs.jsonl", [pair(0), pair(1, output="Other."), pair(2)])
        for bad_rows in ("error", "drop"):
            with pytest.raises(DataError, match="1 answers differ.*ones: pairs.jsonl:2: ") as error:
                load(path, bad_rows=bad_rows)
            assert "`answer_mismatch: student`" in str(error.value) and "`bad_rows" not in str(error.value)
            dataset, reports = load(path, bad_rows=bad_rows, answer_mismatch="drop")
            assert dataset["train"]["row_id"] == ["pairs.jsonl:1", "pairs.jsonl:3"]
            assert reports["train"].dropped == {"answers differ": 1}
            dataset, reports = load(path, bad_rows=bad_rows, answer_mismatch="student")
            assert dataset["train"]["output"] == dataset["train"]["output_2"] == ["It is 0.", "It is 1.", "It is 2."]
            assert reports["train"].dropped == {}

    def test_rows_that_are_too_long_are_dropped_at_the_limit(self, folder, load, processor):
        path = write(folder / "pairs.jsonl", [pair(0, instruction="7" * n) for n in (100, 101)])
        row = load(path)[0]["train"][0]
        batch = DataCollatorForPumaPairs(processor, QWEN_VL, placeholder_sides=())([row])
        limit = int(batch["teacher_attention_mask"].sum())
        assert limit > batch["attention_mask"].sum()
        dataset, reports = load(path, bad_rows="drop", max_length=limit)
        assert dataset["train"]["row_id"] == ["pairs.jsonl:1"] and reports["train"].dropped == {"too long": 1}
        with pytest.raises(DataError, match="A larger `max_length` keeps long rows") as error:
            load(path, max_length=limit)
        assert "max_pixels" not in str(error.value)

    def test_rows_that_pictures_make_too_long(self, folder, load, processor):
        path = write(folder / "pairs.jsonl", [pair(0)])
        row = load(path)[0]["train"][0]
        batch = DataCollatorForPumaPairs(processor, QWEN_VL, placeholder_sides=())([row])
        with pytest.raises(DataError, match=r"of pictures\), more than.*A smaller `max_pixels` gives"):
            load(path, max_length=int(batch["attention_mask"].sum()) - 1)


@pytest.mark.parametrize("content", ["", "\n \n", "[]", "[ ]"])
def test_an_empty_file_is_an_error_even_among_others(content, folder, load):
    (folder / "empty.json").write_text(content)
    with pytest.raises(DataError, match="empty.json' is empty. Pass a file with at least one row."):
        load(write(folder / "pairs.jsonl", [pair(0)]), folder / "empty.json")


def test_broken_files_are_plain_data_errors(folder, load):
    (folder / "pairs.json").write_text('[\n{"instruction": }]')
    with pytest.raises(DataError, match="Broken JSON in '.*pairs.json' on line 2: Expecting value"):
        load(folder / "pairs.json")


class TestSplits:
    def test_a_share_or_a_number_is_held_out_by_the_seed(self, folder, load):
        rows = [pair(index, image_url_2=["0.png"] * (1 + (index % 7 == 0))) for index in range(20)]
        path = write(folder / "pairs.jsonl", [*rows, "broken"])
        held_out = []

        def multiples(rows):
            return sum((int(row_id.split(":")[1]) - 1) % 7 == 0 for row_id in rows["row_id"])

        for size, seed in ((0.25, 1), (5, 1), (5, 2)):
            dataset, reports = load(path, eval_split_size=size, seed=seed, bad_rows="drop")
            train, evaluation = set(dataset["train"]["row_id"]), set(dataset["eval"]["row_id"])
            assert len(train) == 15 and len(evaluation) == 5 and not train & evaluation
            for split, report in reports.items():
                images = {"text-rich": 0, "vision-rich": len(dataset[split]) + multiples(dataset[split])}
                rows_read = len(dataset[split]) + (split == "train")
                dropped = {"broken JSON": 1} if split == "train" else {}
                tokens = sum(dataset[split]["num_answer_tokens"])
                assert report == DataReport(rows_read, len(dataset[split]), dropped, tokens, images)
            held_out.append(evaluation)
        assert held_out[0] == held_out[1] != held_out[2]

    @pytest.mark.parametrize("size", [0.01, 4, 5])
    def test_both_splits_need_a_row(self, size, folder, load):
        path = write(folder / "pairs.jsonl", [pair(index) for index in range(4)])
        with pytest.raises(DataError, match=f"`eval_split_size: {size}` takes"):
            load(path, eval_split_size=size)

    def test_an_eval_file(self, folder, load):
        train = write(folder / "pairs.jsonl", [pair(0)])
        dataset, reports = load(train, eval_dataset_name=write(folder / "eval.jsonl", [pair(1), pair(2)]))
        assert dataset["eval"]["row_id"] == ["eval.jsonl:1", "eval.jsonl:2"]
        assert reports["eval"].rows_kept == 2


class TestCache:
    @pytest.fixture
    def checks(self, monkeypatch):
        """The number of chunks that were really checked."""
        calls = []
        check = RowChecker.__call__
        monkeypatch.setattr(RowChecker, "__call__", lambda self, chunk: calls.append(1) or check(self, chunk))
        return calls

    def test_unchanged_data_is_not_checked_again(self, folder, load, checks):
        path = write(folder / "pairs.jsonl", [pair(0), pair(1)])
        first = load(path)[0]["train"].to_list()
        # a policy is applied to what is cached, and another processor object with the same content is the same
        assert (
            load(path, bad_rows="drop", processor=build_processor("qwen2_vl"), seed=5)[0]["train"].to_list() == first
        )
        assert len(checks) == 1

    @pytest.mark.slow
    def test_another_process_finds_the_cache(self, folder, load, checks):
        path = write(folder / "pairs.jsonl", [pair(0), pair(1)])
        program = f"""
import datasets
from puma_trl.config import PumaKLConfig, PumaScriptArguments
from puma_trl.data.load import load_data
from puma_trl.models.families.qwen import QWEN_VL
from puma_trl.mini import build_processor
datasets.config.HF_DATASETS_CACHE = {str(folder / "cache")!r}
args = PumaKLConfig(output_dir="out", use_cpu=True, bf16=False, max_length=None)
load_data(PumaScriptArguments(dataset_name=[{path!r}]), args, build_processor("qwen2_vl"), QWEN_VL)
"""
        environment = os.environ | {"PYTHONPATH": str(Path(data.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=folder)
        load(path)
        assert checks == []

    @pytest.mark.parametrize(
        "change",
        ["rows", "max_length", "use_kl", "answer_mismatch", "processor", "image_root"]
        + ["columns", "special_tokens", "decode_images", "code", "family code"],
    )
    def test_whatever_matters_is_checked_again(self, change, folder, load, checks, monkeypatch):
        path = write(folder / "pairs.jsonl", [pair(0, other="What is 1?")])
        load(path)
        fields = {
            "max_length": {"max_length": 500},
            "use_kl": {"use_kl": False},
            "answer_mismatch": {"answer_mismatch": "student"},
            "columns": {"columns": {"instruction": "other"}},
            "special_tokens": {"special_tokens": "escape"},
            "decode_images": {"decode_images": True},
            "image_root": {"image_root": str(folder / "..") + f"/{folder.name}"},
        }.get(change, {})
        if change == "rows":
            write(folder / "pairs.jsonl", [pair(0), pair(1)])
        if change == "processor":
            fields["processor"] = build_processor("qwen2_vl")
            fields["processor"].chat_template = "Look! " + fields["processor"].chat_template
        if change.endswith("code"):
            module = data.families if change.startswith("family") else data
            copy = folder / change.replace(" ", "_")
            shutil.copytree(Path(module.__file__).parent, copy)
            with open(copy / ("qwen.py" if change.startswith("family") else "turns.py"), "a") as file:
                file.write("# changed")
            monkeypatch.setattr(module, "__file__", str(copy / "load.py"))
        load(path, **fields)
        assert len(checks) == 2

    def test_images_that_change_or_go_missing_are_noticed(self, folder, load, checks):
        path = write(folder / "pairs.jsonl", [pair(0), pair(1)])
        (length, _) = load(path)[0]["train"]["length"]
        Image.new("RGB", (84, 56)).save(folder / "0.png")
        assert load(path)[0]["train"]["length"][0] == length + 4
        (folder / "1.png").unlink()
        with pytest.raises(DataError, match="missing image: .*1.png"):
            load(path)
        Image.new("RGB", (56, 56)).save(folder / "1.png")
        load(path)
        assert len(checks) == 4
        load(path)
        assert len(checks) == 4


LAUNCHED = """
import json, sys
import datasets
from puma_trl.config import PumaKLConfig, PumaScriptArguments
from puma_trl.data.load import load_data
from puma_trl.data.checks import RowChecker
from puma_trl.models.families.qwen import QWEN_VL
from puma_trl.mini import build_processor
from puma_trl.errors import DataError

folder, bad_rows = sys.argv[1:]
datasets.config.HF_DATASETS_CACHE = f"{folder}/cache"
checks = []
check = RowChecker.__call__
RowChecker.__call__ = lambda self, chunk: checks.append(1) or check(self, chunk)
args = PumaKLConfig(output_dir=f"{folder}/out", use_cpu=True, bf16=False, max_length=None, bad_rows=bad_rows)
script_args = PumaScriptArguments(dataset_name=[f"{folder}/pairs.jsonl"], eval_split_size=2)
try:
    dataset, reports = load_data(script_args, args, build_processor("qwen2_vl"), QWEN_VL)
    result = {split: rows["row_id"][:] for split, rows in dataset.items()}
except DataError as error:
    result = str(error)
facts = {"world": args.world_size, "checks": len(checks), "result": result}
open(f"{folder}/{bad_rows}{args.process_index}.json", "w").write(json.dumps(facts))
"""


@pytest.mark.distributed
@pytest.mark.parametrize("bad_rows", ["drop", "error"])
def test_the_first_process_works_and_the_others_read(bad_rows, folder):
    write(folder / "pairs.jsonl", [*(pair(index) for index in range(8)), "broken"])
    (folder / "launched.py").write_text(LAUNCHED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(data.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command += [str(folder / "launched.py"), str(folder), bad_rows]
    subprocess.run(command, check=True, env=environment, timeout=300)
    first, second = (json.loads((folder / f"{bad_rows}{rank}.json").read_text()) for rank in range(2))
    assert (first["world"], second["world"]) == (2, 2)
    assert (first["checks"], second["checks"]) == (1, 0)
    assert first["result"] == second["result"]
    if bad_rows == "drop":
        assert len(first["result"]["train"]) == 6 and len(dropped(folder)) == 1
    else:
        assert "pairs.jsonl:9: broken JSON: line 9" in first["result"]


def test_remedies_name_what_can_still_be_done(folder, load):
    with pytest.raises(DataError, match="No row of the train data can be used") as error:
        load(write(folder / "a.jsonl", [pair(0, instruction=" ")]), bad_rows="drop")
    assert "bad_rows" not in str(error.value)
    path = write(folder / "b.jsonl", [pair(0, correct=True), pair(1, correct=False)])
    with pytest.raises(DataError, match="`columns: {correct: ignore}`.*`bad_rows: drop`"):
        load(path)
