"""The lines that the benchmarks print."""

import importlib.util
from pathlib import Path

import pytest


SPEC = importlib.util.spec_from_file_location("common", Path(__file__).parents[1] / "benchmarks" / "common.py")
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
