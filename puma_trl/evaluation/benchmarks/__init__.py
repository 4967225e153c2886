"""The benchmarks: data, prompts, extraction, scoring and aggregates of each."""

from .benchmark import PROMPTS, Benchmark
from .mathverse import MathVerse
from .mathvista import MathVista
from .wemath import WeMath


__all__ = ["BENCHMARKS", "PROMPTS", "Benchmark", "MathVerse"]


BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in (MathVerse(), MathVista(), WeMath())}
