"""
The three stages and the modality gap on the mini model and its data, on a CPU, told in a page.

```bash
python -m puma_trl.start.demo --output_dir outputs/mini
```

What the commands say in full goes to files beside what they write. Other arguments go to every stage, such as
`--max_steps 20 --logging_steps 1`.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..entry import run_command  # before the libraries that it quietens


# isort: split
from ..errors import PumaError
from ..evaluation.gap_report import print_table
from ..record.console import word_time
from ..record.provenance import STAGES
from .shipped import PACKAGE, find_engine, find_recipe


# Lines of a stage that are shown
SHOWN = 6
STEP = re.compile(r"step (\d+)/(\d+) · loss ")


def run_logged(arguments: list[str], log: Path, module: str) -> Iterator[str]:
    """
    Runs a Python module and yields its lines, all of which go to a file.

    Raises:
        PumaError: if it fails.
    """
    command = [sys.executable, "-m", module, *arguments]
    log.parent.mkdir(parents=True, exist_ok=True)
    last = ""
    with log.open("w", encoding="utf-8") as file:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        with subprocess.Popen(command, **pipes) as process:
            for line in process.stdout:
                file.write(line)
                file.flush()
                last = line.strip() if line.startswith("error: ") else last
                yield line.rstrip("\n")
    if process.returncode:
        raise PumaError(f"A command of the demo failed, and its log, {log}, tells why. {last.removeprefix('error: ')}")


@contextmanager
def timed(log: Path) -> Iterator[None]:
    """Prints how long a part took, and where its log is."""
    start = time.monotonic()
    yield
    print(f"  {word_time(time.monotonic() - start)}, log in {log}", flush=True)


def run_stage(number: int, output: Path, flags: list[str]) -> None:
    """
    Runs a stage from its mini recipe, and shows a few of its lines.

    Args:
        number (`int`):
            1 to 3.
        output (`Path`):
            Folder of the model, the data and what the stages write.
        flags (`list[str]`):
            What else the run is given.
    """
    print(f"Stage {number} of 3, {STAGES[number - 1]}", flush=True)
    places = {
        "model_name_or_path": output / ("model" if number == 1 else f"stage{number - 1}"),
        "dataset_name": output / "data" / f"stage{number}.jsonl",
        "output_dir": output / f"stage{number}",
        "disable_tqdm": True,
    }
    own = [str(piece) for name, value in places.items() for piece in (f"--{name}", value)]
    recipe = find_recipe(f"recipes/mini/stage{number}.yaml")
    launch = ["--config_file", str(find_engine("cpu")), str(PACKAGE / "run.py"), recipe, *own, *flags]
    log, shown = output / "logs" / f"stage{number}.log", 0
    with timed(log):
        for line in run_logged(launch, log, "accelerate.commands.launch"):
            if (found := STEP.match(line)) and int(found[1]) * SHOWN >= (shown + 1) * int(found[2]):
                shown = int(found[1]) * SHOWN // int(found[2])
                print(f"  {line}", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Runs the demo."""
    parser = argparse.ArgumentParser(prog="python -m puma_trl.start.demo", description="The stages on the mini model.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/mini"), help="folder to write to")
    parser.add_argument("--family", default="qwen2_vl", help="model family")
    parser.add_argument("--n", default="12000", help="rows of each stage")
    parser.add_argument("--heldout", default="300", help="held-out pairs")
    args, flags = parser.parse_known_args(argv)
    output, start = args.output_dir, time.monotonic()

    print("The mini model and its data", flush=True)
    made = ["--output_dir", str(output), "--family", args.family, "--n", args.n, "--heldout", args.heldout]
    with timed(log := output / "logs" / "mini.log"):
        list(run_logged(made, log, "puma_trl.mini"))
    for number in (1, 2, 3):
        run_stage(number, output, flags)
    print("The held-out problems, asked in words (text-rich) and as drawings (vision-rich)", flush=True)
    models = [str(output / name) for name in ("model", "stage1", "stage2", "stage3")]
    gap = output / "gap.json"
    asked = ["gap", "--model", *models, "--data", str(output / "data" / "heldout.jsonl"), "--output", str(gap)]
    with timed(log := output / "logs" / "gap.log"):
        list(run_logged(asked, log, "puma_trl.evaluation"))
    print_table(json.loads(gap.read_text(encoding="utf-8"))["models"])
    print_files(output, time.monotonic() - start)


def print_files(output: Path, seconds: float) -> None:
    """Prints what the demo has left, and what to do next."""
    print(f"Done in {word_time(seconds)}. Written to {output}:")
    files = {
        "data/stage*.jsonl, data/heldout.jsonl": "rows of the stages and held-out pairs, pictures in data/images",
        "model, stage1, stage2, stage3": "models, each with a card (README.md), recipe.yaml and provenance.json",
        "stage*/curves.png": "loss, KL, accuracy and learning rate over the steps",
        "gap.json, gap.png, gap.pairs.jsonl": "the table above, its chart, and every answer",
        "logs": "what the commands said in full",
    }
    for name, words in files.items():
        print(f"  {name}: {words}")
    pairs, model = output / "data" / "heldout.jsonl", output / "stage3"
    print(f"Next: puma-trl pairs preview {pairs} --model {model} --replies --output preview.html")


if __name__ == "__main__":
    run_command(main)
