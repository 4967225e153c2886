"""
How the cost of the loss and of the whole stage-2 step grows with tokens, batch, picture size and vocabulary.

```bash
python benchmarks/scaling.py            # about a quarter of an hour on two cores; writes scaling.png
python benchmarks/scaling.py --quick    # two small points of every curve
```

The loss is `fused` of `benchmarks/loss.py` (H 896, frozen head, float32), the step is `step` of `benchmarks/step.py`;
all that a curve does not vary is as there. Every point is measured in a process of its own.
"""

import argparse
from copy import copy
from typing import Any

import loss
import step
import torch
from common import read_arguments, table_head, table_row, verdict

from puma_trl.record.charts import chart


LOSS_CURVES = {
    "answer tokens N": ("tokens", (128, 256, 512, 1024, 2048)),
    "vocabulary V": ("vocab", (32_000, 64_000, 128_000, 256_000)),
}
STEP_CURVES = {
    "answer words": ("answer_words", (30, 60, 120, 240)),
    "batch size": ("batch_size", (1, 2, 4, 8)),
    "picture width": ("image_size", (140, 280, 420, 560)),
    "vocabulary V": ("vocab", (32_000, 64_000, 151_936)),
}
# four times the tokens: at most so much above four times the seconds, and above the same memory
SLACK = {"seconds": 1.15, "memory": 1.10}


def measure_loss(field: str, value: int, args: argparse.Namespace) -> dict[str, float]:
    """Measures one point of a curve of the loss."""
    sizes = argparse.Namespace(vocab=151_936, repeats=3, seconds=args.seconds)
    num_tokens = 512
    if field == "vocab":
        sizes.vocab = value
    else:
        num_tokens = value
    return loss.measure_apart(sizes, "fused", (num_tokens, 896, "frozen", "float32"))


def measure_step(field: str, value: int, args: argparse.Namespace) -> dict[str, float]:
    """Measures one point of a curve of the step."""
    sizes = copy(args)
    setattr(sizes, field, value)
    return step.measure_apart(sizes, "step")


def draw(curves: dict[tuple[str, str], dict[int, dict[str, float]]], path: str) -> None:
    """Draws a panel per curve: seconds on the left axis, memory on the right one, both from zero."""
    with chart(path, columns=3, rows=2, figsize=(12, 6.5)) as axes:
        for axis, ((what, name), points) in zip(axes, curves.items(), strict=True):
            right = axis.twinx()
            values = list(points)
            (seconds,) = axis.plot(values, [point["seconds"] for point in points.values()], "o-", label="seconds")
            megabytes = [point["memory"] / 1e6 for point in points.values()]
            (memory,) = right.plot(values, megabytes, "s--", color="tab:orange", label="extra peak MB")
            axis.set_title(f"{what}: {name}", fontsize=10)
            axis.set_xlim(left=0)
            axis.set_ylim(bottom=0, top=1.1 * max(point["seconds"] for point in points.values()))
            right.set_ylim(bottom=0, top=1.25 * max(megabytes))
            axis.locator_params(axis="x", nbins=5)
            axis.grid(alpha=0.3)
            axis.legend(handles=[seconds, memory], fontsize=8, loc="lower right")


def print_goals(points: dict[int, dict[str, float]]) -> None:
    """Prints whether the loss is linear in N and flat in memory, from the largest N and a quarter of it."""
    largest = max(points)
    first, last = points[largest // 4], points[largest]
    growth = last["seconds"] / first["seconds"] / 4
    print("\nGoals\n")
    name = f"seconds of the loss per token, N {largest} / N {largest // 4}"
    print(verdict(name, growth, "≤", SLACK["seconds"]))
    name = f"memory of the loss, N {largest} / N {largest // 4}"
    print(verdict(name, last["memory"] / first["memory"], "≤", SLACK["memory"]))


def main() -> None:
    """Measures every curve, prints one table and draws the panels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    step.add_sizes(parser)
    parser.add_argument("--seconds", type=float, default=4.0, help="No further run of the loss starts after so long.")
    parser.add_argument("--output", default="scaling.png", help="The plot.")
    parser.add_argument("--quick", action="store_true")
    parser.set_defaults(repeats=2)
    args = read_arguments(parser)
    plan: list[tuple[str, str, str, tuple[int, ...], Any]] = []
    for what, curves, measure in (("loss", LOSS_CURVES, measure_loss), ("step", STEP_CURVES, measure_step)):
        plan += [(what, name, field, values, measure) for name, (field, values) in curves.items()]
    if args.quick:
        args.hidden_size, args.layers, args.vocab, args.batch_size, args.image_size = 64, 2, 20_000, 2, 56
        plan = [
            (what, name, field, tuple(factor * max(values[0] // 4, 1) for factor in (1, 4)), measure)
            for what, name, field, values, measure in plan
        ]
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; MB: extra peak of memory\n")
    print(table_head("what", "varied", "value", "seconds", "× first", "MB", "× first"))
    results = {}
    for what, name, field, values, measure in plan:
        points = results[what, name] = {}
        for value in values:
            points[value] = measure(field, value, args)
            first, point = points[values[0]], points[value]
            cells = [what, name, f"{value:,}", f"{point['seconds']:.2f}"]
            cells += [f"{point['seconds'] / first['seconds']:.2f}", f"{point['memory'] / 1e6:.0f}"]
            print(table_row([*cells, f"{point['memory'] / first['memory']:.2f}"]), flush=True)
    draw(results, args.output)
    print_goals(results["loss", "answer tokens N"])
    print(f"\nThe plot is {args.output}.")


if __name__ == "__main__":
    main()
