"""
The mini study: what the KL term, the answers and the teacher change, in runs of stage 2 that differ in nothing else.

```bash
python -m puma_trl.study --recipes recipes/mini/study --model outputs/mini/stage1 --output outputs/study \
    --report docs/mini_study.md
```

writes the data, trains a vision tower that can read digits (`stage2_tower.yaml`) and a text model that knows larger
numbers (`stage1_teacher.yaml`), starts `puma_trl/run.py` for every variant and seed, measures what it leaves with
`python -m puma_trl.evaluation gap` on held-out problems, and writes the report from that. A study that was stopped
goes on where it was: runs with a result are not repeated. The folders' names change with the settings, so that results
of others never stand in the report.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
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
from ..evaluation.files import read_jsonl, write_json
from ..evaluation.gap_summary import summarise
from .data import KINDS, NUM_ROWS, TOWER_KINDS, data_folder, digest, write_data
from .report import Line, Regimes, write_report
from .teacher import write_text_model


RUN_LOG, RESULT, MODEL = "run.log", "result.json", "model.safetensors"
# What variants.yaml says beside settings of the recipe
AGAINST, HELDOUT, PHASES = "against", "heldout", "phases"
# What trainings warn of, without its numbers: pattern in a log → what the words of its group are introduced by
WARNINGS = {
    r"Sign of collapse at step \d+: (.+?) has (?:fallen|risen) to": "collapse: ",
    r"UserWarning: The (teacher predicts the answers worse)": "",
}
ANSWERING = threading.Lock()


@dataclass(frozen=True)
class Places:
    """
    What all runs share.

    Args:
        recipes (`Path`):
            Folder of the recipes and of `variants.yaml`.
        output (`Path`):
            Folder of the study.
        data (`Path`):
            Folder of the data.
        tower (`Path`):
            The model that every run starts from.
        teacher (`Path`):
            The text model that teaches where a run says `teacher: model`.
    """

    recipes: Path
    output: Path
    data: Path
    tower: Path
    teacher: Path


@dataclass(frozen=True)
class Run:
    """One run: where it belongs in the table, and what it changes in the recipe."""

    regime: str
    variant: str
    seed: int
    changes: dict[str, Any]
    folder: Path

    @property
    def heldout(self) -> str:
        """The name of the file that it is measured on."""
        return self.changes.get(HELDOUT, "heldout")

    @property
    def phases(self) -> list[dict[str, Any]]:
        """What its trainings change in the recipe, each of which starts from what the one before has left."""
        shared = {name: value for name, value in self.changes.items() if name not in (AGAINST, HELDOUT, PHASES)}
        return [shared | phase for phase in self.changes.get(PHASES, [{}])]


def find_places(recipes: Path, model: Path, output: Path) -> Places:
    """Returns where everything is, or will be: in other folders for other recipes, data, or another stage-1 model."""
    data = data_folder(output)
    weights = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(model.glob("*.safetensors"))]
    folders = {}
    for name in ("stage2_tower", "stage1_teacher"):
        recipe = yaml.safe_load((recipes / f"{name}.yaml").read_text())
        folders[name] = output / f"{name}-{digest(recipe, str(model), weights, data.name)}"
    return Places(recipes, output, data, folders["stage2_tower"], folders["stage1_teacher"])


def plan_runs(places: Places, seeds: int) -> Iterator[Run]:
    """
    Yields all runs of `variants.yaml`, all variants with the first seed before any with the second. Variants that
    train the same have one folder, named by the first of them.
    """
    variants = yaml.safe_load((places.recipes / "variants.yaml").read_text())
    recipe = yaml.safe_load((places.recipes / "stage2.yaml").read_text())
    first: dict[str, str] = {}
    for seed in range(seeds):
        for regime, names in variants.items():
            for variant, changes in names.items():
                trained = {name: value for name, value in changes.items() if name != AGAINST}
                key = digest(trained, recipe, places.tower.name, places.teacher.name)
                name = first.setdefault(key, re.sub(r"\W+", "-", f"{regime} {variant}"))
                yield Run(regime, variant, seed, changes, places.output / "runs" / f"{name}-seed{seed}-{key}")


def prepare(places: Places, model: Path) -> None:
    """Writes the data and trains what the runs share, unless it is there."""
    write_data(places.data)
    text = places.teacher.with_name(f"{places.teacher.name}-start")
    if not (places.teacher / MODEL).exists():
        write_text_model(model, text)
    starts = {places.tower: (model, "tower"), places.teacher: (text, "teacher")}
    with ThreadPoolExecutor(len(starts)) as pool:
        list(pool.map(lambda folder: _train(places, folder, *starts[folder]), starts))


def _train(places: Places, folder: Path, start: Path, data: str) -> None:
    if (folder / MODEL).exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    flags = {"model_name_or_path": start, "dataset_name": places.data / f"{data}.jsonl", "output_dir": folder}
    recipe = places.recipes / f"{folder.name.rsplit('-', 1)[0]}.yaml"
    _call(["puma_trl.run", str(recipe), *_as_flags(flags)], folder.with_name(f"{folder.name}.log"))


def _as_flags(values: dict[str, Any]) -> list[str]:
    return [str(piece) for key, value in values.items() for piece in (f"--{key}", value)]


def execute(run: Run, places: Places) -> None:
    """
    Trains one run and measures what it leaves, unless that is done, and leaves `result.json` in its folder.

    Raises:
        StudyError: if one of the commands fails.
    """
    result = run.folder / RESULT
    if result.exists():
        return
    shutil.rmtree(run.folder, ignore_errors=True)
    model, log = places.tower, run.folder / RUN_LOG
    for number, changes in enumerate(run.phases, 1):
        data = places.data / f"{changes.pop('data', 'clean')}.jsonl"
        if side := changes.pop("answered", None):
            own = places.output / "own" / places.tower.name if number == 1 else run.folder
            data = _answer(model, data, side, own, log)
        if changes.get("teacher") == "model":
            changes["teacher_model_name_or_path"] = places.teacher
        changes |= {"dataset_name": data, "seed": run.seed, "model_name_or_path": model}
        model = run.folder / f"model{number}"
        flags = _as_flags(changes | {"output_dir": model})
        _call(["puma_trl.run", str(places.recipes / "stage2.yaml"), *flags], log)
    write_json(result, measure(model, places.data / f"{run.heldout}.jsonl", run.folder, log))
    for path in run.folder.rglob("*.safetensors"):  # those of all runs would fill a small disk
        path.unlink()


def _answer(model: Path, data: Path, side: str, folder: Path, log: Path) -> Path:
    """Has a model answer the problems of the data once each, and returns the file with its right answers."""
    output = folder / f"{data.stem}_{side}.jsonl"
    command = ["puma_trl.pairs", "answer", "--model", str(model), "--data", str(data), "--output", str(output)]
    options = {"side": side, "n": 1, "temperature": 0, "batch_size": 200, "max_new_tokens": 64}
    with ANSWERING:  # the answers of the model that all runs start from are for several of them
        if not output.exists():
            _call([*command, *_as_flags(options)], log)
    return output


def find_warnings(log: str) -> list[str]:
    """Returns what a training has warned of: signs of collapse, and a teacher that is worse than its student."""
    return sorted({sign + text for pattern, sign in WARNINGS.items() for text in re.findall(pattern, log)})


def _start(heldout: str, places: Places) -> Path:
    return places.tower / f"{heldout}.json"


def measure_start(heldout: str, places: Places) -> None:
    """Measures the model that every run starts from on a file of held-out problems, unless that is done."""
    result = _start(heldout, places)
    if not result.exists():
        log = places.tower.with_name(f"{places.tower.name}.log")
        write_json(result, measure(places.tower, places.data / f"{heldout}.jsonl", places.tower, log))


def measure(model: Path, heldout: Path, folder: Path, log: Path) -> dict[str, dict[str, Any]]:
    """
    Measures a model on held-out problems.

    Returns:
        `dict[str, dict[str, Any]]`: `here` and `elsewhere`, what [`summarise`] returns of the problems of `KINDS` and
        of those of `TOWER_KINDS`.
    """
    gap = folder / f"gap_{heldout.stem}.json"
    command = ["puma_trl.evaluation", "gap", "--data", str(heldout), "--output", str(gap), "--model", str(model)]
    _call([*command, "--batch_size", "160"], log)
    pairs = [pair for _, pair in read_jsonl(gap.with_suffix(".pairs.jsonl"))]
    parts = {"here": KINDS, "elsewhere": TOWER_KINDS}
    return {
        name: summarise(name, model.name, [pair for pair in pairs if pair["kind"] in kinds])
        for name, kinds in parts.items()
    }


def _call(arguments: list[str], log: Path) -> None:
    """Runs a command of the package and adds what it prints to a log, of which the last line tells why it failed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(log, "ab") as file:
        code = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode
    if code != 0:
        last = (log.read_text(encoding="utf-8", errors="replace").strip() or "it printed nothing").splitlines()[-1]
        run = log.parent.name if log.name == RUN_LOG else log.stem
        raise StudyError(f"`python -m {arguments[0]}` of the run {run} ended with {code}: {last} Its log is {log}.")


def read_results(runs: list[Run], places: Places) -> tuple[Regimes, dict[str, Line]]:
    """
    Reads what [`measure`] found, and what the trainings have warned of.

    Returns:
        `tuple[Regimes, dict[str, Line]]`: regime → variant → line of the table, and regime → the model that its runs
        start from.
    """
    regimes: Regimes = defaultdict(dict)
    before = {}
    for run in runs:
        line = regimes[run.regime].setdefault(run.variant, Line([], run.changes.get(AGAINST)))
        log = (run.folder / RUN_LOG).read_text(encoding="utf-8", errors="replace")
        line.seeds.append(json.loads((run.folder / RESULT).read_text()) | {"warnings": find_warnings(log)})
        before[run.regime] = Line([json.loads(_start(run.heldout, places).read_text())])
    return regimes, before


def describe(recipes: Path) -> str:
    """Returns what all runs share, in Markdown."""
    recipe = yaml.safe_load((recipes / "stage2.yaml").read_text())
    kinds, others = (", ".join(f"`{kind}`" for kind in each) for each in (KINDS, TOWER_KINDS))
    return (
        f"All runs: {recipe['max_steps']} steps of {recipe['per_device_train_batch_size']} pairs out of {NUM_ROWS:,}, "
        f"kinds {kinds}; [stage2.yaml](../{recipes}/stage2.yaml) is what they share, "
        f"[variants.yaml](../{recipes}/variants.yaml) what they change.\nThe language model (stage 1) reads the "
        f"problems in words almost without error, and the vision tower has learned to read digits from drawings of "
        f"other kinds ({others}) by cross-entropy, as real towers come pretrained."
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
    places = find_places(args.recipes, args.model, args.output)
    prepare(places, args.model)
    runs = list(plan_runs(places, args.seeds))
    pool = ThreadPoolExecutor(args.jobs)
    # some variants are the same run, and stand in several regimes
    tasks = {run.folder: (execute, run, places) for run in runs}
    tasks |= {run.heldout: (measure_start, run.heldout, places) for run in runs}
    futures = {place: pool.submit(*task) for place, task in tasks.items()}
    try:
        for number, (place, future) in enumerate(futures.items(), 1):
            future.result()
            minutes = (time.monotonic() - start) / 60
            print(f"{minutes:5.1f} min, {number}/{len(futures)}: {Path(place).name}", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # an error ends the study after the runs under way
    write_report(*read_results(runs, places), args.report, describe(args.recipes))
    print(f"The report is in {args.report}.")
