"""What becomes of rows that cannot be used, and what the report of a split says."""

import json
import os

import pytest

from puma_trl.data.collator import DataCollatorForPumaPairs
from puma_trl.errors import DataError
from puma_trl.mini import build_processor
from puma_trl.models.families.qwen import QWEN_VL

from .samples import dropped, pair, single, write


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
    with pytest.raises(
        DataError, match="text.jsonl' of the train data has one side only .* `use_kl: true` need pairs"
    ):
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


def test_rows_that_are_marked_as_wrong_are_left_out_or_stop(folder, load):
    path = write(folder / "pairs.jsonl", [pair(0, is_correct=True), pair(1, is_correct=False)])
    with pytest.raises(DataError, match="marked wrong: `is_correct` is bool False, .*`columns: {is_correct: ignore}`"):
        load(path)
    dataset, reports = load(path, bad_rows="drop")
    assert dataset["train"]["row_id"] == ["pairs.jsonl:1"] and reports["train"].dropped == {"marked wrong": 1}
    assert reports["train"].unread == ["is_correct"]
    assert len(load(path, columns={"is_correct": "ignore"})[0]["train"]) == 2


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
            "7 of 9 rows of the train data cannot be used (2 missing image, 1 broken JSON, 1 empty text, 1 "
            "wrong type, 1 no answer, 1 missing value). The first ones: pairs.jsonl:2: missing image: "
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


def test_remedies_name_what_can_still_be_done(folder, load):
    with pytest.raises(DataError, match="No row of the train data can be used") as error:
        load(write(folder / "a.jsonl", [pair(0, instruction=" ")]), bad_rows="drop")
    assert "bad_rows" not in str(error.value)
    path = write(folder / "b.jsonl", [pair(0, correct=True), pair(1, correct=False)])
    with pytest.raises(DataError, match="`columns: {correct: ignore}`.*`bad_rows: drop`"):
        load(path)
