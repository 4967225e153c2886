"""`puma-trl train`: which accelerate configuration, which recipe, and how the launcher is called."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from puma_trl.errors import ConfigError
from puma_trl.start import train
from puma_trl.start.shipped import ENGINES, PACKAGE, RECIPES, find_engine, find_recipe
from puma_trl.start.train import choose_engine, main, take_engine


class Replaced(Exception):
    """The process became another one."""


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """What was launched, in a folder that is no checkout: command and environment, or accelerate's arguments."""
    calls = []

    def execute(file, command, environment):
        calls.append((command, environment))
        raise Replaced

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "execvpe", execute)
    monkeypatch.setattr(train, "launch_command", calls.append)
    return calls


@pytest.mark.parametrize(
    ("values", "gpus", "engine"),
    [
        ({"use_cpu": True}, 8, ("cpu", [])),
        ({}, 0, ("cpu", [])),  # which the run refuses by name
        ({"use_peft": True}, 1, ("single_gpu", ["--gpu_ids", "all"])),
        ({}, 1, ("single_gpu", ["--gpu_ids", "all"])),
        ({"use_peft": True}, 4, ("ddp", ["--num_processes", "4"])),
        ({}, 4, ("zero3_8xa100", ["--num_processes", "4"])),
        ({"trainable_parts": "language_model"}, 8, ("zero3_8xa100", ["--num_processes", "8"])),
        ({"trainable_parts": ["aligner", "vision_tower"]}, 8, ("zero2_8xa100", ["--num_processes", "8"])),
    ],
)
def test_the_configuration_that_fits(values, gpus, engine):
    assert choose_engine(values, gpus) == engine
    assert find_engine(engine[0]).is_file()


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("stage*.yaml")), ids=lambda path: str(path.relative_to(RECIPES)))
def test_headers_name_what_is_chosen(path):
    text = path.read_text()
    engine = re.search(r"accelerate_configs/(\w+)\.yaml", text)[1]
    processes = yaml.safe_load((ENGINES / f"{engine}.yaml").read_text())["num_processes"]
    assert choose_engine(yaml.safe_load(text), processes)[0] == engine


@pytest.mark.parametrize(
    ("argv", "taken"),
    [
        (["a.yaml"], (None, ["a.yaml"])),
        (["a.yaml", "--accelerate_config", "ddp", "--seed", "1"], ("ddp", ["a.yaml", "--seed", "1"])),
        (["--accelerate_config=my/x.yaml", "a.yaml"], ("my/x.yaml", ["a.yaml"])),
    ],
)
def test_the_configuration_that_is_named(argv, taken):
    assert take_engine(argv) == taken


def test_a_configuration_without_a_name():
    with pytest.raises(ConfigError, match="`--accelerate_config` needs the name or file"):
        take_engine(["a.yaml", "--accelerate_config"])


def test_configurations_by_name_and_by_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_engine("ddp") == find_engine("accelerate_configs/ddp.yaml") == ENGINES / "ddp.yaml"
    Path("ddp.yaml").touch()
    assert find_engine("ddp.yaml") == Path("ddp.yaml")
    with pytest.raises(ConfigError, match=r"No such accelerate configuration: fsdp. Did you mean `fsdp2`\?"):
        find_engine("fsdp")
    with pytest.raises(ConfigError, match="zzz. Name a file, or one of cpu, ddp, "):
        find_engine("zzz")


def test_recipes_of_the_package_are_found_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("recipes/mini/stage2.yaml", "mini/stage2.yaml"):
        assert find_recipe(name) == str(RECIPES / "mini" / "stage2.yaml")
        assert f"There is no {name} here; this one comes with puma_trl: {RECIPES}" in capsys.readouterr().out
    assert find_recipe("mine.yaml") == "mine.yaml"  # which the reader of recipes refuses
    Path("mini").mkdir()
    Path("mini/stage2.yaml").write_text("seed: 1\n")
    assert find_recipe("mini/stage2.yaml") == "mini/stage2.yaml"
    assert capsys.readouterr().out == ""


def test_what_is_shipped():
    """The links of the package lead to the folders of the repository, and a wheel has the files themselves."""
    for folder in ("recipes", "accelerate_configs"):
        assert (PACKAGE / folder).resolve() == PACKAGE.parent / folder
    assert (RECIPES / "schema.json").is_file() and (RECIPES / "slurm" / "train.sbatch").is_file()


def test_one_process_takes_the_place_of_the_command(launched, capsys):
    with pytest.raises(Replaced):
        main(["recipes/mini/stage2.yaml", "--max_steps=3"])
    ((command, environment),) = launched
    recipe = str(RECIPES / "mini" / "stage2.yaml")
    assert command[1:] == [str(PACKAGE / "run.py"), recipe, "--max_steps=3"]
    assert environment["ACCELERATE_USE_CPU"] == "True" and environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert "Launched with cpu.yaml, 1 process; `--accelerate_config` names another one." in capsys.readouterr().out


def test_the_gpu_that_is_seen_is_used(launched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(Replaced):
        main(["recipes/qwen2_vl/lora/stage1.yaml"])
    ((_, environment),) = launched
    assert environment["CUDA_VISIBLE_DEVICES"] == "3" and environment["ACCELERATE_USE_CPU"] == "False"


def test_several_gpus(launched, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert main(["recipes/stage1.yaml", "--seed", "1"]) is None
    (args,) = launched
    assert args.config_file == str(ENGINES / "zero3_8xa100.yaml") and args.num_processes == 4
    assert args.training_script == str(PACKAGE / "run.py")
    assert args.training_script_args == [str(RECIPES / "stage1.yaml"), "--seed", "1"]
    assert Path(args.deepspeed_config_file).samefile(ENGINES / "deepspeed" / "zero3.json")
    assert "Launched with zero3_8xa100.yaml, 4 processes" in capsys.readouterr().out


def test_a_configuration_that_is_named_is_taken_as_it_is(launched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    main(["recipes/stage1.yaml", "--accelerate_config", "fsdp2"])
    (args,) = launched
    assert args.config_file == str(ENGINES / "fsdp2.yaml") and args.num_processes is None


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (ChildFailedError("run.py", {0: ProcessFailure(0, 1, 2, "")}), 2),
        (ChildFailedError("run.py", {0: ProcessFailure(0, 1, -9, "")}), 137),
        (SignalException("stopped", 15), 143),
    ],
)
def test_exit_codes_of_several_processes(launched, monkeypatch, failure, code):
    def fail(args):
        raise failure

    monkeypatch.setattr(train, "launch_command", fail)
    assert main(["recipes/stage1.yaml", "--accelerate_config", "ddp"]) == code


@pytest.mark.parametrize("text", ["num_proceses: 2\n", "a: [\n", "- 1\n"])
def test_a_configuration_that_accelerate_refuses(launched, tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match="accelerate cannot use the configuration mine.yaml: "):
        main(["recipes/stage1.yaml", "--accelerate_config", "mine.yaml"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["mine.yaml"], "No such recipe: mine.yaml"),
        (["recipes/stage1.yaml", "--learning_rat", "1"], "Unknown key `learning_rat` .*`learning_rate`"),
    ],
)
def test_what_cannot_be_read_is_told_before_the_launch(launched, argv, message):
    with pytest.raises(ConfigError, match=message):
        main(argv)
    assert launched == []


@pytest.mark.distributed
def test_errors_of_two_processes_are_one_line_and_their_code(tmp_path):
    engine = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "use_cpu": True, "mixed_precision": "no"}
    (tmp_path / "two.yaml").write_text(json.dumps(engine | {"num_processes": 2, "distributed_type": "MULTI_GPU"}))
    recipe = {"model_name_or_path": "model", "dataset_name": "a.jsonl", "output_dir": "out", "use_cpu": True}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe | {"bf16": False, "report_to": "none", "alpha_kl": 3}))
    argv = [sys.executable, "-m", "puma_trl.cli", "train", "recipe.yaml", "--accelerate_config", "two.yaml"]
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == ["error: `alpha_kl` is 3, but it must be between 0 and 1."]
