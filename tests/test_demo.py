"""The commands of `make demo`, with few rows and steps, for the networks of the original."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["math_puma_qwen2", "deepseek_vl_hybrid"])
def test_demo(tmp_path, family):
    def call(*command):
        argv = [sys.executable, *map(str, command)]
        result = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    call("-m", "puma_trl.mini", "--output_dir", tmp_path, "--family", family, "--n", 40, "--heldout", 6)
    models = [tmp_path / name for name in ("model", "stage1", "stage2", "stage3")]
    for number in (1, 2, 3):
        call(
            *("-m", "puma_trl.run", ROOT / "recipes" / "mini" / f"stage{number}.yaml"),
            *("--model_name_or_path", models[number - 1], "--output_dir", models[number]),
            *("--dataset_name", tmp_path / "data" / f"stage{number}.jsonl", "--max_steps", 2),
            *("--per_device_train_batch_size", 4, "--logging_steps", 1),
        )
        log = json.loads((models[number] / "trainer_state.json").read_text())["log_history"]
        assert sum("loss" in logs for logs in log) == 2
    gap = tmp_path / "gap.json"
    table = call(
        *("-m", "puma_trl.evaluation", "gap", "--model", *models, "--data", tmp_path / "data" / "heldout.jsonl"),
        *("--output", gap, "--max_new_tokens", 8),
    )
    assert all(model.name in table for model in models)
    assert [model["pairs"] for model in json.loads(gap.read_text())["models"]] == [6] * 4
