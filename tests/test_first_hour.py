"""The wheel in a new environment, outside the checkout: what is in it, and the commands of the first hour."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from puma_trl.pairs.generate.pairs import generate_pairs


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "first_hour.md"]
MODEL = "HuggingFaceTB/SmolVLM-256M-Instruct"


def read_commands():
    """Returns the commands, which are the same wherever a page has them."""
    blocks = [block for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)]
    found = {block for block in blocks if "puma-trl init" in block}
    assert len(found) == 1
    return found.pop()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, since building leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("puma_trl", "recipes", "accelerate_configs"):
        shutil.copytree(ROOT / name, folder / "source" / name, symlinks=True)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, folder / "source"], check=True, timeout=300)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A new environment with the wheel; what it depends on is that of the running one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "running.pth").write_text(sysconfig.get_path("purelib"))
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", python]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], check=True, timeout=120)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return variables | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "VIRTUAL_ENV": str(folder)}


@pytest.mark.slow
def test_recipes_and_configurations_are_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("recipes", "accelerate_configs"):
        files = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert {f"puma_trl/{path.as_posix()}" for path in files} <= names
    assert not [name for name in names if not name.startswith(("puma_trl/", "puma_trl-"))]
    linked = zipfile.ZipFile(wheel).read("puma_trl/recipes/qwen2_vl/full/stage2.yaml")
    assert linked == (ROOT / "recipes" / "stage2.yaml").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_first_hour(environment, server, tiny_model, processor, tmp_path):
    """The very commands of the page, on the mini model in place of the real one."""
    problems = generate_pairs(20, seed=0, with_images=False)
    texts = [{"question": row["instruction"], "answer": row["output"]} for row in problems]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    for each in (tiny_model(), processor):
        each.save_pretrained(tmp_path / "model")
    environment = environment | {name: os.environ[name] for name in ("HF_ENDPOINT", "HF_TOKEN")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}

    def call(command):
        argv = ["bash", "-e", "-o", "pipefail", "-c", command]
        done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    code = "import puma_trl; from puma_trl.start.shipped import find_recipe; print(find_recipe('recipes/stage2.yaml'))"
    found = call(f'python -c "{code}"').splitlines()[-1]
    assert found.startswith(environment["VIRTUAL_ENV"]) and Path(found).read_bytes()

    commands = read_commands().strip().splitlines()
    assert len(commands) == 6
    outputs = [call(command.replace(MODEL, "model")) for command in commands]
    assert "20 pairs from 20 rows" in outputs[0] and "18 rows in data/split/train.jsonl, 2 in" in outputs[1]
    assert "first.yaml is written: stage 2, full fine-tuning, CPU" in outputs[2]
    assert outputs[3].count("Launched with cpu.yaml, 1 process") == 2
    assert (tmp_path / "outputs" / "first" / "model.safetensors").is_file()
    assert "first" in outputs[4] and "Pushed to" in outputs[5]
    assert "model.safetensors" in server.repositories["me/first"]
