"""The registry of benchmarks, and what the command line imports to know it."""

import subprocess
import sys
from typing import get_type_hints

import pytest

from puma_trl.evaluation.benchmarks import BENCHMARKS, PROMPTS, Benchmark


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_says_all_of_itself(name):
    benchmark = BENCHMARKS[name]
    assert benchmark.name == name
    assert all(hasattr(benchmark, attribute) for attribute in get_type_hints(Benchmark))
    assert {benchmark.id_column, "answer"} <= set(benchmark.columns)
    assert tuple(benchmark.prompt_columns) == PROMPTS


def test_a_benchmark_must_have_every_step():
    class Half(Benchmark):
        def build_prompt(self, item, variant):
            return ""

    with pytest.raises(TypeError, match="abstract.*extract"):
        Half()


def test_help_waits_for_no_library():
    code = (
        "import sys\nfrom puma_trl.evaluation.__main__ import make_parser\n"
        "make_parser().format_help()\n"
        "slow = {'numpy', 'torch', 'tqdm', 'rapidfuzz', 'PIL', 'openai', 'datasets', 'rich'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
