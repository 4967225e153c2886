"""Rows of text models have the tokens that were counted, one beginning, and the end of their chat template."""

import pytest
from datasets import Dataset, DatasetDict

from puma_trl.data.encode import tokenize_rows
from puma_trl.data.render import end_of_answer, end_token_id, render_prompt
from puma_trl.mini import build_tokenizer

from .tokenizers import CHATML, KINDS, build


@pytest.mark.parametrize("kind", [*KINDS])
@pytest.mark.parametrize("special_tokens", ["error", "escape"])
def test_rows_of_text_models(kind, special_tokens):
    tokenizer = build(kind)
    rows = [{"instruction": "Why?", "output": "So.", "history": []}, {"instruction": " 2 ", "output": "4"}]
    if special_tokens == "escape":
        rows[0]["output"] = f"So {tokenizer.eos_token}."
    dataset = DatasetDict({"train": Dataset.from_list(rows)})
    train = tokenize_rows(dataset, tokenizer, special_tokens)["train"]
    assert train.column_names == ["input_ids", "labels"]
    for row, tokens in zip(rows, train, strict=True):
        prompt = tokenizer(render_prompt(tokenizer, row["instruction"], 0), add_special_tokens=False)["input_ids"]
        ids, labels = tokens["input_ids"], tokens["labels"]
        assert ids[: len(prompt)] == prompt and labels[: len(prompt)] == [-100] * len(prompt)
        assert ids[len(prompt) :] == labels[len(prompt) :] and ids[-1] == end_token_id(tokenizer)
        assert tokenizer.decode(labels[len(prompt) :]) == row["output"] + end_of_answer(tokenizer)
        assert labels.count(end_token_id(tokenizer)) == 1
    train = tokenize_rows(dataset, tokenizer, special_tokens, completion_only_loss=False)["train"]
    assert train["labels"][:] == train["input_ids"][:]


def test_the_mini_tokenizer_is_read_as_before():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHATML
    dataset = DatasetDict({"train": Dataset.from_list([{"instruction": "Why 1?", "output": "So 2."}])})
    (row,) = tokenize_rows(dataset, tokenizer)["train"]
    assert tokenizer.decode(row["input_ids"]) == (
        "<|im_start|>user\nWhy 1?<|im_end|>\n<|im_start|>assistant\nSo 2.<|im_end|>"
    )
