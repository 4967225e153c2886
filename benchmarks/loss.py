"""
Seconds and extra peak memory of the fused PUMA loss, forward and backward, against the other ways to compute it.

```bash
python benchmarks/loss.py            # the table of the README, three quarters of an hour on two cores
python benchmarks/loss.py --full     # every combination, over an hour
python benchmarks/loss.py --quick    # one combination
python benchmarks/loss.py --tokens 512 --hidden 1536 --head frozen --dtype float32 --variants fused gkd
```

- `fused`: `fused_puma_loss`.
- `plain`: both sides' logits, `puma_loss`, autograd.
- `tiles`: TRL's `ChunkedDivergenceFunction`, once for each direction of the KL, and its `ChunkedLogProbFunction`.
- `gkd`: both sides' logits, `GKDTrainer.generalized_jsd_loss` once for each direction, `cross_entropy`.
- `floor`: only the products that no exact method avoids: both sides' logits, the gradient of the hidden states and,
  with a trained head, that of the weight. For bfloat16 it multiplies single-precision copies, whose making is not
  timed, since a CPU without bfloat16 units multiplies those faster.

Every measurement runs in a process of its own, after a warm-up on a few tokens (which compiles). Memory is the peak of
the resident set above what the inputs take, gradients included. All variants must give the same loss and gradient.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import read_arguments, table_head, table_row, verdict
from torch.nn.functional import cross_entropy


VARIANTS = ["fused", "plain", "tiles", "gkd", "floor"]
WEIGHTS = {"alpha_kl": 0.5, "lambda_kl": 0.1}
# largest relative difference of loss and gradient's norm between the variants
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


class Inputs:
    """Random hidden states (N, H) of both sides, labels (N,) and head (V, H) that give logits of ordinary size."""

    def __init__(self, num_tokens: int, hidden_size: int, vocab_size: int, dtype: torch.dtype, trained: bool):
        torch.manual_seed(0)
        self.student = torch.randn(num_tokens, hidden_size).to(dtype).requires_grad_()
        # the two sides of a pair mostly agree
        self.teacher = (self.student.detach().float() + 0.3 * torch.randn(num_tokens, hidden_size)).to(dtype)
        self.labels = torch.randint(vocab_size, (num_tokens,))
        self.weight = (torch.randn(vocab_size, hidden_size) * 3 / hidden_size**0.5).to(dtype).requires_grad_(trained)

    def head(self, num_tokens: int) -> "Inputs":
        """Returns the first tokens with the same head."""
        part = object.__new__(Inputs)
        part.student = self.student.detach()[:num_tokens].requires_grad_()
        part.teacher, part.labels, part.weight = self.teacher[:num_tokens], self.labels[:num_tokens], self.weight
        return part


def fused(inputs: Inputs) -> torch.Tensor:
    """Returns the loss of `fused_puma_loss`."""
    from puma_trl.step.losses import fused_puma_loss

    return fused_puma_loss(
        inputs.student, inputs.teacher, inputs.weight, inputs.labels, **WEIGHTS, temp_kl=1.0, num_items=1
    ).loss


def both_logits(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the logits (N, V) of both sides in single precision, as models under accelerate return them."""
    with torch.no_grad():
        teacher = (inputs.teacher @ inputs.weight.T).float()
    return (inputs.student @ inputs.weight.T).float(), teacher


def plain(inputs: Inputs) -> torch.Tensor:
    """Returns the loss of `puma_loss`."""
    from puma_trl.step.reference import puma_loss

    return puma_loss(*both_logits(inputs), inputs.labels, **WEIGHTS, temp_kl=1.0, num_items=1).loss


def tiles(inputs: Inputs) -> torch.Tensor:
    """Returns the loss put together from TRL's chunked functions."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    def divergence(beta: float) -> torch.Tensor:
        sides = inputs.student, inputs.weight, None, inputs.teacher, inputs.weight, None
        return ChunkedDivergenceFunction.apply(*sides, beta)[0].sum()

    kl = WEIGHTS["alpha_kl"] * divergence(0.0) + (1 - WEIGHTS["alpha_kl"]) * divergence(1.0)
    arguments = inputs.student, inputs.weight, None, inputs.labels, 1.0, 32768, None, 1.0, ()
    ce = -ChunkedLogProbFunction.apply(*arguments)[0].sum()
    return WEIGHTS["lambda_kl"] * kl + (1 - WEIGHTS["lambda_kl"]) * ce


def gkd(inputs: Inputs) -> torch.Tensor:
    """Returns the loss put together from GKD's."""
    from trl.experimental.gkd import GKDTrainer

    student, teacher = both_logits(inputs)
    forward_kl, reverse_kl = (
        GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, reduction="sum") for beta in (0, 1)
    )
    kl = WEIGHTS["alpha_kl"] * forward_kl + (1 - WEIGHTS["alpha_kl"]) * reverse_kl
    ce = cross_entropy(student, inputs.labels, reduction="sum")
    return WEIGHTS["lambda_kl"] * kl + (1 - WEIGHTS["lambda_kl"]) * ce


def floor_of(inputs: Inputs) -> Callable[[], None]:
    """Returns a function that runs the unavoidable products."""
    student, teacher, weight = (value.detach().float() for value in (inputs.student, inputs.teacher, inputs.weight))
    trained = inputs.weight.requires_grad

    def products() -> None:
        logits, teacher_logits = student @ weight.T, teacher @ weight.T
        grads = logits @ weight, logits.T @ student if trained else None
        del logits, teacher_logits, grads

    return products


def memory(field: str) -> int:
    """Returns `VmRSS` or `VmHWM` of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(args: argparse.Namespace) -> dict:
    """Measures one variant in this process."""
    dtype, trained = getattr(torch, args.dtype[0]), args.head[0] == "trained"
    inputs = Inputs(args.tokens[0], args.hidden[0], args.vocab, dtype, trained)
    result = {}

    def step(inputs: Inputs) -> None:
        inputs.student.grad = inputs.weight.grad = None
        loss = globals()[args.variants[0]](inputs)
        loss.backward()
        result["loss"] = loss.item()
        result["grad_norm"] = inputs.student.grad.float().norm().item()

    if args.variants[0] == "floor":
        run, warm_up = floor_of(inputs), floor_of(inputs.head(8))
    else:
        run, warm_up = lambda: step(inputs), lambda: step(inputs.head(8))
    warm_up()
    inputs.weight.grad = None
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    result["memory"] = memory("VmHWM") - before
    # a run that takes long needs no second one
    seconds = [first] if first >= args.seconds else []
    while len(seconds) < args.repeats and sum(seconds) < args.seconds:
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return result | {"seconds": statistics.median(seconds)}


def measure_apart(args: argparse.Namespace, variant: str, row: tuple[int, int, str, str]) -> dict | None:
    """Measures one variant in a process of its own; `None` if the system ended it for want of memory."""
    names = ("--tokens", "--hidden", "--head", "--dtype")
    command = [sys.executable, __file__, "--measure", "--variants", variant, "--vocab", str(args.vocab)]
    command += ["--repeats", str(args.repeats), "--seconds", str(args.seconds)]
    command += [str(part) for pair in zip(names, row, strict=True) for part in pair]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode == -9:
        return None
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{process.stderr}")
    return json.loads(process.stdout.splitlines()[-1])


def check_agreement(results: dict[str, dict], dtype: str) -> None:
    """Stops if two variants give another loss or gradient."""
    for name in ("loss", "grad_norm"):
        values = {variant: result[name] for variant, result in results.items() if name in result}
        if values and max(values.values()) > min(values.values()) * (1 + TOLERANCE[dtype]):
            raise SystemExit(f"The variants disagree on the {name}: {values}")


def print_row(row: tuple[int, int, str, str], results: dict[str, dict | None]) -> None:
    """Prints the lines of the table for one combination: every variant beside the floor and the fused loss."""
    fused_result, floor_result = results.get("fused"), results.get("floor")
    for variant, result in results.items():
        cells = [*map(str, row), variant]
        if result is None:
            cells += ["out of memory", "", "", "", ""]
        else:
            cells += [f"{result['seconds']:.2f}"]
            cells += [f"{result['seconds'] / floor_result['seconds']:.2f}" if floor_result else ""]
            cells += [f"{result['seconds'] / fused_result['seconds']:.2f}" if fused_result else ""]
            cells += [f"{result['memory'] / 1e6:.0f}"]
            cells += [f"{result['memory'] / fused_result['memory']:.2f}" if fused_result else ""]
        print(table_row(cells), flush=True)


def print_goals(table: dict[tuple[int, int, str, str], dict[str, dict | None]]) -> None:
    """Prints the ratios that have a goal, as far as they were measured."""

    def ratio(name: str, row: tuple, variant: str, other_row: tuple, other: str, sign: str, goal: float) -> None:
        result, reference = table.get(row, {}).get(variant), table.get(other_row, {}).get(other)
        if result and reference:
            field = "memory" if name.startswith("memory") else "seconds"
            print(verdict(name, result[field] / reference[field], sign, goal))

    print("\nGoals, frozen head, float32\n")
    for hidden_size in (896, 1536):
        row = (512, hidden_size, "frozen", "float32")
        longer = (2048, *row[1:])
        ratio(f"time, fused / floor, N 512, H {hidden_size}", row, "fused", row, "floor", "≤", 1.25)
        for other in ("gkd", "tiles"):
            ratio(f"time, {other} / fused, N 512, H {hidden_size}", row, other, row, "fused", "≥", 4.0)
        ratio(f"memory, fused / gkd, N 512, H {hidden_size}", row, "fused", row, "gkd", "≤", 0.125)
        ratio(f"memory, fused at N 2048 / at N 512, H {hidden_size}", longer, "fused", row, "fused", "≤", 1.1)


def rows_of(args: argparse.Namespace) -> list[tuple[int, int, str, str]]:
    """Returns the combinations asked for; by default all with a frozen head in float32, the rest at one size each."""
    if args.quick:
        return [(128, 896, "frozen", "float32")]
    if args.full:
        dtypes, heads = ("float32", "bfloat16"), ("frozen", "trained")
        return [(n, h, head, d) for d in dtypes for head in heads for h in (896, 1536) for n in (128, 512, 2048)]
    if args.tokens or args.hidden or args.head or args.dtype:
        chosen = (args.tokens or [512], args.hidden or [896], args.head or ["frozen"], args.dtype or ["float32"])
        return [(n, h, head, dtype) for dtype in chosen[3] for head in chosen[2] for h in chosen[1] for n in chosen[0]]
    grid = [(n, h, "frozen", "float32") for h in (896, 1536) for n in (128, 512, 2048)]
    return [*grid, (512, 1536, "trained", "float32")] + [
        (128, 1536, head, "bfloat16") for head in ("frozen", "trained")
    ]


def variants_of(args: argparse.Namespace, row: tuple[int, int, str, str]) -> list[str]:
    """Returns the variants to measure; by default the slow ones are left out of the largest combination."""
    if row[:2] == (2048, 1536) and args.variants is None and not args.full:
        return ["fused", "floor"]
    return args.variants or VARIANTS


def main() -> None:
    """Runs the rows and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", help="Numbers of answer tokens N.")
    parser.add_argument("--hidden", type=int, nargs="+", help="Hidden sizes H.")
    parser.add_argument("--head", nargs="+", choices=["frozen", "trained"])
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"])
    parser.add_argument("--vocab", type=int, default=151_936, help="Size of the vocabulary V.")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS)
    parser.add_argument("--repeats", type=int, default=3, help="Timed runs of each variant; the median counts.")
    parser.add_argument("--seconds", type=float, default=8.0, help="No further run starts after so long.")
    parser.add_argument("--quick", action="store_true", help="Only N 128, H 896, frozen head, float32.")
    parser.add_argument("--full", action="store_true", help="Every combination.")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = read_arguments(parser)
    if args.measure:
        print(json.dumps(measure(args)))
        return
    print(
        f"V {args.vocab:,}, {torch.get_num_threads()} threads, torch {torch.__version__}; MB: peak above the inputs\n"
    )
    names = ("N", "H", "head", "dtype", "variant", "seconds", "× floor", "× fused", "MB", "× fused")
    print(table_head(*names))
    table = {}
    for row in rows_of(args):
        table[row] = {variant: measure_apart(args, variant, row) for variant in variants_of(args, row)}
        print_row(row, table[row])
        check_agreement({name: result for name, result in table[row].items() if result}, row[3])
    print_goals(table)


if __name__ == "__main__":
    main()
