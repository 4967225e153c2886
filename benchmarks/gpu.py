"""
The numbers of a machine with a GPU, in about ten minutes: one table for each part, and all of it as JSON.

```bash
python benchmarks/gpu.py                                  # both parts, Qwen2-VL-2B with random weights
python benchmarks/gpu.py --parts loss                     # needs PyTorch alone
python benchmarks/gpu.py --parts step --models Qwen2-VL-7B --minutes 15
python benchmarks/gpu.py --tiny --device cpu              # to see that it runs, on any machine
```

- `loss`: seconds, extra peak memory and errors of the fused loss, of `puma_loss`, of TRL's and of Liger's, in bf16 and
  fp32 (see `benchmarks/gpu_parts/loss.py`).
- `step`: seconds, tokens per second, share of the card's peak and memory beside the plan, of a stage-2 step (see
  `benchmarks/gpu_parts/step.py`).

What is not installed is left out, what fails or does not fit says so in its line, and what there is no time for is
counted at the end.
"""

import argparse
import json
import os
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from common import CONFIGS, read_arguments, table_head, table_row
from gpu_parts.measuring import describe_machine


PARTS = ("loss", "step")
COLUMNS = {
    "loss": {
        "loss": "{}",
        "dtype": "{}",
        "N": "{}",
        "H": "{}",
        "seconds": "{:.4f}",
        "extra_mb": "{:.0f}",
        "loss_error": "{:.1e}",
        "gradient_error": "{:.1e}",
    },
    "step": {
        "model": "{}",
        "step": "{}",
        "rows": "{}",
        "perf/samples_per_second": "{:.2f}",
        "perf/tokens_per_second": "{:,.0f}",
        "perf/mfu": "{:.1%}",
        "perf/data_wait_share": "{:.1%}",
        "peak_gb": "{:.1f}",
        "plan_gb": "{:.1f}",
    },
}


class Clock:
    """Says whether there is time for one more measurement, and counts those for which there was none."""

    def __init__(self, minutes: float):
        self.end, self.left_out = time.monotonic() + 60 * minutes, 0

    def has_time(self) -> bool:
        """Whether to go on."""
        if time.monotonic() < self.end:
            return True
        self.left_out += 1
        return False


def print_part(part: str, rows: list[dict[str, Any]]) -> None:
    """Prints the table of a part."""
    columns = COLUMNS[part]
    print(f"\n{table_head(*(name.removeprefix('perf/') for name in columns), '')}")
    for row in rows:
        cells = [form.format(row[name]) if row.get(name) is not None else "–" for name, form in columns.items()]
        print(table_row([*cells, row.get("failed", "")]))


def main(argv: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--models", nargs="+", help="files of benchmarks/configs, for `step`; by default the 2B one")
    parser.add_argument("--minutes", type=float, default=10, help="nothing new starts after that")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="the file to write")
    args = read_arguments(parser, argv)
    if args.models and (args.tiny or "step" not in args.parts):
        parser.error("--models has no effect " + ("with --tiny" if args.tiny else "without the part `step`"))
    if unknown := [name for name in args.models or () if not (CONFIGS / f"{name}.json").is_file()]:
        known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.json")))
        parser.error(f"no configuration of {', '.join(unknown)}; there are {known}")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # of several GPUs one, or Trainer would use all at once
    try:
        device = torch.device(args.device)
    except RuntimeError:
        parser.error(f"unknown device {args.device}; expected cuda, cuda:1 or cpu")
    args.json.parent.mkdir(parents=True, exist_ok=True)  # not after ten minutes of measuring
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU; `--tiny --device cpu` tries the benchmark without one")
    clock = Clock(args.minutes)
    result: dict[str, Any] = {"machine": describe_machine(device)}
    print(", ".join(f"{name} {value}" for name, value in result["machine"].items() if value is not None))
    for part in args.parts:
        options = {"models": args.models} if part == "step" and args.models else {}
        result[part] = import_module(f"gpu_parts.{part}").run(device, args.tiny, clock.has_time, **options)
        print_part(part, result[part])
        args.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\nWritten to {args.json}; left out for want of time: {clock.left_out}")


if __name__ == "__main__":
    main()
