"""The pictures of docs/training.md: recipes that parse, and curves drawn from runs that are there."""

import json
import subprocess
from pathlib import Path

import pytest

from puma_trl.errors import PumaError
from puma_trl.recipe import parse_recipe
from puma_trl.study import curves


ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "mini" / "stage2.yaml"


def test_runs_are_drawn_without_training_them_again(tmp_path, monkeypatch):
    monkeypatch.setattr(curves.subprocess, "run", None)
    for name in curves.RUNS:
        (tmp_path / "runs" / name).mkdir(parents=True)
        history = [{"step": step, "loss": 1 / step} for step in (1, 2)]
        (tmp_path / "runs" / name / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    monkeypatch.setattr("sys.argv", ["curves", "--output", str(tmp_path / "runs"), "--docs", str(tmp_path)])
    curves.main()
    for name in curves.RUNS:
        picture = f"curves_{name}.png"
        assert (tmp_path / picture).exists()
        assert f"({picture})" in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", curves.RUNS)
def test_a_run_is_the_recipe_with_its_changes(tmp_path, monkeypatch, name):
    commands = []

    def fail(command, **kwargs):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "noise\nerror: no such model\n")

    monkeypatch.setattr(curves.subprocess, "run", fail)
    with pytest.raises(PumaError, match=f"`{name}` in .* failed: error: no such model"):
        curves.train(name, tmp_path / "mini", RECIPE, tmp_path / name)
    flags = commands[0][3:]
    script_args, args, model_args, _ = parse_recipe(flags)
    start, changes = curves.RUNS[name]
    assert args.use_kl and args.max_steps == changes["max_steps"]
    assert args.lambda_kl == changes.get("lambda_kl", 0.5) and script_args.dataset_name == [
        str(tmp_path / "mini" / "data" / "stage2.jsonl")
    ]
    assert model_args.model_name_or_path == str(tmp_path / "mini" / start)
