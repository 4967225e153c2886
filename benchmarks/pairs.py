"""
Pairs per second and peak memory of `puma-trl pairs build` and `generate`, each in one process.

```bash
python benchmarks/pairs.py                          # 1,000 pairs for speed, 10,000 and 100,000 for memory: an hour
python benchmarks/pairs.py --sizes 1000 2000 4000   # a quick look
```

Every row runs the command itself, on one core. The problems of `build` have 30 words of a vocabulary of 5,000, as
often as in natural language (Zipf's law), and a formula; every second one has a diagram of 300 x 200 pixels. The
canvas is 512 pixels wide. The pictures of `generate` have 512 x 384 pixels. Memory is the peak of the resident set,
imports included.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from itertools import accumulate
from pathlib import Path

from common import ROOT, environment, read_arguments, run, table_head, table_row, verdict
from PIL import Image, ImageDraw


GOAL = 100  # pairs per second and core
FLAT = 1.10  # memory at the largest size against that at the size before
VOCABULARY = 5_000
WATCHED = "import resource, sys; from puma_trl.pairs.__main__ import main; main(); "
WATCHED += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"


def write_problems(folder: Path, count: int) -> Path:
    """Writes a problem file with some hundred diagrams."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlucm", k=rng.randint(2, 9))) for _ in range(VOCABULARY)]
    weights = list(accumulate(1 / rank for rank in range(1, VOCABULARY + 1)))
    diagrams = []
    for index in range(200):
        picture = Image.new("RGB", (300, 200), "white")
        points = [(rng.randrange(20, 280), rng.randrange(20, 180)) for _ in range(3)]
        ImageDraw.Draw(picture).polygon(points, outline="black")
        picture.save(folder / f"{index}.png")
        diagrams.append(f"{index}.png")
    path = folder / f"problems-{count}.jsonl"
    with open(path, "w") as file:
        for index in range(count):
            text = " ".join(rng.choices(words, cum_weights=weights, k=30))
            question = f"A {text}, and $x^2 + {rng.randrange(100)}y = {rng.randrange(100)}$. What is x?"
            row = {"question": question, "answer": str(rng.randrange(100))}
            file.write(json.dumps(row | ({"image": rng.choice(diagrams)} if index % 2 else {})) + "\n")
    return path


def measure(arguments: list[str]) -> tuple[float, float]:
    """Runs a command of the pair tools on one core; returns seconds and MiB."""
    start = time.perf_counter()
    result = run([sys.executable, "-c", WATCHED, *arguments], " ".join(arguments), env=environment(), cwd=ROOT)
    return time.perf_counter() - start, int(result.stderr.split()[-1]) / 1024


def main() -> None:
    """Measures and prints both tools."""
    parser = argparse.ArgumentParser(description="Speed and memory of building and generating pairs.")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="pairs, from small to large"
    )
    args = read_arguments(parser, sizes=2)
    names = ("tool", "pairs", "seconds", "pairs/s, start-up taken off", "peak MiB", "against the size before")
    print(table_head(*names))
    verdicts = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for tool in ("build", "generate"):
            results = {}
            for count in [1, *args.sizes]:
                output = ["--output", str(folder / f"{tool}-{count}")]
                if tool == "build":
                    source = ["--input", str(write_problems(folder, count))]
                    arguments = ["build", *source, *output]
                else:
                    arguments = ["generate", "--n", str(count), *output]
                results[count] = measure(arguments)
            for before, count in zip([1, *args.sizes], args.sizes, strict=False):
                seconds, memory = results[count]
                speed = (count - 1) / (seconds - results[1][0])
                growth = memory / results[before][1]
                cells = [tool, f"{count:,}", f"{seconds:.1f}", f"{speed:.0f}", f"{memory:.0f}", f"{growth:.2f}×"]
                print(table_row(cells), flush=True)
            verdicts.append(verdict(f"{tool}, pairs/s", speed, "≥", GOAL, "{:.0f}"))
            verdicts.append(verdict(f"{tool}, memory", growth, "≤", FLAT, "{:.2f}×", "{}"))
    print("\n" + "\n".join(verdicts))


if __name__ == "__main__":
    main()
