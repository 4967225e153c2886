"""
The mini study: what the KL term changes, in runs of stage 2 that differ in nothing else.

```bash
python -m puma_trl.study --recipes recipes/mini/study --model outputs/mini/stage1 --output outputs/study \
    --report docs/mini_study.md
```

writes the data, trains a vision tower that can read digits (`stage2_tower.yaml`), starts one run of `puma_trl/run.py`
for every variant and seed, measures every checkpoint with `python -m puma_trl.evaluation gap` on held-out problems,
and writes the report from what these left. A study that was stopped goes on where it was: runs with a measurement are
not repeated. The folders' names change with the settings, so that results of others never stand in the report.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..entry import Parser
from ..errors import StudyError
from ..mini import DRAWINGS, IMAGE_SIZE, LABEL_GRID
from ..pairs.generate.files import write_pairs
from ..pairs.generate.pairs import generate_pairs
from .report import write_report


TOWER_KINDS = ("triangle_angles", "segment_part", "bar_total")
KINDS = ("segment_total", "rectangle_perimeter")
NUM_TOWER = 8_000
NUM_ROWS, NUM_HELDOUT = 6_400, 200
NOISE = 0.5  # share of wrong answers
NUM_FEW = 200
DATA_SEED = 1
RUN_LOG = "run.log"


@dataclass(frozen=True)
class Run:
    """One run: where it belongs in the table, and what it changes in the recipe."""

    regime: str
    variant: str
    seed: int
    changes: dict[str, Any]
    folder: Path


def _digest(*settings: Any) -> str:
    """Returns a few characters that change with the settings, for the name of the folder that they decide about."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def data_folder(output: Path) -> Path:
    """Returns the folder of the data that the constants above describe."""
    amounts = (NUM_TOWER, NUM_ROWS, NUM_HELDOUT, NUM_FEW, NOISE, DATA_SEED)
    return output / f"data-{_digest(TOWER_KINDS, KINDS, amounts, DRAWINGS, IMAGE_SIZE, LABEL_GRID)}"


def tower_folder(recipes: Path, model: Path, data: Path, output: Path) -> Path:
    """Returns the folder of what all runs start from: another one for another recipe, stage-1 model or data."""
    recipe = yaml.safe_load((recipes / "stage2_tower.yaml").read_text())
    weights = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(model.glob("*.safetensors"))]
    return output / f"stage2_tower-{_digest(recipe, str(model), weights, data.name)}"


def write_data(folder: Path) -> None:
    """Writes `tower`, `clean`, `shuffled`, `noisy`, `few` and `heldout.jsonl` with pictures, unless they are there."""
    done = folder / "done"
    if done.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    style = {"image_size": IMAGE_SIZE, "label_grid": LABEL_GRID, "num_proc": os.cpu_count()}
    for name, count, kinds in (("tower", NUM_TOWER, TOWER_KINDS), ("clean", NUM_ROWS, KINDS)):
        pairs = generate_pairs(count, DATA_SEED, kinds, drawings=DRAWINGS, **style)
        write_pairs(pairs, folder / f"{name}.jsonl", f"images/{name}")
    write_pairs(
        generate_pairs(NUM_HELDOUT, DATA_SEED, KINDS, split="heldout", **style),
        folder / "heldout.jsonl",
        "images/heldout",
    )
    rows = [json.loads(line) for line in (folder / "clean.jsonl").read_text().splitlines()]
    wrong = random.Random(DATA_SEED).sample(range(len(rows)), round(NOISE * len(rows)))
    noisy = list(rows)
    for index in wrong:
        answer = {name: _stranger(rows, index)[name] for name in ("output", "output_2")}
        noisy[index] = rows[index] | answer
    shuffled = [row | {"instruction": _stranger(rows, index)["instruction"]} for index, row in enumerate(rows)]
    for name, data in (("shuffled", shuffled), ("noisy", noisy), ("few", rows[:NUM_FEW])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    done.touch()


def _stranger(rows: list[dict], index: int) -> dict:
    """Returns another problem of the same kind: the kinds take turns, so it is some rounds further."""
    return rows[(index + 17 * len(KINDS)) % len(rows)]


def plan_runs(recipes: Path, tower: Path, output: Path, seeds: int) -> Iterator[Run]:
    """Yields all runs of `variants.yaml`, all variants with the first seed before any with the second."""
    variants = yaml.safe_load((recipes / "variants.yaml").read_text())
    recipe = yaml.safe_load((recipes / "stage2.yaml").read_text())
    for seed in range(seeds):
        for place, (regime, names) in enumerate(variants.items()):
            for index, (variant, changes) in enumerate(names.items()):
                name = f"{place}-{index}-seed{seed}-{_digest(changes, recipe, tower.name)}"
                yield Run(regime, variant, seed, changes, output / "runs" / name)


def train_tower(recipes: Path, model: Path, data: Path, output: Path) -> None:
    """Trains what all runs start from, unless it is there."""
    if not (output / "model.safetensors").exists():
        shutil.rmtree(output, ignore_errors=True)
        flags = {"model_name_or_path": model, "dataset_name": data / "tower.jsonl", "output_dir": output}
        command = ["puma_trl.run", str(recipes / "stage2_tower.yaml"), *_as_flags(flags)]
        _call(command, dict(os.environ), output.with_name(f"{output.name}.log"))


def _as_flags(values: dict[str, Any]) -> list[str]:
    return [str(piece) for key, value in values.items() for piece in (f"--{key}", value)]


def execute(run: Run, recipes: Path, model: Path, data: Path, environment: dict[str, str]) -> None:
    """
    Trains one run and measures its checkpoints, unless that is done, and leaves `gap.json` in its folder.

    Raises:
        StudyError: if one of the two commands fails.
    """
    measurement = run.folder / "gap.json"
    if measurement.exists():
        return
    shutil.rmtree(run.folder, ignore_errors=True)
    changes = dict(run.changes)
    changes |= {"dataset_name": data / f"{changes.pop('data', 'clean')}.jsonl", "seed": run.seed}
    changes |= {"model_name_or_path": model, "output_dir": run.folder / "model"}
    log = run.folder / RUN_LOG
    _call(["puma_trl.run", str(recipes / "stage2.yaml"), *_as_flags(changes)], environment, log)
    checkpoints = sorted((run.folder / "model").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    _measure(checkpoints, data, measurement, environment, log)
    for path in checkpoints:  # those of all runs would fill a small disk
        shutil.rmtree(path)


def _measure(models: list[Path], data: Path, output: Path, environment: dict[str, str], log: Path) -> None:
    command = ["puma_trl.evaluation", "gap", "--data", str(data / "heldout.jsonl"), "--output", str(output)]
    _call([*command, "--batch_size", "100", "--model", *map(str, models)], environment, log)


def _call(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    """Runs a command of the package and adds what it prints to a log, of which the last line tells why it failed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", *arguments]
    with open(log, "ab") as file:
        code = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode
    if code != 0:
        last = (log.read_text(encoding="utf-8", errors="replace").strip() or "it printed nothing").splitlines()[-1]
        run = log.parent.name if log.name == RUN_LOG else log.stem
        raise StudyError(f"`python -m {arguments[0]}` of the run {run} ended with {code}: {last} Its log is {log}.")


def read_results(runs: list[Run]) -> dict[str, dict[str, list[list[dict]]]]:
    """Returns regime → variant → for each seed the measurements (see `puma_trl.evaluation`) of its checkpoints."""
    results: dict[str, dict[str, list[list[dict]]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        models = json.loads((run.folder / "gap.json").read_text())["models"]
        steps = [{"step": int(model["label"].split("-")[1])} | model for model in models]
        results[run.regime][run.variant].append(steps)
    return results


def describe(recipes: Path) -> str:
    """Returns what all runs share, in Markdown."""
    recipe = yaml.safe_load((recipes / "stage2.yaml").read_text())
    return (
        f"All runs: {recipe['max_steps']} steps of {recipe['per_device_train_batch_size']} pairs out of {NUM_ROWS:,}, "
        f"kinds {', '.join(f'`{kind}`' for kind in KINDS)}; [stage2.yaml](../{recipes}/stage2.yaml) is what they "
        f"share, [variants.yaml](../{recipes}/variants.yaml) what they change.\nThe language model (stage 1) reads "
        "the problems in words almost without error, and the vision tower has learned to read digits from drawings of "
        f"other kinds ({', '.join(f'`{kind}`' for kind in TOWER_KINDS)}) by cross-entropy, as real towers come "
        "pretrained."
    )


def main() -> None:
    """Writes the data, trains, measures, and writes the report."""
    parser = Parser(prog="python -m puma_trl.study", description="The mini study.")
    parser.add_argument("--recipes", type=Path, default=Path("recipes/mini/study"), help="stage2.yaml, variants.yaml")
    parser.add_argument("--model", type=Path, default=Path("outputs/mini/stage1"), help="what stage 1 left")
    parser.add_argument("--output", type=Path, default=Path("outputs/study"), help="folder of data and runs")
    parser.add_argument("--report", type=Path, default=Path("docs/mini_study.md"), help="the report to write")
    parser.add_argument("--seeds", type=int, default=3, help="runs of every variant")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once, each on one core")
    args = parser.parse_args()
    start = time.monotonic()
    data = data_folder(args.output)
    tower = tower_folder(args.recipes, args.model, data, args.output)
    write_data(data)
    train_tower(args.recipes, args.model, data, tower)
    runs = list(plan_runs(args.recipes, tower, args.output, args.seeds))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    before = tower / "gap.json"
    if not before.exists():
        _measure([tower], data, before, environment, tower.with_name(f"{tower.name}.log"))
    pool = ThreadPoolExecutor(args.jobs)
    futures = [pool.submit(execute, run, args.recipes, tower, data, environment) for run in runs]
    try:
        for number, (run, future) in enumerate(zip(runs, futures, strict=True), 1):
            future.result()
            minutes = (time.monotonic() - start) / 60
            print(
                f"{minutes:5.1f} min, {number}/{len(runs)}: {run.regime}, {run.variant}, seed {run.seed}", flush=True
            )
    finally:
        pool.shutdown(cancel_futures=True)  # an error ends the study after the runs under way
    initial = json.loads(before.read_text())["models"][0]
    write_report(read_results(runs), initial, args.report, describe(args.recipes))
    print(f"The report is in {args.report}.")
