"""`import puma_trl` alone: light, and enough for the Auto classes to know Math-PUMA's own model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .family_models import build_family


HEAVY = ("accelerate", "datasets", "matplotlib", "numpy", "peft", "PIL", "torch", "transformers", "trl")


def run(code, *argv, folder):
    """Runs Python code in a fresh interpreter, in another folder, and returns what it prints."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for piece in build_family("math_puma_qwen2"):
        piece.save_pretrained(folder)
    return folder


NATIVE = [f"MathPumaQwen2{name}" for name in ("ForConditionalGeneration", "Config", "Model")]
WHOLE = "AutoModelForImageTextToText.from_pretrained(folder)"
# Imports, what loads, and the classes of what comes out
SCENARIOS = [
    ("import puma_trl; from transformers import AutoModelForImageTextToText", WHOLE, NATIVE),
    ("from transformers import AutoModelForImageTextToText; import puma_trl", WHOLE, NATIVE),
    # which imports the Auto classes in the middle of what the native class derives from
    (
        "import puma_trl; from transformers import LlavaForConditionalGeneration, AutoModelForImageTextToText",
        WHOLE,
        NATIVE,
    ),
    ("import puma_trl; from transformers import pipeline", "pipeline('image-text-to-text', folder).model", NATIVE),
    ("import puma_trl; from transformers import AutoConfig", "AutoConfig.from_pretrained(folder)", NATIVE[1:2]),
    ("import puma_trl; from transformers import AutoConfig", "AutoConfig.for_model('math_puma_qwen2')", NATIVE[1:2]),
    (
        "import puma_trl; from transformers import AutoModel",
        "AutoModel.from_pretrained(folder)",
        NATIVE[2:] + NATIVE[1:2],
    ),
    (
        "import puma_trl; from transformers import AutoProcessor",
        "AutoProcessor.from_pretrained(folder)",
        ["LlavaProcessor"],
    ),
]
# Each in a process of its own, forked when torch alone has been imported, which takes half of the time
CHILDREN = """
import json, os, sys
import torch, torchvision
assert not {"transformers", "puma_trl"} & set(sys.modules)
folder, scenarios = sys.argv[1], json.loads(sys.argv[2])
for imports, load in scenarios:
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    found = []
    try:
        exec(imports)
        loaded = eval(load)
        found = [loaded, *(getattr(loaded, name) for name in ("config", "model") if hasattr(loaded, name))]
    finally:
        print(json.dumps([type(each).__name__ for each in found]), flush=True)
        os._exit(0)
"""


def test_the_auto_classes_know_the_native_class(folder, tmp_path):
    """Before and after transformers, and whatever is loaded first."""
    scenarios = json.dumps([scenario[:2] for scenario in SCENARIOS])
    lines = run(CHILDREN, folder, scenarios, folder=tmp_path).splitlines()
    assert [json.loads(line) for line in lines] == [scenario[2] for scenario in SCENARIOS]


@pytest.mark.parametrize("module", ["puma_trl", "puma_trl.pairs", "puma_trl.evaluation"])
def test_light_imports(tmp_path, module):
    """Importing the package, and the help of its commands, does not wait for torch and the like."""
    code = "import sys, json, runpy, contextlib, io\n"
    code += (
        "import puma_trl\n"
        if module == "puma_trl"
        else (
            f"sys.argv = ['{module}', '--help']\nwith contextlib.suppress(SystemExit), "
            f"contextlib.redirect_stdout(io.StringIO()):\n    runpy.run_module('{module}', run_name='__main__')\n"
        )
    )
    code += "print(json.dumps(sorted(sys.modules)))"
    found = {name.split(".")[0] for name in json.loads(run(code, folder=tmp_path))}
    assert "puma_trl" in found and not found & set(HEAVY)
