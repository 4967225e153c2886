"""The mini study: its data, its plan, its figures, and a small one from end to end."""

import json
import math
import os
from pathlib import Path

import pytest
import yaml

from puma_trl.errors import StudyError
from puma_trl.mini import build_model, build_processor
from puma_trl.recipe import parse_recipe
from puma_trl.study import report as study_report
from puma_trl.study import run as study


RECIPES = Path(__file__).parents[2] / "recipes" / "mini" / "study"


@pytest.fixture
def small_data(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "NUM_TOWER", 9)
    monkeypatch.setattr(study, "NUM_ROWS", 90)
    monkeypatch.setattr(study, "NUM_HELDOUT", 6)
    study.write_data(tmp_path / "data")
    return tmp_path / "data"


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_data(small_data):
    clean, shuffled, noisy = (read(small_data / f"{name}.jsonl") for name in ("clean", "shuffled", "noisy"))
    assert len(read(small_data / "tower.jsonl")) == 9 and len(read(small_data / "heldout.jsonl")) == 6
    assert len(clean) == len(shuffled) == len(noisy) == 90
    for row, other in zip(clean, shuffled, strict=True):
        # the text alone is another's, of the same kind: as many words, with other numbers
        assert other | {"instruction": row["instruction"]} == row
        assert len(other["instruction"].split()) == len(row["instruction"].split())
    assert sum(row["instruction"] != other["instruction"] for row, other in zip(clean, shuffled, strict=True)) > 80
    wrong = [(row, other) for row, other in zip(clean, noisy, strict=True) if row != other]
    assert 40 <= len(wrong) <= 45
    for row, other in wrong:
        assert other["output"] == other["output_2"] != row["output"]
        assert other | {"output": row["output"], "output_2": row["output_2"]} == row


def test_data_is_not_written_twice(small_data):
    before = (small_data / "clean.jsonl").stat().st_mtime_ns
    study.write_data(small_data)
    assert (small_data / "clean.jsonl").stat().st_mtime_ns == before


def test_plan():
    """Every variant is a recipe that parses, once with every seed, in a folder of its own."""
    runs = list(study.plan_runs(RECIPES, Path("out/tower"), Path("out"), 3))
    assert len({run.folder for run in runs}) == len(runs) == 3 * len({(run.regime, run.variant) for run in runs})
    assert {run.seed for run in runs[: len(runs) // 3]} == {0}
    for run in runs:
        changes = {key: value for key, value in run.changes.items() if key != "data"}
        argv = [str(piece) for key, value in changes.items() for piece in (f"--{key}", value)]
        _, args, _, _ = parse_recipe([str(RECIPES / "stage2.yaml"), *argv])
        assert all(getattr(args, key) == value or key == "trainable_parts" for key, value in changes.items())
    for regime in {run.regime for run in runs}:
        assert study_report.BASELINE in {run.variant for run in runs if run.regime == regime}


def plan_folders(recipes, model, output):
    """The folders of the data, of the tower and of all runs."""
    data = study.data_folder(output)
    tower = study.tower_folder(recipes, model, data, output)
    return data, tower, [run.folder for run in study.plan_runs(recipes, tower, output, 1)]


def test_edited_settings_run_anew(tmp_path, monkeypatch):
    """A folder keeps its name as long as nothing that decides about its content is edited."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    for name in ("stage2", "stage2_tower", "variants"):
        (tmp_path / f"{name}.yaml").write_text((RECIPES / f"{name}.yaml").read_text())

    def edit(name, old, new):
        text = (tmp_path / f"{name}.yaml").read_text()
        assert old in text
        (tmp_path / f"{name}.yaml").write_text(text.replace(old, new))

    data, tower, runs = before = plan_folders(tmp_path, model, tmp_path)
    edit("stage2", "# Loss", "# The loss")
    assert plan_folders(tmp_path, model, tmp_path) == before
    edit("variants", "{lambda_kl: 0.1}", "{lambda_kl: 0.2}")
    after = plan_folders(tmp_path, model, tmp_path)
    assert after == (data, tower, [runs[0], after[2][1], *runs[2:]]) and after[2][1] != runs[1]
    edit("stage2", "max_steps: 200", "max_steps: 300")
    after = plan_folders(tmp_path, model, tmp_path)
    assert after[:2] == (data, tower) and not set(after[2]) & set(runs)
    edit("stage2", "max_steps: 300", "max_steps: 200")
    edit("variants", "{lambda_kl: 0.2}", "{lambda_kl: 0.1}")
    assert plan_folders(tmp_path, model, tmp_path) == before
    for change in (
        lambda: edit("stage2_tower", "seed: 0", "seed: 1"),
        lambda: (model / "model.safetensors").write_bytes(b"others"),
    ):
        change()
        after = plan_folders(tmp_path, model, tmp_path)
        assert after[0] == data and after[1] != tower and not set(after[2]) & set(runs)
        data, tower, runs = after
    monkeypatch.setattr(study, "NOISE", 0.4)
    after = plan_folders(tmp_path, model, tmp_path)
    assert after[0] != data and after[1] != tower and not set(after[2]) & set(runs)


def checkpoint(step, accuracy, kl=1.0):
    values = {"vision_rich_accuracy": accuracy, "text_rich_accuracy": 1.0, "gap": 1.0 - accuracy}
    return {"step": step, "forward_kl": kl, "reverse_kl": 2 * kl, "pairs": 10} | values


def test_steps_to_target():
    assert study_report.steps_to_target([checkpoint(100, 0.4), checkpoint(200, 0.9)]) == pytest.approx(180)
    assert study_report.steps_to_target([checkpoint(100, 0.8)]) == pytest.approx(100)
    assert study_report.steps_to_target([checkpoint(100, 0.79)]) == math.inf


def test_closed_share():
    assert study_report.closed_share([checkpoint(1, 0, 3.0), checkpoint(2, 0, 0.5)], checkpoint(0, 0, 2.0)) == 0.75


@pytest.mark.parametrize(
    ("values", "words"),
    [([0.9, 0.91, 0.92], "better"), ([0.1, 0.11, 0.12], "worse"), ([0.4, 0.5, 0.63], "no clear difference")],
)
def test_compare(values, words):
    assert study_report.compare(values, [0.49, 0.5, 0.51]).endswith(f": {words}")


def test_report(tmp_path):
    seeds = [[checkpoint(100, 0.5), checkpoint(200, last)] for last in (0.7, 0.75, 0.8)]
    better = [[checkpoint(100, 0.8), checkpoint(200, last, 0.1)] for last in (0.9, 0.9, 0.9)]
    results = {"clean answers": {"cross-entropy only": seeds, "PUMA": better}}
    study_report.write_report(results, checkpoint(0, 0.0), tmp_path / "docs" / "study.md", "Setting.")
    text = (tmp_path / "docs" / "study.md").read_text()
    assert "| cross-entropy only | 100.0 ± 0.0 | 75.0 ± 5.0 | 25.0 ± 5.0 | reached by 1 of 3 | 0.0 ± 0.0 |  |" in text
    assert (
        "| PUMA | 100.0 ± 0.0 | 90.0 ± 0.0 | 10.0 ± 0.0 | 100 ± 0 | 90.0 ± 0.0 | +15.0 ± 2.9 points: better |" in text
    )
    assert (tmp_path / "docs" / "study.png").stat().st_size > 10_000


def test_a_run_that_fails_is_named_with_its_log(tmp_path):
    """What it printed is in the log, and its last line in the error."""
    (tmp_path / "stage2.yaml").write_text("alpha_lk: 1")
    run = study.Run("clean", "PUMA", 0, {}, tmp_path / "runs" / "0-0-seed0-abc")
    with pytest.raises(StudyError) as error:
        study.execute(run, tmp_path, tmp_path / "model", tmp_path / "data", dict(os.environ))
    log = run.folder / "run.log"
    start = "`python -m puma_trl.run` of the run 0-0-seed0-abc ended with 2: error: Unknown key `alpha_lk`"
    assert str(error.value).startswith(start) and str(error.value).endswith(f" Its log is {log}.")
    assert log.read_text().splitlines()[-1] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_small_study(tmp_path, small_data, monkeypatch):
    """The real command: data, runs, measurements, report; and once more, where nothing is left to be done."""
    processor = build_processor()
    for part in (processor, build_model("qwen2_vl", processor)):
        part.save_pretrained(tmp_path / "model")
    for name in ("stage2", "stage2_tower"):
        recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
        recipe |= {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 4}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    variants = {"clean": {"cross-entropy only": {"lambda_kl": 0.0}, "shuffled": {"data": "shuffled"}}}
    (tmp_path / "variants.yaml").write_text(yaml.safe_dump(variants))
    argv = ["study", "--recipes", str(tmp_path), "--model", str(tmp_path / "model"), "--output", str(tmp_path)]
    argv += ["--report", str(tmp_path / "study.md"), "--seeds", "2"]
    monkeypatch.setattr("sys.argv", argv)
    study.main()
    text = (tmp_path / "study.md").read_text()
    assert "All runs: 2 steps of 4 pairs" in text and "| shuffled |" in text
    (tmp_path / "study.md").unlink()
    call = study._call
    monkeypatch.setattr(study, "_call", lambda *_: pytest.fail("a run was repeated"))
    study.main()
    assert (tmp_path / "study.md").read_text() == text
    # an edited variant is the only one that is trained and measured again
    variants["clean"]["shuffled"]["lambda_kl"] = 0.3
    (tmp_path / "variants.yaml").write_text(yaml.safe_dump(variants))
    calls = []

    def record(arguments, *others):
        calls.append(arguments)
        call(arguments, *others)

    monkeypatch.setattr(study, "_call", record)
    study.main()
    assert [arguments[0] for arguments in calls].count("puma_trl.run") == 2
    assert all("0-1-seed" in " ".join(arguments) for arguments in calls)
