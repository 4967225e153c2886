"""Batches without padding: rows apart, positions, pictures, blank images, dropped rows."""

import pytest
import torch

from puma_trl.data.collator import DataCollatorForPumaPairs
from puma_trl.data.padding_free import OnHost, find_answers, line_up
from puma_trl.errors import ConfigError
from puma_trl.models.families import get_family

from ..models.family_models import build_family


@pytest.fixture
def collate(pairs):
    """Returns a function that collates rows of a family, padded and without padding."""

    def collate(name, rows, **kwargs):
        processor, model = build_family(name)
        options = {"processor": processor, "family": get_family(model.config), "config": model.config} | kwargs
        batches = [
            DataCollatorForPumaPairs(**options, padding_free=padding_free)(rows) for padding_free in (False, True)
        ]
        return model, *batches

    return collate


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "llava"])
def test_rows_are_those_of_padded_batches(collate, pairs, name):
    model, padded, free = collate(name, list(pairs(4, text_rich_images=lambda index: 2 * (index % 2))))
    for side in ("", "teacher_"):
        mask = padded[f"{side}attention_mask"].bool()
        for key in ("input_ids", "labels"):
            assert torch.equal(free[f"{side}{key}"][0], padded[f"{side}{key}"][mask])
        lengths = mask.sum(1)
        assert free[f"{side}cu_seq_lens_q"].tolist() == [0, *lengths.cumsum(0).tolist()]
        assert free[f"{side}cu_seq_lens_q"].dtype == torch.int32
        assert free[f"{side}max_length_q"] == free[f"{side}max_length_k"] == max(lengths)
        assert f"{side}attention_mask" not in free
        places = torch.cat([torch.arange(length) for length in lengths])
        positions = free[f"{side}position_ids"]
        if name == "llava":
            assert torch.equal(positions, places[None])
        else:
            assert positions.shape == (4, 1, lengths.sum()) and torch.equal(positions[0, 0], places)
            inputs = {key: padded[f"{side}{key}"] for key in ("input_ids", "attention_mask", "mm_token_type_ids")}
            expected, _ = model.model.get_rope_index(**inputs, image_grid_thw=padded.get(f"{side}image_grid_thw"))
            assert torch.equal(positions[1:, 0], expected[:, mask])
        answers = free[f"{side}labels"][0, free[f"{side}answer_positions"] + 1]
        assert torch.equal(answers, padded[f"{side}labels"][padded[f"{side}labels"] != -100])
        assert torch.equal(free[f"{side}pixel_values"], padded[f"{side}pixel_values"])


def test_a_blank_image_is_a_row_of_its_own(collate, pairs):
    _, _, free = collate("qwen2_vl", list(pairs(2)))
    starts = free["teacher_cu_seq_lens_q"]
    assert len(starts) == 4 and len(free["cu_seq_lens_q"]) == 3
    blank = slice(starts[2], starts[3])
    assert (free["teacher_labels"][0, blank] == -100).all()
    assert free["teacher_position_ids"][0, 0, blank].tolist() == list(range(starts[3] - starts[2]))
    assert len(free["teacher_image_grid_thw"].value) == 1 and len(free["row_id"]) == 2


def test_pictures_are_described_for_the_tower(collate, pairs):
    """What the tower makes of it is the same, and the sizes stay on the CPU, whatever moves the batch."""
    model, padded, free = collate("qwen2_5_vl", list(pairs(3, vision_rich_images=lambda index: 1 + index)))
    sizes = free.pop("image_grid_thw")
    assert isinstance(sizes, OnHost) and torch.equal(sizes.value, padded["image_grid_thw"])
    facts = {key.removeprefix("image_"): value for key, value in free.items() if key.startswith("image_")}
    assert {"position_ids", "cu_seqlens", "max_seqlen", "window_index", "cu_window_seqlens"} < facts.keys()
    with torch.no_grad():
        expected = model.model.visual(padded["pixel_values"], padded["image_grid_thw"]).pooler_output
        found = model.model.visual(padded["pixel_values"], torch.zeros_like(sizes.value), **facts).pooler_output
    assert torch.equal(found, expected)


def test_replaced_rows_bear_no_labels(collate, pairs, tmp_path):
    rows = list(pairs(3))
    rows[1] = rows[1] | {"image_url_2": [{"bytes": None, "path": str(tmp_path / "missing.png")}]}
    _, padded, free = collate("qwen2_vl", rows, on_bad_image="replace")
    start, end = free["cu_seq_lens_q"][1:3]
    assert (free["labels"][0, start:end] == -100).all() and (padded["labels"][1] == -100).all()
    assert free["dropped_rows"] == padded["dropped_rows"]
    between = (free["answer_positions"] >= start - 1) & (free["answer_positions"] < end)
    assert len(free["answer_positions"]) > 0 and not between.any()


def test_the_configuration_is_needed(collate, pairs):
    with pytest.raises(ConfigError, match="Give the collator its `config`"):
        collate("qwen2_vl", list(pairs(1)), config=None)


def test_single_sides(collate, pairs):
    _, padded, free = collate("qwen2_vl", list(pairs(2)), use_kl=False)
    assert torch.equal(free["labels"][0], padded["labels"][padded["attention_mask"].bool()])
    assert not any(key.startswith("teacher_") or key == "answer_positions" for key in free)


def test_the_first_token_of_a_row_is_not_predicted():
    labels = torch.tensor([[5, 6, -100], [-100, 7, 8]])
    assert find_answers(labels).tolist() == [0, 3, 4]
    batch = {"input_ids": torch.tensor([[5, 6, 0], [4, 7, 8]]), "labels": torch.tensor([[5, 6, -100], [4, 7, 8]])}
    before = batch["labels"].clone()
    free = line_up(batch | {"attention_mask": (before != -100).long()}, build_family("llava")[1].config)
    assert free["labels"].tolist() == [[-100, 6, -100, 7, 8]] and torch.equal(batch["labels"], before)
