import pytest
import torch
from datasets import DatasetDict
from torch.testing import assert_close

from puma_trl.data.collator import DataCollatorForPumaPairs, find_placeholder_sides
from puma_trl.models.families import get_family


@pytest.fixture
def collate(processor, tiny_model):
    family = get_family(tiny_model().config)

    def collate(rows, **kwargs):
        return DataCollatorForPumaPairs(processor, family, **kwargs)(list(rows))

    return collate


def answers(batch, prefix=""):
    return [row[row != -100].tolist() for row in batch[f"{prefix}labels"]]


def test_both_sides(collate, processor, pairs):
    rows = pairs(4)
    batch = collate(rows)
    assert batch["row_id"] == [f"pairs.jsonl:{index}" for index in range(4)]
    assert answers(batch) == answers(batch, "teacher_")
    for row, answer in zip(rows, answers(batch), strict=True):
        assert processor.tokenizer.decode(answer) == row["output_2"] + "<|im_end|>"
    for prefix, suffix in (("", "_2"), ("teacher_", "")):
        ids, mask = batch[f"{prefix}input_ids"], batch[f"{prefix}attention_mask"].bool()
        prompts = [processor.tokenizer.decode(row[keep]) for row, keep in zip(ids, mask, strict=True)]
        assert all(row[f"instruction{suffix}"] in text for row, text in zip(rows, prompts, strict=True))
    assert batch["image_grid_thw"].shape == (4, 3)


def test_teacher_answers_with_the_students_answer(collate, pairs):
    row = pairs(1)[0] | {"output": "something else entirely"}
    batch = collate([row])
    assert answers(batch) == answers(batch, "teacher_")


def test_single_side(collate, pairs):
    rows = pairs(2)
    batch = collate(rows, use_kl=False)
    assert not any(name.startswith("teacher_") for name in batch)
    assert answers(batch) == answers(collate(rows))  # the student side of pairs
    text_only = rows.remove_columns(["image_url_2", "instruction_2", "output_2"])
    batch = collate(text_only, use_kl=False)
    assert "Angles" in rows[0]["instruction"] and batch["input_ids"].shape[0] == 2


def test_use_kl_needs_pairs(collate, pairs):
    rows = pairs(1).remove_columns(["image_url_2", "instruction_2", "output_2"])
    with pytest.raises(ValueError, match="pairs.jsonl:0 has no vision-rich side"):
        collate(rows)


def test_several_images_on_a_side(collate, processor, pairs):
    rows = pairs(2, vision_rich_images=lambda index: 2 * index)  # none and two
    batch = collate(rows)
    assert batch["image_grid_thw"].shape == (2, 3)
    starts = (batch["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<|vision_start|>")).sum(1)
    assert starts.tolist() == [0, 2]


@pytest.mark.parametrize("family_name", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_placeholder_changes_nothing(collate, tiny_model, pairs, family_name, num_rows):
    rows = pairs(num_rows)
    with_placeholder = collate(rows)
    without = collate(rows, placeholder_sides=())
    assert "teacher_pixel_values" in with_placeholder and "teacher_pixel_values" not in without
    assert answers(with_placeholder, "teacher_") == answers(without, "teacher_")
    model = tiny_model(family_name=family_name)

    def logits(batch):
        inputs = {k.removeprefix("teacher_"): v for k, v in batch.items() if k.startswith("teacher_")}
        labels = inputs.pop("labels")
        return model(**inputs).logits[:, :-1][labels[:, 1:] != -100]

    with_logits = logits(with_placeholder)
    assert_close(with_logits, logits(without), rtol=0, atol=1e-6)
    # the vision tower is in the graph, with a gradient of exactly zero
    with_logits.sum().backward()
    for name, parameter in model.named_parameters():
        if "visual" in name:
            assert parameter.grad is not None and torch.all(parameter.grad == 0), name


def test_answers_that_tokenise_differently_are_refused(collate, pairs, monkeypatch):
    rows = pairs(2)
    collator = DataCollatorForPumaPairs
    original = collator._collate_side

    def crooked(self, rows, suffix, answer_suffix, side):
        batch = original(self, rows, suffix, answer_suffix, side)
        if side == "teacher":
            batch["labels"][1, -1] = -100
        return batch

    monkeypatch.setattr(collator, "_collate_side", crooked)
    longest = max(range(2), key=lambda index: len(rows[index]["instruction"] + rows[index]["output"]))
    rows = [rows[1 - longest], rows[longest]]  # the longest last, so that its last column is an answer token
    with pytest.raises(ValueError, match=rf"Row {rows[1]['row_id']}: the answer has other tokens"):
        collate(rows, placeholder_sides=())


def test_sides_that_need_a_placeholder(pairs):
    """A side without any image needs none, unless its vision tower trains; evaluation rows count too."""
    without, text_rich = (
        pairs(3, vision_rich_images=lambda index: 0),
        pairs(3, text_rich_images=lambda index: index == 2),
    )
    single = text_rich.remove_columns(["image_url_2", "instruction_2", "output_2"])
    language_model, aligner = ["language_model"], ["aligner"]
    for dataset, parts, expected in [
        ({"train": pairs(3)}, aligner, ("student",)),
        ({"train": text_rich}, aligner, ("student", "teacher")),
        ({"train": without}, aligner, ("student",)),
        ({"train": without}, language_model, ()),
        ({"train": without, "eval": text_rich}, language_model, ("student", "teacher")),
        ({"train": single}, language_model, ("student", "teacher")),
        ({"train": single.select([])}, aligner, ("student",)),
    ]:
        assert find_placeholder_sides(DatasetDict(dataset), parts) == expected
