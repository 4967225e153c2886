"""The commands of recipes/mini/ladder: they follow each other, and run with few rows and steps."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from puma_trl.cli import find_command
from puma_trl.evaluation.modality import MODALITIES
from puma_trl.mini import IMAGE_SIZE, KINDS, LABEL_GRID, build_model
from puma_trl.recipe import parse_recipe


README = Path(__file__).parents[1] / "recipes" / "mini" / "ladder" / "README.md"
SMALL = {
    "pairs": ["--n", "4"],
    "train": ["--max_steps", "2", "--per_device_train_batch_size", "2", "--dataloader_num_workers", "0"],
    "eval": ["--num_rows", "5", "--max_new_tokens", "4"],
}


@pytest.fixture
def commands():
    rungs, measure = re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return tuple([shlex.split(line)[1:] for line in block.splitlines()] for block in (rungs, measure))


def options(command):
    """Returns option → its values."""
    found = {}
    for piece in command:
        if piece.startswith("--"):
            values = found[piece[2:]] = []
        elif found:
            values.append(piece)
    return found


def test_each_level_teaches_the_next(commands):
    rungs, (heldout, gap) = commands
    generate, train = rungs[::2], rungs[1::2]
    before, start = [], "outputs/mini/stage1"
    for level, make, learn in zip(MODALITIES, generate, train, strict=True):
        made = options(make)
        assert make[:2] == ["pairs", "generate"] and made["modality"] == [level]
        assert made.get("text_rich_modality", []) == before
        learned = parse_recipe([str(README.parent / "stage2.yaml"), *learn[2:]])[1:3]
        assert learn[0] == "train" and learned[1].model_name_or_path == start
        assert options(learn)["dataset_name"] == [f"{made['output'][0]}/train.jsonl"]
        before, start = [level], learned[0].output_dir
    assert options(heldout)["modality"] == list(MODALITIES)
    for command in (*generate, heldout):
        style = options(command)
        assert tuple(style["kinds"]) == KINDS and tuple(map(int, style["image_size"])) == IMAGE_SIZE
        assert style["label_grid"] == [str(LABEL_GRID)]
    assert options(gap)["model"] == [options(learn)["output_dir"][0] for learn in train]


@pytest.mark.slow
def test_first_and_last_rung(commands, processor, tmp_path, monkeypatch):
    rungs, (heldout, gap) = commands
    monkeypatch.chdir(tmp_path)
    for start in ("stage1", "ladder/vision_dominant"):
        for each in (build_model("qwen2_vl", processor), processor):
            each.save_pretrained(f"outputs/mini/{start}")
    for name, *argv in (*rungs[:2], *rungs[-2:]):
        argv += SMALL[name]
        if name == "train":
            recipe = str(README.parent / "stage2.yaml")
            subprocess.run([sys.executable, "-m", "puma_trl.cli", name, recipe, *argv[1:]], check=True, timeout=300)
        else:
            assert not find_command(name)(argv)
    assert not find_command("pairs")([*heldout[1:], "--heldout", "1"])
    models = [f"outputs/mini/ladder/{level}" for level in (MODALITIES[0], MODALITIES[-1])]
    assert not find_command("eval")([*gap[1:], *SMALL["eval"], "--model", *models])
    results = json.loads(Path(options(gap)["output"][0]).read_text())["models"]
    assert [result["model"] for result in results] == models
    assert all(list(result["by"]["modality"]) == list(MODALITIES) for result in results)
