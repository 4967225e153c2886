"""Batches that are written anew with other answers: those that the collator makes of these answers."""

import copy

import pytest
import torch

from puma_trl.data.collator import DataCollatorForPumaPairs
from puma_trl.data.padding_free import OnHost
from puma_trl.models.families import get_family

from ..models.family_models import MINI, OTHERS, build_family


# No picture on the text-rich side, on either, on some rows of both
PICTURES = {
    "vision-rich": (lambda index: False, lambda index: 1),
    "none": (lambda index: False, lambda index: 0),
    "some": (lambda index: index % 2, lambda index: index % 3),
}


def same(one, other):
    if isinstance(one, OnHost):
        return torch.equal(one.value, other.value)
    return torch.equal(one, other) if torch.is_tensor(one) else one == other


def answers_of(labels):
    return [row[row != -100].tolist() for row in labels]


@pytest.fixture
def make(pairs):
    """Returns a function that makes rows, and a collator of a family."""

    def make(name, pictures="vision-rich", **options):
        processor, model = build_family(name)
        text_rich, vision_rich = PICTURES[pictures]
        rows = list(pairs(4, text_rich_images=text_rich, vision_rich_images=vision_rich))
        options = {"family": get_family(model.config), "config": model.config, "on_policy": True} | options
        return rows, DataCollatorForPumaPairs(processor, **options)

    return make


@pytest.mark.parametrize("padding_free", [False, True])
@pytest.mark.parametrize("pictures", PICTURES)
@pytest.mark.parametrize("name", [*MINI, *OTHERS])
def test_the_given_answers_give_the_given_batch(make, name, pictures, padding_free):
    """And other answers give what the collator makes of other texts."""
    if name == "gemma3" and padding_free:
        pytest.skip("Gemma 3 has no batches without padding")
    rows, collator = make(name, pictures, padding_free=padding_free)
    given = collator(rows)
    others = [row | {"output": row["output"] + " so", "output_2": "so " * index} for index, row in enumerate(rows)]
    batch, expected = collator(others), collator(rows)
    plain = copy.copy(collator)
    plain.padding_free = False
    collator.write_answers(batch, answers_of(plain(rows)["labels"][: len(rows)]))
    assert given.keys() == batch.keys() == expected.keys()
    for key in expected.keys() - {"prompts", "teacher_prompts"}:
        assert same(given[key], expected[key]) and same(batch[key], expected[key]), key


@pytest.mark.parametrize("padding_free", [False, True])
def test_rows_that_do_not_count(make, padding_free):
    rows, collator = make("qwen2_vl", padding_free=padding_free)
    batch = collator(rows)
    collator.write_answers(batch, [[5, 6], [7, 8], [9], [3]], dropped=[1])
    for side in ("", "teacher_"):
        assert batch[f"{side}labels"][batch[f"{side}labels"] != -100].tolist() == [5, 6, 9, 3]
        assert 7 in batch[f"{side}input_ids"]


@pytest.mark.parametrize("padding_free", [False, True])
@pytest.mark.parametrize("answers", [(None, ""), ("It is.", None), (None, None)])
def test_rows_without_an_answer(make, padding_free, answers):
    """They bear no labels until an answer is written, whichever rows they are."""
    rows, collator = make("qwen2_vl", padding_free=padding_free)
    rows = [row | {"output": answer, "output_2": answer} for row, answer in zip(rows, answers, strict=False)]
    batch = collator(rows)
    count = sum(len(answer) for answer in answers_of(batch["labels"]))
    assert count == sum(len(answer) for answer in answers_of(batch["teacher_labels"]))
    answered = [row for row in rows if row["output_2"]]
    assert count == sum(map(len, answers_of(collator(answered)["labels"]))) if answered else count == 0
    if not padding_free:  # and nothing stands behind their prompts
        for ids, mask, prompt, answer in zip(
            batch["input_ids"], batch["attention_mask"].bool(), batch["prompts"].rows(), answers, strict=True
        ):
            assert ids[mask].tolist()[: len(prompt)] == prompt and (len(ids[mask]) > len(prompt)) == bool(answer)
    collator.write_answers(batch, [[5, 6], [7]])
    assert batch["labels"][batch["labels"] != -100].tolist() == [5, 6, 7]


def test_rows_whose_picture_cannot_be_read_bear_no_labels(make, tmp_path):
    rows, collator = make("qwen2_vl", on_bad_image="replace")
    rows[1] = rows[1] | {"image_url_2": [{"bytes": None, "path": str(tmp_path / "missing.png")}]}
    batch = collator(rows)
    collator.write_answers(batch, [[5], [6], [7], [8]])
    assert batch["labels"][batch["labels"] != -100].tolist() == [5, 7, 8]


@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3"])
def test_prompts_end_at_the_last_column(make, name):
    """As the processor itself pads prompts that are to be continued."""
    rows, collator = make(name, "some")
    prompts = collator(rows)["prompts"]
    left = prompts.padded_left()
    processor = collator.processor
    texts = collator._renderer.prompts([(row["instruction_2"], len(row["image_url_2"]), ()) for row in rows])
    images = collator._open_images([dict(row) for row in rows], ["_2"])[0]
    expected = processor(
        text=texts,
        images=[row["pictures"]["_2"] for row in images],
        padding=True,
        padding_side="left",
        add_special_tokens=False,
        return_tensors="pt",
    )
    assert left.keys() <= expected.keys() and "attention_mask" in left
    for key, value in left.items():
        assert torch.equal(value, expected[key])


def test_nothing_is_carried_without_it(make):
    rows, collator = make("qwen2_vl", on_policy=False)
    assert not any("prompts" in key for key in collator(rows))
