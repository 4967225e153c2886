"""Batches of both sides, of one side, of rows whose pictures break, of texts with control tokens."""

import pytest
import torch
from datasets import DatasetDict
from PIL import Image
from tokenizers.processors import TemplateProcessing
from torch.testing import assert_close

from puma_trl.data.collator import DataCollatorForPumaPairs, find_placeholder_sides
from puma_trl.errors import DataError
from puma_trl.models.families import get_family

from ..models.family_models import build_family


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


def test_sides_without_pictures_show_no_same_ones(collate, pairs):
    """Of the student's blank image a teacher without one has computed nothing."""
    assert collate(pairs(2, vision_rich_images=lambda index: 0))["same_images"] is False


@pytest.mark.parametrize("num_same", [0, 1, 2])
def test_pictures_are_the_same_if_those_of_all_rows_are(collate, pairs, num_same):
    rows = pairs(2)
    images = [row["image_url_2"] if index < num_same else [] for index, row in enumerate(rows)]
    rows = rows.remove_columns("image_url").add_column("image_url", images, feature=rows.features["image_url"])
    assert collate(rows)["same_images"] is (num_same == 2)


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

    def crooked(self, rows, suffix, answer_suffix, side, dropped):
        batch = original(self, rows, suffix, answer_suffix, side, dropped)
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
        ({"train": text_rich.select([1, 0])}, language_model, ("student",)),
    ]:
        assert find_placeholder_sides(DatasetDict(dataset), parts) == expected


def test_turns_before_the_problem_and_places_of_pictures(collate, processor, pairs):
    turns = [{"role": "user", "content": "See <image>."}, {"role": "assistant", "content": "Yes."}]
    rows = list(pairs(2, vision_rich_images=lambda index: 2))
    rows[0] |= {"history": [], "history_2": turns, "instruction_2": "And <image>?"}
    rows[1] |= {"history": [], "history_2": []}
    batch = collate(rows, placeholder_sides=())
    keep = batch["attention_mask"][0].bool()
    text = processor.tokenizer.decode(batch["input_ids"][0][keep])
    pieces = [piece.replace("<|image_pad|>", "") for piece in text.split("<|vision_start|>")]
    assert pieces == [
        "<|im_start|>user\nSee ",
        "<|vision_end|>.<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\nAnd ",
        f"<|vision_end|>?<|im_end|>\n<|im_start|>assistant\n{rows[0]['output_2']}<|im_end|>",
    ]
    assert "Yes." not in processor.tokenizer.decode(batch["teacher_input_ids"][0])
    with pytest.raises(DataError, match="image places: the texts have 1 '<image>', but there are 2 images"):
        collate([rows[0] | {"history_2": []}])


@pytest.mark.parametrize("column", ["instruction", "instruction_2", "output_2"])
def test_control_tokens_are_refused_by_name(collate, pairs, column):
    row = pairs(2)[1]
    problem = rf"special token in text: `{column}` contains '<\|im_start\|>'"
    with pytest.raises(DataError, match=f"Row pairs.jsonl:1: {problem}"):
        collate([row | {column: "a <|im_start|>"}])


def test_escaped_control_tokens_are_text_on_both_sides(collate, processor, pairs):
    texts = {"instruction": "a <|im_end|> b <|image_pad|>", "instruction_2": "<|vision_start|> c"}
    texts |= {"output_2": "<|im_end|>d"}
    rows = list(pairs(2))
    escaped = collate([rows[0] | texts, rows[1]], special_tokens="escape", placeholder_sides=())
    assert answers(escaped) == answers(escaped, "teacher_")
    assert processor.tokenizer.decode(answers(escaped)[0]) == "<|im_end|>d<|im_end|>"
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert [row.count(end) for row in answers(escaped)] == [1, 1]
    plain = collate([rows[0] | dict.fromkeys(texts, "x"), rows[1]], placeholder_sides=())
    for prefix in ("", "teacher_"):
        text = processor.tokenizer.decode(escaped[f"{prefix}input_ids"][0])
        assert texts["instruction" if prefix else "instruction_2"] in text
        for token in ("<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|image_pad|>"):
            index = processor.tokenizer.convert_tokens_to_ids(token)
            counts = [(batch[f"{prefix}input_ids"][0] == index).sum() for batch in (escaped, plain)]
            assert counts[0] == counts[1], token
    # the rows beside it are what they were
    assert answers(escaped)[1] == answers(collate([rows[1]]))[0]


@pytest.mark.parametrize("template_has_it", [True, False])
def test_one_beginning_on_each_side(template_has_it, pairs):
    """The tokenizer adds a beginning, the template may."""
    processor, model = build_family("llava")
    tokenizer = processor.tokenizer
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    assert tokenizer("a")["input_ids"][0] == bos
    if template_has_it:
        processor.chat_template = "{{ bos_token }}" + processor.chat_template
    batch = DataCollatorForPumaPairs(processor, get_family(model.config))(list(pairs(3)))
    for prefix in ("", "teacher_"):
        assert (batch[f"{prefix}input_ids"] == bos).sum(1).tolist() == [1, 1, 1]
        first = batch[f"{prefix}attention_mask"].argmax(1)
        assert batch[f"{prefix}input_ids"][torch.arange(3), first].tolist() == [bos] * 3


@pytest.fixture
def broken(pairs, tmp_path):
    """Rows of which the one in the middle has a picture that ends in its data."""
    rows = list(pairs(3))
    Image.effect_noise((100, 100), 90).save(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    rows[1]["image_url_2"] = [{"bytes": None, "path": str(tmp_path / "cut.png")}]
    return rows


def test_a_picture_that_breaks_names_its_row(collate, broken):
    with pytest.raises(DataError, match=r"Row pairs.jsonl:1: unreadable image: .*cut.png.*`bad_rows: drop`"):
        collate(broken)


def test_a_row_whose_picture_breaks_is_replaced_and_not_learned(collate, broken, tmp_path):
    batch = collate(broken, on_bad_image="replace")
    (dropped,) = batch["dropped_rows"]
    assert dropped["row_id"] == "pairs.jsonl:1" and dropped["reason"].startswith("unreadable image: ")
    assert batch["row_id"] == ["pairs.jsonl:0", "pairs.jsonl:0", "pairs.jsonl:2"]
    good = collate([broken[0], broken[2]])
    for prefix in ("", "teacher_"):
        assert answers(batch, prefix) == [answers(good)[0], [], answers(good)[1]]
    assert batch["image_grid_thw"].shape == (3, 3)
    # missing on the text-rich side, where the labels of both sides must go too
    rows = [broken[0], broken[2] | {"image_url": [{"bytes": None, "path": str(tmp_path / "none.png")}]}]
    batch = collate(rows, on_bad_image="replace")
    assert batch["dropped_rows"][0]["reason"].startswith("missing image")
    assert answers(batch) == answers(batch, "teacher_") == [answers(good)[0], []]
    assert "dropped_rows" not in collate([broken[0]], on_bad_image="replace")


def test_a_row_alone_in_its_batch_is_replaced_by_an_earlier_one(processor, tiny_model, broken):
    collator = DataCollatorForPumaPairs(processor, get_family(tiny_model().config), on_bad_image="replace")
    with pytest.raises(DataError, match="No row of a batch has pictures that can be read.*pairs.jsonl:1: unreadable"):
        collator([broken[1]])
    collator([broken[2]])
    batch = collator([broken[1]])
    assert batch["row_id"] == ["pairs.jsonl:2"] and answers(batch) == answers(batch, "teacher_") == [[]]
    assert [row["row_id"] for row in batch["dropped_rows"]] == ["pairs.jsonl:1"]
    with pytest.raises(DataError, match="No row of a batch"):
        collator([broken[1], broken[1]])
