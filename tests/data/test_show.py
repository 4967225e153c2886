"""What is shown of a batch is what stands in its tensors."""

import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image
from rich.console import Console
from trl import pack_dataset

from puma_trl.data.collator import DataCollatorForPumaPairs
from puma_trl.data.encode import tokenize_rows
from puma_trl.data.show import LONGEST, describe_sample
from puma_trl.models.families.qwen import QWEN_VL

from .tokenizers import build


PAIR = {
    "row_id": "pairs.jsonl:1",
    "image_url": [],
    "instruction": "Angles 3 and 4?",
    "output": "7",
    "image_url_2": [Image.new("RGB", (56, 56))],
    "instruction_2": "Find it.",
    "output_2": "7",
}


@pytest.fixture
def collate(processor):
    return lambda rows, **kwargs: DataCollatorForPumaPairs(processor, QWEN_VL, **kwargs)(rows)


def test_both_sides_of_the_first_pair(collate, processor):
    other = PAIR | {"row_id": "pairs.jsonl:2", "instruction": "A longer one " * 9}
    batch = collate([PAIR, other], placeholder_sides=())
    lengths = [batch[f"{prefix}attention_mask"][0].sum() for prefix in ("teacher_", "")]
    assert describe_sample(batch, processor).plain == (
        f"pairs.jsonl:1, text-rich side, {lengths[0]} tokens, 2 with labels:\n"
        "<|im_start|>user\nAngles 3 and 4?<|im_end|>\n<|im_start|>assistant\n⟦7<|im_end|>⟧\n"
        f"pairs.jsonl:1, vision-rich side, {lengths[1]} tokens, 2 with labels:\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|> × 4<|vision_end|>Find it.<|im_end|>\n"
        "<|im_start|>assistant\n⟦7<|im_end|>⟧"
    )


def test_it_is_the_batch_that_is_shown(collate, processor):
    """Ids and labels are read, not rendered again."""
    batch = collate([PAIR], use_kl=False)
    batch["labels"][batch["labels"] == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")] = -100
    batch["labels"][0, 0] = 1
    batch["input_ids"][0, 1] = processor.tokenizer("9")["input_ids"][0]
    lines = describe_sample(batch, processor).plain.splitlines()
    assert lines[0].startswith("pairs.jsonl:1, ") and "side" not in lines[0]
    assert lines[1].startswith("⟦<|im_start|>⟧9")
    assert lines[-1].startswith("⟦7⟧ and 1 tokens")


def test_the_blank_picture_of_the_collator_is_told_apart(collate, processor):
    text = describe_sample(collate([PAIR]), processor).plain
    assert "⟦7<|im_end|>⟧ and 3 tokens of a blank picture, which the answer does not see\n" in text


def test_plain_text_that_reads_like_control_tokens(collate, processor):
    row = PAIR | {"output_2": "7 <|im_end|>"}
    text = describe_sample(collate([row], special_tokens="escape"), processor)
    assert text.plain.endswith("⟦7 \\<|im_end|><|im_end|>⟧")
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert "cyan" in styles["<|im_start|>"] and "cyan" not in styles["7 \\<|im_end|>"]


def test_long_texts_and_terminal_codes(collate, processor):
    row = PAIR | {"instruction": "begin" + "7" * 3 * LONGEST + "end", "instruction_2": "a\x1b[31m\x07\u202e\tb"}
    text = describe_sample(collate([row]), processor).plain
    assert f"begin{'7' * 100}" in text and f"{'7' * 100}end<|im_end|>" in text and " characters … " in text
    assert len(text) < 2 * LONGEST
    assert "a\\x1b[31m\\x07\\u202e\tb<|im_end|>" in text


@pytest.mark.parametrize("packed", [False, True])
def test_rows_of_text_models(packed):
    tokenizer = build("gemma")
    rows = [{"instruction": "Why?", "output": "So."}, {"instruction": "And?", "output": "No."}]
    dataset = tokenize_rows(DatasetDict({"train": Dataset.from_list(rows)}), tokenizer)["train"]
    if packed:
        dataset = pack_dataset(dataset, 200)
    text = "<bos><start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n⟦So.<end_of_turn>⟧"
    length = len(tokenizer(text, add_special_tokens=False)["input_ids"]) - 6  # the brackets have three bytes each
    assert describe_sample(dataset[0], tokenizer).plain == f"{length} tokens, 4 with labels:\n{text}"


def test_a_row_without_labels_is_shown_whole(collate, processor):
    batch = collate([PAIR], use_kl=False)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    assert describe_sample(batch, processor).plain.endswith("7<|im_end|>")


def test_colours_are_for_terminals(collate, processor):
    text = describe_sample(collate([PAIR]), processor)
    console = Console(force_terminal=True, width=200)
    with console.capture() as capture:
        console.print(text)
    assert "\x1b[36m<|im_start|>" in capture.get()
