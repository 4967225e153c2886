"""The table that closes a run, and the commands that go on from there."""

import pytest
from transformers import TrainerState

from puma_trl.config import PumaKLConfig
from puma_trl.record.ending import next_commands, print_end


LOGS = [
    {"step": 10, "loss": 0.43, "kl": 0.56, "ce": 0.3, "modality_gap": 0.079},
    {"step": 10, "eval_geometry_loss": 0.5, "eval_geometry_kl": 0.25, "eval_geometry_modality_gap": 0.1},
    {"step": 10, "train_runtime": 750.0},
]


def make_args(folder, **values):
    return PumaKLConfig(str(folder), bf16=False, use_cpu=True, report_to="none", **values)


def test_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("README.md", "recipe.yaml", "curves.png"):
        (tmp_path / name).touch()
    (tmp_path / "model.safetensors").write_bytes(b"0" * 4_100_000)
    for step in (2, 4, 6, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    state = TrainerState(global_step=10, max_steps=10, log_history=LOGS)
    long = "puma-trl train " + "recipes/" * 12 + "stage3.yaml"
    print_end(make_args(tmp_path), state, ["puma-trl merge a b", long], first_step=4)
    out = capsys.readouterr().out
    for words in (
        "Stage 2 of 3, alignment on pairs (PUMA): done",
        "10 in 12 min, resumed at 4",
        "loss 0.43, kl 0.56, ce 0.30, gap 7.9 pt",
        "Evaluation geometry │ loss 0.50, kl 0.25, gap 10.0 pt",
        "model.safetensors (4.1 MB)",
        "README.md (model card)",
        "recipe.yaml (runs this stage again)",
        "4 checkpoints, the last of step 4, 6, 10",
    ):
        assert words in out, words
    assert "dropped_rows" not in out
    assert out.splitlines()[-2:] == ["Next: puma-trl merge a b", f" then {long}"]


@pytest.fixture
def recipes(tmp_path):
    """Returns a function that writes the recipe of the next stage, and gives the path of the one before."""

    def write(number, start):
        (tmp_path / f"stage{number + 1}.yaml").write_text(f"model_name_or_path: {start}\n")
        return str(tmp_path / f"stage{number}.yaml")

    return write


SFT = {"use_kl": False}
TEXT = SFT | {"trainable_parts": ["language_model"]}


@pytest.mark.parametrize(
    ("number", "settings", "start", "is_peft", "is_multimodal", "commands"),
    [
        (1, TEXT, "out/stage1", False, True, ["train {next}"]),
        (1, TEXT, "elsewhere/stage1", False, True, ["train {next} --model_name_or_path out/stage1"]),
        (2, {}, "out/stage2-merged", True, True, ["merge out/stage2 out/stage2-merged", "train {next}"]),
        (
            *(1, TEXT, "out/assembled", False, False),
            ["assemble --language_model out/stage1 --vision_tower … --aligner … out/assembled", "train {next}"],
        ),
    ],
)
def test_next_stage(recipes, number, settings, start, is_peft, is_multimodal, commands):
    recipe = recipes(number, start)
    args = make_args(f"out/stage{number}", **settings)
    following = recipe.replace(f"stage{number}.", f"stage{number + 1}.")
    wanted = [f"puma-trl {command.format(next=following)}" for command in commands]
    assert next_commands(args, recipe, is_peft, is_multimodal) == wanted


@pytest.mark.parametrize("recipe", [None, "mine.yaml", "stage3.yaml"])
def test_after_the_last_stage(recipe):
    commands = next_commands(make_args("out/stage3", **SFT), recipe, False, True)
    assert (
        commands[0] == "puma-trl eval gap --model out/stage3 --data PAIRS.jsonl" and "push out/stage3" in commands[1]
    )
    pushed = make_args("out/stage3", **SFT, push_to_hub=True, hub_model_id="me/stage3")
    assert next_commands(pushed, recipe, False, True) == commands[:1]
