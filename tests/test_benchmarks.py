"""The lines that the benchmarks print, and runs of some at their smallest size."""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SPEC = importlib.util.spec_from_file_location("common", BENCHMARKS / "common.py")
common = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(common)


@pytest.mark.parametrize(
    ("value", "sign", "goal", "holds", "line"),
    [
        (1.1, "≤", 1.1, True, "- time: 1.1, goal ≤ 1.1: reached"),
        (1.101, "≤", 1.1, True, "- time: 1.1, goal ≤ 1.1: missed"),
        (4.0, "≥", 4.0, True, "- time: 4, goal ≥ 4: reached"),
        (3.9, "≥", 4.0, True, "- time: 3.9, goal ≥ 4: missed"),
        (5.0, "≥", 4.0, False, "- time: 5, goal ≥ 4: missed"),
    ],
)
def test_verdict(value, sign, goal, holds, line):
    assert common.verdict("time", value, sign, goal, holds=holds) == line


def test_verdict_with_units():
    assert common.verdict("a", 0.0391, "≤", 0.05, "{:.1%}", "{:.0%}") == "- a: 3.9%, goal ≤ 5%: reached"


def test_table():
    assert common.table_head("a", "b") == "| a | b |\n|---|---|"
    assert common.table_row(["x", ""]) == "| x |  |"


def test_a_run_that_fails_is_named():
    with pytest.raises(RuntimeError, match="(?s)the loss failed:.*division by zero"):
        common.run([common.sys.executable, "-c", "print(1 / 0)"], "the loss")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--rows 0", "--rows is 0, but must be above 0 and finite"),
        ("--rows 1 --sizes 5 -1", "--sizes is -1, but must be above 0 and finite"),
        ("--seconds nan", "--seconds is nan, but must be above 0 and finite"),
        ("--seconds inf", "--seconds is inf, but must be above 0 and finite"),
        ("--steps 2", "--steps is 2, but must be at least 3 and finite"),
        ("--spread 0 --quick --steps 3", None),
    ],
)
def test_numbers_that_measure_nothing_are_refused(options, line, capsys):
    parser = argparse.ArgumentParser()
    for name, kind in (("rows", int), ("seconds", float), ("steps", int), ("spread", float)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--quick", action="store_true")
    if line is None:
        common.read_arguments(parser, options.split(), steps=3, spread=0)
        return
    with pytest.raises(SystemExit):
        common.read_arguments(parser, options.split(), steps=3, spread=0)
    assert capsys.readouterr().err.endswith(f"error: {line}\n")


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.name)
def test_every_number_of_a_benchmark_is_checked(path):
    text = path.read_text()
    assert not re.search("type=(?:int|float)", text) or re.search(r"= read_arguments\(parser", text)


def run_script(name, *arguments, timeout=240):
    """Runs a benchmark as a user does and returns what it prints."""
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


@pytest.mark.slow
def test_the_numbers_of_a_gpu_at_a_tiny_size(tmp_path):
    """Every variant that is installed here gives all its numbers; what it gives on a GPU is only larger."""
    path = tmp_path / "new folder" / "gpu.json"
    run_script("gpu.py", "--tiny", "--device", "cpu", "--json", path)
    result = json.loads(path.read_text())
    assert result["machine"]["torch"] == torch.__version__.split("+")[0]
    assert [(row["loss"], row["dtype"]) for row in result["loss"]] == [
        (name, dtype) for dtype in ("bfloat16", "float32") for name in ("fused", "puma_loss", "TRL")
    ]
    for row in result["loss"]:
        assert row["seconds"] > 0 and row["extra_mb"] >= 0
        assert row["gradient_error"] < (1e-5 if row["dtype"] == "float32" else 1e-2)
    assert [row["step"] for row in result["step"]] == [
        "padding-free, varlen",
        "padded, sdpa",
        "TRL's SFT, padded, sdpa",
    ]
    for row in result["step"]:
        assert "failed" not in row
        assert min(row["perf/tokens_per_second"], row["peak_gb"] + 1, row["plan_gb"], *row["largest"].values()) > 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tiny", "--models", "Qwen2-VL-7B"], "--models has no effect with --tiny"),
        (["--parts", "loss", "--models", "Qwen2-VL-7B"], "--models has no effect without the part `step`"),
        (["--models", "Qwen2-VL-2B", "Qwen9"], "no configuration of Qwen9; there are Qwen2-VL-2B, "),
    ],
)
def test_models_that_a_gpu_will_not_measure_are_told_at_once(flags, words):
    with pytest.raises(AssertionError, match=re.escape(words)):
        run_script("gpu.py", "--device", "cpu", *flags)


def test_the_loss_of_a_gpu_needs_pytorch_alone():
    """On a rented machine nothing else may be installed."""
    code = (
        "import importlib.util, sys, torch\n"
        "for name in ('wrapt', 'transformers', 'trl', 'accelerate', 'datasets', 'rich', 'numpy.typing'):\n"
        "    sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "find = importlib.util.find_spec\n"
        "from gpu_parts import loss\n"
        "loss.find_spec = lambda name: None if name in sys.modules and sys.modules[name] is None else find(name)\n"
        "rows = loss.run(torch.device('cpu'), True, lambda: True)\n"
        "assert [row['loss'] for row in rows] == 2 * ['fused', 'puma_loss'], rows\n"
        "assert not any('failed' in row for row in rows), rows\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr[-3000:]


@pytest.mark.slow
def test_gradients_under_deepspeed_are_added_in_fp32():
    lines = run_script("accumulation.py", "--quick").splitlines()
    errors = [[float(cell) for cell in line.split("|")[2:4]] for line in lines if line.startswith("| ZeRO")]
    assert len(errors) == 2
    for in_bf16, in_fp32 in errors:
        assert in_fp32 < 1e-6 < 1e-3 < in_bf16


@pytest.mark.slow
def test_recipes_at_the_widths_of_a_full_size_model():
    lines = run_script("full_size.py", "--layers", 2, timeout=400).splitlines()
    ratios = {line.split("`")[1]: float(line.split("|")[-2]) for line in lines if line.startswith("| `")}
    assert ratios.keys() == {"recipes/stage2.yaml", "recipes/qwen2_vl/lora/stage2.yaml"}
    assert all(0.75 < ratio < 1.3 for ratio in ratios.values()), ratios


@pytest.mark.slow
def test_what_a_sampled_step_costs():
    lines = run_script("on_policy.py", "--quick").splitlines()
    head, given, sampled = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:2] == "| ")
    for row in (given, sampled):
        *parts, step = map(float, row[1:5])
        assert min(parts[1:]) > 0 and sum(parts) < step
    assert given[1] == "0.00" and float(sampled[1]) > 0 and given[5] == given[7] == "1.00×"
    assert given[-1] == sampled[-1] != "0" and given[-2] == "–" and int(sampled[-2]) <= int(sampled[-3])
    assert "extra peak of a sampled step / N × V floats" in lines[-1]
