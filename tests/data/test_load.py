"""From the names of datasets to checked rows: sides, splits, and what must not be in two of them."""

import os
import shutil

import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from puma_trl.config import PumaKLConfig, PumaScriptArguments
from puma_trl.data import files as data_files
from puma_trl.data.collator import DataCollatorForPumaPairs
from puma_trl.data.load import DataReport, load_data
from puma_trl.errors import DataError
from puma_trl.models.families.qwen import QWEN_VL

from .samples import pair, single, write


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


def test_splits_of_the_hub(folder, load, monkeypatch):
    """One name may stand for the data to train and to evaluate on."""
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return Dataset.from_list([pair(len(asked))])

    monkeypatch.setattr(data_files, "load_dataset", load_dataset)
    options = {"image_root": str(folder), "dataset_config": "hard"}
    load("owner/pairs", eval_dataset_name="owner/pairs", **options)
    load("owner/pairs", eval_dataset_name="owner/pairs", dataset_test_split="validation", **options)
    assert asked == [("owner/pairs", "hard", split) for split in ("train", "test", "train", "validation")]


def test_rows_that_repeat_others_are_counted(folder, load, caplog):
    load(write(folder / "pairs.jsonl", [pair(0)] * 3 + [pair(1), pair(1), pair(2)]))
    assert "3 of the 6 rows of the train data repeat another one" in caplog.text


def test_a_mapping_may_be_for_one_split(folder, load):
    rows = [{name: value for name, value in pair(0).items() if name != "image_url_2"} | {"picture": "0.png"}]
    train, evaluation = write(folder / "train.jsonl", rows), write(folder / "eval.jsonl", [pair(1)])
    dataset, reports = load(train, eval_dataset_name=evaluation, columns={"image_url_2": "picture"})
    assert [reports[split].images["vision-rich"] for split in ("train", "eval")] == [1, 1]
    with pytest.raises(DataError, match="`picture` has the name of pictures"):
        load(train, eval_dataset_name=evaluation)


def test_turns_before_the_question_are_kept(folder, load):
    turns = [("system", "s"), ("user", "<image>a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns], "images": ["0.png"]}
    dataset, _ = load(write(folder / "chat.jsonl", [row]), use_kl=False)
    (found,) = dataset["train"]
    assert found["history"] == row["messages"][:3] and (found["instruction"], found["output"]) == ("c", "d")


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

    def test_what_is_held_out_is_not_trained_on_and_repeats_of_it_are_told(self, folder, load, caplog):
        rows = [pair(index) for index in range(20)]
        path = write(folder / "pairs.jsonl", [*rows, *rows[:10]])
        dataset, reports = load(path, eval_split_size=12)
        numbers = {split: {int(name.split(":")[1]) - 1 for name in rows["row_id"]} for split, rows in dataset.items()}
        trained = {number % 20 for number in numbers["train"]}
        shared = [number for number in numbers["eval"] if number % 20 in trained]
        assert shared and f"{len(shared)} of the 12 rows of the eval data are among the train data too" in caplog.text
        train, held_out = (set(reports[split].digests["digest"].tolist()) for split in ("train", "eval"))
        assert len(train) == len(trained) and len(train & held_out) == len({number % 20 for number in shared})

    def test_rows_held_out_that_are_all_trained_on_too_are_refused(self, folder, load):
        path = write(folder / "pairs.jsonl", [pair(0)] * 8)
        with pytest.raises(DataError, match="All 4 rows of the eval data are among the train.*`puma-trl pairs split`"):
            load(path, eval_split_size=4)

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
