"""Pushing with the real client of huggingface_hub to a local server that speaks the endpoints it uses."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import transformers
import yaml
from datasets import Dataset
from datasets import Image as DatasetImage
from huggingface_hub import ModelCard
from PIL import Image

from puma_trl import run
from puma_trl.errors import HubError
from puma_trl.pairs.__main__ import main as pairs_main
from puma_trl.recipe import parse_recipe
from puma_trl.record import hub, hub_calls, provenance
from puma_trl.record.command import main
from puma_trl.record.hub import push
from puma_trl.record.provenance import saved_recipe
from puma_trl.train.trainer import PumaKLTrainer

from ..hub_server import COMMIT, PREUPLOAD, TOKEN


@pytest.fixture
def folder(tmp_path, tiny_model, processor):
    tiny_model().save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    card = "---\nlicense: other\nlicense_name: tongyi\nbase_model: Qwen/Qwen2-VL-7B\n---\n"
    (tmp_path / "base" / "README.md").write_text(card)
    rows = []
    for index in range(4):
        Image.new("RGB", (56, 56), (60 * index, 0, 0)).save(tmp_path / f"{index}.png")
        answer = f"It is {index}."
        rows.append({"instruction": f"Is {index} it?", "output": answer, "instruction_2": "What?", "output_2": answer})
        rows[-1]["image_url_2"] = f"{index}.png"
    rows.append(rows[0] | {"output": "", "output_2": ""})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def train(folder):
    """Returns a function that runs the script with `push_to_hub`."""

    def train(**flags):
        recipe = {
            "model_name_or_path": str(folder / "base"),
            "dataset_name": str(folder / "pairs.jsonl"),
            "output_dir": str(folder / "stage2"),
            "bad_rows": "drop",
            "bf16": False,
            "dataset_num_proc": 1,
            "dtype": "float32",
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "max_steps": 2,
            "push_to_hub": True,
            "report_to": "none",
            "save_strategy": "no",
            "trainable_parts": "aligner",
            "use_cpu": True,
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        argv = [str(piece) for key, value in flags.items() for piece in (f"--{key}", value)]
        run.main([str(folder / "recipe.yaml"), *argv])
        return folder / "stage2"

    return train


def read_files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_pushes_model_processor_card_and_curves(train, server, capfd):
    out = train(save_strategy="steps", save_steps=1, hub_strategy="end", hub_private_repo=True)
    repository = server.repositories["me/stage2"]
    assert repository.pop("private")
    local = read_files(out)
    assert any(name.startswith("checkpoint-2/") for name in local) and "dropped_rows.jsonl" in local
    expected = {name for name in local if not name.startswith(("checkpoint-", "_")) and name != "dropped_rows.jsonl"}
    assert repository.keys() == expected
    for name in expected - {"README.md"}:
        assert repository[name] == local[name], name
    for name in ("model.safetensors", "processor_config.json", "chat_template.jinja", "curves.png", "recipe.yaml"):
        assert name in repository, name
    # the token is in no file and no output
    for name, content in local.items():
        assert TOKEN.encode() not in content, name
    captured = capfd.readouterr()
    assert TOKEN not in captured.out + captured.err
    assert "Pushed to" in captured.out


def test_card(train, server, folder):
    metrics = {"benchmark": "mathverse", "accuracy": 0.415, "correct": 83, "total": 200, "answered": 200, "items": 200}
    metrics |= {"extraction": "final", "judge": "rule", "partial": False, "settings": {}}
    metrics["problem_version"] = {"Text Lite": {"accuracy": 0.5, "correct": 20, "total": 40}}
    out = train()
    (out / "metrics.json").write_text(json.dumps(metrics))
    main(["push", str(out), "--repo_id", "me/renamed"])
    content = server.repositories["me/renamed"]["README.md"].decode()
    card = ModelCard(content)
    assert (card.data.license, card.data.license_name) == ("other", "tongyi")  # of the base model
    assert card.data.base_model == "Qwen/Qwen2-VL-7B"  # whose card names it
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-text-to-text")
    assert {"trl", "math-puma", "puma"} <= set(card.data.tags)
    for text in (
        "# renamed",
        "| Stage | 2: alignment on pairs (PUMA) |",
        "| Trained | aligner |",
        "| Data: train | 4 rows of `pairs.jsonl`, 1 of 5 dropped |",
        "| lambda_kl | 0.1 |",
        "| global_batch_size | 8 |",
        f"| transformers | {transformers.__version__} |",
        "](curves.png)",
        "| MathVerse | accuracy | 41.50% | 34.9% to 48.4% | 83/200 |",
        "| MathVerse | Text Lite | 50.00% | 35.2% to 64.8% | 20/40 |",
        'pipeline("image-text-to-text", model="me/renamed"',
        "zhuang2024mathpuma",
        "vonwerra2020trl",
    ):
        assert text in content, text
    assert str(folder) not in content and "None" not in content


@pytest.mark.parametrize("adapters", [False, True])
def test_quick_start_of_the_card_runs(train, server, folder, capsys, adapters, monkeypatch):
    out = train(max_steps=1, **({"use_peft": True, "lora_r": 2} if adapters else {}))
    card = server.repositories["me/stage2"]["README.md"].decode()
    assert ("These are adapters" in card) == adapters
    code = re.search(r"## Quick start\n\n```python\n(.*?)```", card, re.DOTALL)[1]
    code = code.replace("me/stage2", str(out)).replace("problem.png", str(folder / "0.png"))
    code = code.replace("max_new_tokens=512", "max_new_tokens=4").replace(', device_map="auto"', "")
    capsys.readouterr()
    exec(code, {})
    assert "\n" in capsys.readouterr().out


@pytest.mark.parametrize("failure", ["down", PREUPLOAD, "/lfs/", pytest.param(COMMIT, marks=pytest.mark.slow)])
def test_a_push_that_fails_at_the_end(train, server, folder, capsys, monkeypatch, failure):
    whole_train = PumaKLTrainer.train

    def train_and_fail(self, *args, **kwargs):
        result = whole_train(self, *args, **kwargs)
        if failure == "down":
            monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
        else:
            server.failures[failure] = 500
        return result

    monkeypatch.setattr(PumaKLTrainer, "train", train_and_fail)
    with pytest.raises(HubError) as error:
        train(max_steps=1)
    out = folder / "stage2"
    for name in ("model.safetensors", "processor_config.json", "README.md", "curves.png", "recipe.yaml"):
        assert (out / name).is_file(), name
    command = f"puma-trl push {out}"
    assert str(error.value).endswith(f"The model is saved in {out}. This pushes it: {command}")
    assert TOKEN not in str(error.value) and "\n" not in str(error.value)
    server.failures.clear()
    if failure == PREUPLOAD:
        main(shlex.split(command)[1:])
        assert server.repositories["me/stage2"]["model.safetensors"] == (out / "model.safetensors").read_bytes()
    if failure == COMMIT:  # that very command, in a process of its own
        environment = os.environ | {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        argv = [sys.executable, "-m", "puma_trl.cli", *shlex.split(command)[1:]]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert server.repositories["me/stage2"]["model.safetensors"] == (out / "model.safetensors").read_bytes()
        assert TOKEN not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("failures", "token", "message"),
    [
        ({}, "hf_wrong", "does not accept the token \\(401\\)"),
        ({}, "", "nobody is logged in"),
        ({"/api/repos/create": 403}, TOKEN, "may not write .*\\(403\\)"),
        ({"/api/whoami-v2": 500}, TOKEN, "cannot be used"),
    ],
    ids=["401", "no-token", "403", "500"],
)
def test_told_before_training_starts(train, server, folder, monkeypatch, failures, token, message):
    monkeypatch.setenv("HF_TOKEN", token)
    server.failures.update(failures)
    with pytest.raises(HubError, match=message) as error:
        train()
    assert f"puma-trl push {folder / 'stage2'}" in str(error.value)
    assert not (folder / "stage2").exists()


def test_repository_of_the_recipe(server, folder):
    out = folder / "model"
    out.mkdir()
    (out / "config.json").write_text("{}")
    (out / "recipe.yaml").write_text("hub_model_id: team/puma\nhub_private_repo: true\n")
    (out / "checkpoint-1").mkdir()
    (out / "checkpoint-1" / "model.safetensors").write_bytes(b"1")
    assert push(out).endswith("/team/puma")
    assert server.repositories["team/puma"].keys() == {"private", "config.json", "recipe.yaml"}
    assert server.repositories["team/puma"]["private"]


@pytest.mark.parametrize("is_private", [True, False])
def test_a_repository_of_another_visibility_is_refused(train, server, folder, is_private):
    server.repositories["me/stage2"] = {"private": is_private}
    wanted = "true" if not is_private else "false"
    with pytest.raises(HubError, match=f"me/stage2 is {'private' if is_private else 'public'}, but .*repo: {wanted}`"):
        train(hub_private_repo=wanted)
    assert not (folder / "stage2").exists()
    train(hub_private_repo=str(is_private).lower(), max_steps=1)
    assert "model.safetensors" in server.repositories["me/stage2"]


def test_a_repository_that_is_public_at_the_end_gets_nothing(train, server, folder, monkeypatch):
    """The run pushes to the repository of its start, with the visibility of its start."""

    def train_and_publish(self, *args, **kwargs):
        result = whole_train(self, *args, **kwargs)
        server.repositories["me/secret"]["private"] = False
        return result

    whole_train = PumaKLTrainer.train
    monkeypatch.setattr(PumaKLTrainer, "train", train_and_publish)
    with pytest.raises(HubError, match="me/secret is public, but `hub_private_repo: true`"):
        train(hub_model_id="secret", hub_private_repo=True, max_steps=1)
    assert server.repositories["me/secret"].keys() == {"private"} and "me/stage2" not in server.repositories
    assert yaml.safe_load((folder / "stage2" / "recipe.yaml").read_text())["hub_model_id"] == "me/secret"


@pytest.mark.parametrize("silent", ["/api/whoami-v2", "/api/repos/create"])
def test_a_hub_that_never_answers_before_training(train, server, folder, monkeypatch, silent):
    monkeypatch.setattr(hub, "LOGIN_SECONDS", 1.0)
    server.failures[silent] = "silence"
    with pytest.raises(HubError, match="cannot be used at http.*: no answer within 1 seconds") as error:
        train()
    assert f"puma-trl push {folder / 'stage2'}" in str(error.value)


@pytest.mark.parametrize("silent", ["/api/repos/create", PREUPLOAD, COMMIT])
def test_a_hub_that_never_answers_a_push(server, tmp_path, monkeypatch, silent):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(hub_calls, "PUSH_SECONDS", 1.0)
    server.failures[silent] = "silence"
    with pytest.raises(HubError, match=f"{tmp_path} could not be pushed to the Hub at .*: no answer within 1 seconds"):
        push(tmp_path, "me/model")


def test_a_silent_connection_is_given_up_before_the_push_is(server, tmp_path, monkeypatch):
    """The time for a push of many gigabytes is hours, but not of silence."""
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(hub_calls, "SILENCE", 0.5)
    server.failures["/api/repos/create"] = "silence"
    with pytest.raises(HubError, match="could not be pushed .*: .*timed out"):
        push(tmp_path, "me/model")


def test_a_card_on_the_hub_that_never_comes(server, monkeypatch):
    monkeypatch.setattr(provenance, "CARD_SECONDS", 0.5)
    server.repositories["me/base"] = {"private": False}
    server.failures["README.md"] = "silence"
    assert provenance.describe_base("me/base") == {"base_model": "me/base"}


@pytest.mark.parametrize("pattern", ["/api/whoami-v2", "/api/repos/create"])
def test_a_hub_that_sends_the_token_back(train, server, pattern):
    server.failures[pattern] = 418
    with pytest.raises(HubError, match="not now, Bearer <hidden>") as error:
        train()
    assert TOKEN not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("recipe.yaml", "a: [", "recipe.yaml is not valid YAML"),
        ("recipe.yaml", "\udcff", "recipe.yaml is not valid YAML"),
        ("recipe.yaml", "- a", "recipe.yaml is no mapping"),
        ("provenance.json", '{"a', "provenance.json is not valid JSON"),
        ("provenance.json", "[1]", "provenance.json is no JSON object"),
    ],
)
def test_damaged_files_are_named(server, tmp_path, name, content, message):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text(content, errors="surrogateescape")
    with pytest.raises(HubError, match=f"{tmp_path}/{message}"):
        push(tmp_path, "me/model")


def test_branch_of_the_recipe(train, server):
    """`hub_revision` names a branch, which need not be there yet: neither before the training nor at the end."""
    train(hub_revision="trial")
    made = [request for request in server.requests if "/branch/" in request]
    assert made == ["POST /api/models/me/stage2/branch/trial"] * 2
    commits = [request for request in server.requests if "/commit/" in request]
    assert commits and all(request.endswith("/commit/trial") for request in commits)


def test_folder_without_a_model(server, tmp_path):
    with pytest.raises(HubError, match="holds no model"):
        main(["push", str(tmp_path)])


def test_saved_recipe_and_provenance(train, server, folder):
    out = train(learning_rate="2e-5", save_strategy="steps", save_steps=1, max_steps=1, hub_strategy="end")
    for place in (out, out / "checkpoint-1"):
        recipe = yaml.safe_load((place / "recipe.yaml").read_text())
        assert (recipe["learning_rate"], recipe["save_strategy"]) == (2e-5, "steps")
        provenance = json.loads((place / "provenance.json").read_text())
        assert provenance["training"]["learning_rate"] == 2e-5
        assert provenance["data"]["train"]["rows_kept"] == 4 and len(provenance["data"]["train"]["fingerprint"]) == 64
        assert provenance["packages"]["transformers"] == transformers.__version__
        assert re.fullmatch("[0-9a-f]{40}", provenance["git"]["commit"])
    # the saved recipe alone gives the same model
    (out / "recipe.yaml").rename(folder / "again.yaml")
    run.main([str(folder / "again.yaml"), "--output_dir", str(folder / "again"), "--push_to_hub", "false"])
    assert (folder / "again" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    again = json.loads((folder / "again" / "provenance.json").read_text())
    assert again["data"]["train"]["fingerprint"] == provenance["data"]["train"]["fingerprint"]


def test_saved_recipe_is_what_was_parsed(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "")  # which the recipe sets
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "learning_rate: 1e-5\nuse_kl: true\nenv:\n  WANDB_MODE: offline\n"
        "model_name_or_path: me/base\ndataset_name: pairs.jsonl\nuse_cpu: true\nbf16: false\n"
    )
    argv = [str(recipe), "--save_strategy", "no", "--alpha_kl=0.25", "--no-use-kl", "--hub-model-id", "me/x"]
    argv += ["--trainable_parts", "aligner", "language_model", "--seed", "1", "--resume-from-checkpoint", "true"]
    assert saved_recipe(parse_recipe(argv)[3]) == {
        "learning_rate": 1e-5,
        "env": {"WANDB_MODE": "offline"},
        "model_name_or_path": "me/base",
        "dataset_name": ["pairs.jsonl"],
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "alpha_kl": 0.25,
        "use_kl": False,
        "hub_model_id": "me/x",
        "trainable_parts": ["aligner", "language_model"],
        "seed": 1,
    }


def test_template_is_part_of_the_package():
    assert hub.TEMPLATE.is_file() and hub.TEMPLATE.suffix == ".md"


def test_built_pairs_are_pushed_as_a_data_set(server, tmp_path, monkeypatch, capsys):
    (tmp_path / "in.jsonl").write_text(json.dumps({"question": "What is 1 + 2?", "answer": "3"}) + "\n")
    argv = ["pairs", "build", "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out")]
    argv += ["--format", "parquet", "--push_to_hub", "me/pairs"]
    server.repositories["me/pairs"] = {"private": None, "data/train-00001.parquet": b"of a larger build before"}
    monkeypatch.setattr("sys.argv", argv)
    pairs_main()
    files = server.repositories["me/pairs"]
    assert files.keys() == {"private", "data/train-00000.parquet"}  # no paths of this machine
    (tmp_path / "pushed.parquet").write_bytes(files["data/train-00000.parquet"])
    row = Dataset.from_parquet(str(tmp_path / "pushed.parquet"))[0]
    assert row["instruction"] == "What is 1 + 2?" and row["image_url_2"].width >= 512
    assert "Pushed to me/pairs." in capsys.readouterr().out

    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    argv[argv.index(str(tmp_path / "out"))] = str(tmp_path / "other")
    with pytest.raises(HubError, match="Invalid user token"):
        pairs_main()
    assert not (tmp_path / "other").exists()  # told before anything is built


@pytest.mark.slow
def test_pairs_built_from_the_hub_train_from_the_hub(server, folder, tmp_path):
    """Each command in a process of its own, as a user runs it: problems on the Hub → pairs on the Hub → stage 2."""
    problems = {
        "image": [{"bytes": (tmp_path / f"{index}.png").read_bytes(), "path": None} for index in range(4)],
        "question": [f"The square has a side of {index} cm. What is its perimeter?" for index in range(4)],
        "answer": [f"{4 * index} cm" for index in range(4)],
    }
    Dataset.from_dict(problems).cast_column("image", DatasetImage()).to_parquet(tmp_path / "problems.parquet")
    content = (tmp_path / "problems.parquet").read_bytes()
    server.repositories["me/problems"] = {"private": None, "data/train-00000.parquet": content}
    server.repositories["me/base"] = {"private": None} | read_files(folder / "base")
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }

    def command(*argv):
        argv = [sys.executable, "-m", *map(str, argv)]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    built = tmp_path / "built"
    options = ("--image_column", "image", "--format", "parquet", "--push_to_hub", "me/pairs")
    out = command("puma_trl.pairs", "build", "--input", "me/problems", "--output", built, *options)
    assert "4 pairs from 4 rows, 4 with a diagram" in out and "Pushed to me/pairs." in out

    flags = ("--dataset_name", "me/pairs", "--bf16", False, "--use_cpu", True, "--dtype", "float32", "--max_steps", 1)
    flags += ("--trainable_parts", "aligner", "--report_to", "none", "--output_dir", tmp_path / "trained")
    command("puma_trl.run", "--model_name_or_path", "me/base", *flags)
    provenance = json.loads((tmp_path / "trained" / "provenance.json").read_text())
    assert provenance["data"]["train"]["sources"] == ["me/pairs"] and provenance["data"]["train"]["rows_kept"] == 4
    log = json.loads((tmp_path / "trained" / "trainer_state.json").read_text())["log_history"]
    assert log[0]["kl"] > 0
