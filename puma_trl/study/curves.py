"""
The pictures of docs/training.md: the curves of a healthy run of stage 2, of one that collapses, and of one whose
teacher is worse than its student.

```bash
python -m puma_trl.study.curves --mini outputs/mini --output outputs/curves --docs docs
```

takes the mini model and what stage 1 made of it. Runs that are there already are drawn again only.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..entry import Parser, run_command  # before the libraries that it quietens


# isort: split
from ..errors import PumaError
from ..record.curves import draw_curves


# Picture → folder of the model that the run starts from, and what it changes in recipes/mini/stage2.yaml
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "healthy": ("stage1", {"max_steps": 300}),
    # nothing holds the teacher: it is the model that is trained to agree with it, language model included
    "collapsed": ("stage1", {"max_steps": 120, "lambda_kl": 1.0, "trainable_parts": "all"}),
    # stage 1 is left out, so the teacher knows no answer
    "teacher_worse": ("model", {"max_steps": 60, "per_device_train_batch_size": 8}),
}
SHARED = {"logging_steps": 10, "save_strategy": "no", "disable_tqdm": True}


def train(name: str, mini: Path, recipe: Path, output: Path) -> None:
    """
    Trains one run, unless it is there.

    Args:
        name (`str`):
            One of `RUNS`.
        mini (`Path`):
            Folder that `puma-trl mini` and stage 1 have written.
        recipe (`Path`):
            The recipe of stage 2.
        output (`Path`):
            Folder of the run.

    Raises:
        PumaError: if it fails.
    """
    if (output / "trainer_state.json").exists():
        return
    start, changes = RUNS[name]
    places = {"model_name_or_path": mini / start, "dataset_name": mini / "data" / "stage2.jsonl", "output_dir": output}
    flags = [str(piece) for key, value in (places | SHARED | changes).items() for piece in (f"--{key}", value)]
    command = [sys.executable, "-m", "puma_trl.run", str(recipe), *flags]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no error was printed"])[-1]
        raise PumaError(f"The run `{name}` in {output} failed: {last}")


def main() -> None:
    """Trains the runs and draws their curves."""
    parser = Parser(prog="python -m puma_trl.study.curves", description="Pictures of three runs.")
    parser.add_argument("--mini", type=Path, default=Path("outputs/mini"), help="folder of the mini model and stage 1")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/mini/stage2.yaml"), help="recipe of stage 2")
    parser.add_argument("--output", type=Path, default=Path("outputs/curves"), help="folder of the runs")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the pictures")
    args = parser.parse_args()
    for name in RUNS:
        train(name, args.mini, args.recipe, args.output / name)
        state = json.loads((args.output / name / "trainer_state.json").read_text(encoding="utf-8"))
        draw_curves(state["log_history"], args.docs / f"curves_{name}.png")


if __name__ == "__main__":
    run_command(main)
