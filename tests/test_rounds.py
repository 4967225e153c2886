"""The commands of recipes/rounds, with few rows and steps."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from puma_trl.cli import find_command
from puma_trl.data.images import open_image
from puma_trl.data.render import render_answer, render_prompt
from puma_trl.mini import build_model, write_data


ROOT = Path(__file__).parents[1]
ROWS = 10
SMALL = {
    "pairs": ["--batch_size", "8", "--max_new_tokens", "60"],
    "train": ["--max_steps", "3", "--per_device_train_batch_size", "4", "--dataloader_num_workers", "0"],
    "eval": ["--num_rows", "3"],
}


def learn_by_heart(model, processor, rows, folder, steps=50):
    """Trains a model on both sides of a few pairs, so that it has right answers to keep."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batches = []
    for suffix in ("", "_2"):
        images = [[open_image(str(folder / row["image_url_2"]))] if suffix else [] for row in rows]
        prompts = [render_prompt(processor, row[f"instruction{suffix}"], len(suffix) // 2) for row in rows]
        answers = [render_answer(processor, row["output"]) for row in rows]
        how = {"images": images if suffix else None, "add_special_tokens": False, "padding": True}
        texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        batch = processor(text=texts, return_tensors="pt", padding_side="left", **how)
        labels = torch.full_like(batch["input_ids"], -100)
        for row, answer in enumerate(answers):
            count = len(processor.tokenizer(answer, add_special_tokens=False)["input_ids"])
            labels[row, -count:] = batch["input_ids"][row, -count:]
        batches.append(batch | {"labels": labels})
    for _ in range(steps):
        for batch in batches:
            model.train()(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.slow
def test_two_rounds(processor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "outputs" / "mini" / "data"
    write_data(data, ROWS, 4, seed=0, num_proc=1)
    rows = [json.loads(line) for line in (data / "stage2.jsonl").read_text().splitlines()]
    model = build_model("qwen2_vl", processor)
    learn_by_heart(model, processor, rows, data)
    for each in (model, processor):
        each.save_pretrained("outputs/mini/stage1")

    (block,) = re.findall(r"```bash\n(.*?)```", (ROOT / "recipes" / "rounds" / "README.md").read_text(), re.DOTALL)
    commands = [shlex.split(line)[1:] for line in block.splitlines()]
    assert [command[:2] for command in commands[:3]] == [command[:2] for command in commands[3:]]
    for name, *argv in commands:
        argv += SMALL[name]
        if name == "train":
            subprocess.run([sys.executable, "-m", "puma_trl.cli", name, *argv], check=True, timeout=300)
        else:
            assert not find_command(name)(argv)
    for number, side in ((1, "text_rich"), (2, "vision_rich")):
        own = [json.loads(line) for line in Path(f"outputs/rounds/own{number}.jsonl").read_text().splitlines()]
        assert own and {row["round"] for row in own} == {number}
        assert len(own) == len({row["instruction"] for row in own}) <= ROWS  # the shortest right one of each
        settings = json.loads(Path(f"outputs/rounds/.own{number}.progress.settings.json").read_text())
        assert settings["side"] == side
        recipe = Path(f"outputs/rounds/stage2_{number}/recipe.yaml").read_text()
        assert f"outputs/rounds/own{number}.jsonl" in recipe
        gap = json.loads(Path(f"outputs/rounds/gap{number}.json").read_text())
        assert [model["pairs"] for model in gap["models"]] == [3, 3]
        assert gap["models"][1]["model"] == f"outputs/rounds/stage2_{number}"
