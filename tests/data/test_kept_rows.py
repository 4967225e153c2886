"""Checked rows are kept, by one process for all, and checked again when what they depend on has changed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from puma_trl.data import load as data
from puma_trl.data.checks import RowChecker
from puma_trl.errors import DataError
from puma_trl.mini import build_processor

from .samples import dropped, pair, write


class TestCache:
    @pytest.fixture
    def checks(self, monkeypatch):
        """The number of chunks that were really checked."""
        calls = []
        check = RowChecker.__call__
        monkeypatch.setattr(RowChecker, "__call__", lambda self, chunk: calls.append(1) or check(self, chunk))
        return calls

    def test_unchanged_data_is_not_checked_again(self, folder, load, checks):
        path = write(folder / "pairs.jsonl", [pair(0), pair(1)])
        first = load(path)[0]["train"].to_list()
        # a policy is applied to what is cached, and another processor object with the same content is the same
        assert (
            load(path, bad_rows="drop", processor=build_processor("qwen2_vl"), seed=5)[0]["train"].to_list() == first
        )
        assert len(checks) == 1

    @pytest.mark.slow
    def test_another_process_finds_the_cache(self, folder, load, checks):
        path = write(folder / "pairs.jsonl", [pair(0), pair(1)])
        program = f"""
import datasets
from puma_trl.config import PumaKLConfig, PumaScriptArguments
from puma_trl.data.load import load_data
from puma_trl.models.families.qwen import QWEN_VL
from puma_trl.mini import build_processor
datasets.config.HF_DATASETS_CACHE = {str(folder / "cache")!r}
args = PumaKLConfig(output_dir="out", use_cpu=True, bf16=False, max_length=None)
load_data(PumaScriptArguments(dataset_name=[{path!r}]), args, build_processor("qwen2_vl"), QWEN_VL)
"""
        environment = os.environ | {"PYTHONPATH": str(Path(data.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=folder)
        load(path)
        assert checks == []

    @pytest.mark.parametrize(
        "change",
        ["rows", "max_length", "use_kl", "answer_mismatch", "processor", "image_root"]
        + ["columns", "special_tokens", "decode_images", "code", "family code"],
    )
    def test_whatever_matters_is_checked_again(self, change, folder, load, checks, monkeypatch):
        path = write(folder / "pairs.jsonl", [pair(0, other="What is 1?")])
        load(path)
        fields = {
            "max_length": {"max_length": 500},
            "use_kl": {"use_kl": False},
            "answer_mismatch": {"answer_mismatch": "student"},
            "columns": {"columns": {"instruction": "other"}},
            "special_tokens": {"special_tokens": "escape"},
            "decode_images": {"decode_images": True},
            "image_root": {"image_root": str(folder / "..") + f"/{folder.name}"},
        }.get(change, {})
        if change == "rows":
            write(folder / "pairs.jsonl", [pair(0), pair(1)])
        if change == "processor":
            fields["processor"] = build_processor("qwen2_vl")
            fields["processor"].chat_template = "Look! " + fields["processor"].chat_template
        if change.endswith("code"):
            module = data.families if change.startswith("family") else data
            copy = folder / change.replace(" ", "_")
            shutil.copytree(Path(module.__file__).parent, copy)
            with open(copy / ("qwen.py" if change.startswith("family") else "turns.py"), "a") as file:
                file.write("# changed")
            monkeypatch.setattr(module, "__file__", str(copy / "load.py"))
        load(path, **fields)
        assert len(checks) == 2

    def test_images_that_change_or_go_missing_are_noticed(self, folder, load, checks):
        path = write(folder / "pairs.jsonl", [pair(0), pair(1)])
        (length, _) = load(path)[0]["train"]["length"]
        Image.new("RGB", (84, 56)).save(folder / "0.png")
        assert load(path)[0]["train"]["length"][0] == length + 4
        (folder / "1.png").unlink()
        with pytest.raises(DataError, match="missing image: .*1.png"):
            load(path)
        Image.new("RGB", (56, 56)).save(folder / "1.png")
        load(path)
        assert len(checks) == 4
        load(path)
        assert len(checks) == 4


LAUNCHED = """
import json, sys
import datasets
from puma_trl.config import PumaKLConfig, PumaScriptArguments
from puma_trl.data.load import load_data
from puma_trl.data.checks import RowChecker
from puma_trl.models.families.qwen import QWEN_VL
from puma_trl.mini import build_processor
from puma_trl.errors import DataError

folder, bad_rows = sys.argv[1:]
datasets.config.HF_DATASETS_CACHE = f"{folder}/cache"
checks = []
check = RowChecker.__call__
RowChecker.__call__ = lambda self, chunk: checks.append(1) or check(self, chunk)
args = PumaKLConfig(output_dir=f"{folder}/out", use_cpu=True, bf16=False, max_length=None, bad_rows=bad_rows)
script_args = PumaScriptArguments(dataset_name=[f"{folder}/pairs.jsonl"], eval_split_size=2)
try:
    dataset, reports = load_data(script_args, args, build_processor("qwen2_vl"), QWEN_VL)
    result = {split: rows["row_id"][:] for split, rows in dataset.items()}
except DataError as error:
    result = str(error)
facts = {"world": args.world_size, "checks": len(checks), "result": result}
open(f"{folder}/{bad_rows}{args.process_index}.json", "w").write(json.dumps(facts))
"""


@pytest.mark.distributed
@pytest.mark.parametrize("bad_rows", ["drop", "error"])
def test_the_first_process_works_and_the_others_read(bad_rows, folder):
    write(folder / "pairs.jsonl", [*(pair(index) for index in range(8)), "broken"])
    (folder / "launched.py").write_text(LAUNCHED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(data.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command += [str(folder / "launched.py"), str(folder), bad_rows]
    subprocess.run(command, check=True, env=environment, timeout=300)
    first, second = (json.loads((folder / f"{bad_rows}{rank}.json").read_text()) for rank in range(2))
    assert (first["world"], second["world"]) == (2, 2)
    assert (first["checks"], second["checks"]) == (1, 0)
    assert first["result"] == second["result"]
    if bad_rows == "drop":
        assert len(first["result"]["train"]) == 6 and len(dropped(folder)) == 1
    else:
        assert "pairs.jsonl:9: broken JSON: line 9" in first["result"]
