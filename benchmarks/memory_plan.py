"""
What fits where: the memory of a GPU that each recipe needs, from the real model configurations on the meta device.

```bash
python benchmarks/memory_plan.py                          # every full, LoRA and QLoRA recipe, four Qwen models
python benchmarks/memory_plan.py --models Qwen2-VL-7B     # one of benchmarks/configs
python benchmarks/memory_plan.py --rows                   # how many rows of each recipe a card takes
python benchmarks/memory_plan.py --teacher Qwen2-VL-7B    # stage 2 with a second model: one of those, or `frozen`
```

The formula, and what it takes rows to be, stands in `puma_trl/start/memory.py`; `benchmarks/memory_check.py` compares
it with runs. Nothing is loaded. Sizes are in GB of 10^9 bytes, as the makers of GPUs count within a few per cent.
"""

import argparse
import functools
import re
from dataclasses import asdict, replace
from pathlib import Path

from common import CONFIGS as FOLDER
from common import ROOT, table_head, table_row
from gpu_parts.model import read_config

from puma_trl.recipe import parse_recipe
from puma_trl.start.memory import FULL, Plan, count, count_teacher, empty_model, make_setting, plan_setting
from puma_trl.start.shipped import zero_stage


CONFIGS = sorted(path.stem for path in FOLDER.glob("Qwen*.json"))
CARDS = {"A100 80 GB": 80, "A100 40 GB": 40, "24 GB": 24}
ROWS = [2**power for power in range(7)]  # of a micro-batch
RECIPES = [
    ROOT / "recipes" / folder / f"stage{stage}.yaml"
    for folder in (".", "qwen2_vl/lora", "qwen2_vl/qlora")
    for stage in (1, 2, 3)
]


def engine_of(recipe: Path) -> tuple[int, int]:
    """Returns the stage of ZeRO, 0 without DeepSpeed, and the number of processes that a recipe's header names."""
    engine = re.search(r"accelerate_configs/(\w+)\.yaml", recipe.read_text(encoding="utf-8"))[1]
    return zero_stage(engine), 1 if engine == "single_gpu" else 8


def plan_recipe(name: str, recipe: Path, rows: int | None = None, teacher: str | None = None) -> Plan:
    """Returns the plan of a recipe, or of it with so many rows, with the model of `benchmarks/configs/<name>.json`."""
    config, counts, setting, is_adapted = describe_recipe(name, recipe, teacher)
    return plan_setting(config, counts, setting if rows is None else replace(setting, rows=rows), is_adapted)


@functools.cache
def describe_recipe(name: str, recipe: Path, teacher: str | None = None) -> tuple:
    """Returns configuration, counts and setting of a recipe with a model, and whether adapters train."""
    config = read_config(name)
    argv = [str(recipe), "--use_cpu", "true", "--bf16", "false", "--tf32", "false"]
    if teacher in CONFIGS:
        argv += ["--teacher", "model", "--teacher_model_name_or_path", teacher]
    elif teacher:
        argv += ["--teacher", teacher]
    _, args, model_args, _ = parse_recipe(argv)
    args.teacher_load_in_4bit = teacher in CONFIGS and model_args.load_in_4bit
    counts = count(empty_model(config), model_args, args.trainable_parts)
    second = count_teacher(args, counts, model_args.use_peft, read_config(teacher) if teacher in CONFIGS else None)
    zero, processes = engine_of(recipe)
    setting = make_setting(config, args, zero=zero, processes=processes, teacher=second)
    return config, counts, setting, model_args.use_peft


def fitting_rows(name: str, recipe: Path, size: float, teacher: str | None) -> int:
    """Returns the largest number of rows of a micro-batch, 1, 2, 4 … 64, for which a card has room."""
    fits = [rows for rows in ROWS if plan_recipe(name, recipe, rows, teacher).total / 1e9 <= FULL * size]
    return max(fits, default=0)


def print_rows(models: list[str], recipes: list[Path], teacher: str | None) -> None:
    """Prints how many rows each recipe can have on each card, of one micro-batch."""
    sizes = sorted(CARDS.values())
    print(table_head("recipe", "engine", *(f"{name}, {size} GB" for name in models for size in sizes)))
    for recipe in recipes:
        zero, _ = engine_of(recipe)
        cells = [fitting_rows(name, recipe, size, teacher) for name in models for size in sizes]
        engine = f"ZeRO-{zero}" if zero else "one GPU"
        print(table_row([f"`{recipe.relative_to(ROOT)}`", engine, *(str(rows or "–") for rows in cells)]), flush=True)


def print_plans(models: list[str], recipes: list[Path], teacher: str | None) -> None:
    """Prints what each recipe needs, part by part, and then in short which card has room for it."""
    print(table_head("recipe", "GPUs", "rows", "model", *Plan.__annotations__, "**GB per GPU**"))
    short = [table_head("recipe", "engine", "rows", *models)]
    for recipe in recipes:
        zero, gpus = engine_of(recipe)
        totals = []
        for name in models:
            rows = describe_recipe(name, recipe, teacher)[2].rows
            result = plan_recipe(name, recipe, teacher=teacher)
            totals.append(result.total / 1e9)
            parts = [f"{value / 1e9:.1f}" for value in asdict(result).values()]
            start = [f"`{recipe.relative_to(ROOT)}`", str(gpus), str(rows), name]
            print(table_row([*start, *parts, f"**{totals[-1]:.1f}**"]), flush=True)
        start = [f"`{recipe.relative_to(ROOT)}`", f"ZeRO-{zero}, {gpus} GPUs" if zero else "one GPU", str(rows)]
        short.append(table_row([*start, *(f"{total:.1f} ({smallest_card(total)})" for total in totals)]))
    print("\nGB per GPU, and the smallest card with room for it:\n\n" + "\n".join(short))


def smallest_card(size: float) -> str:
    """Returns the name of the smallest card with room for so many GB, 5 % of it left free."""
    return min((card for card in CARDS if size <= FULL * CARDS[card]), key=CARDS.get, default="none of them")


def main() -> None:
    """Prints the plans."""
    parser = argparse.ArgumentParser(description="Memory per GPU of every recipe.")
    parser.add_argument("--models", nargs="+", choices=CONFIGS, default=CONFIGS, help="files of benchmarks/configs")
    parser.add_argument("--rows", action="store_true", help="print how many rows each card takes")
    words = "a second model that teaches in stage 2, in 4 bits beside QLoRA: one of them, or `frozen`"
    parser.add_argument("--teacher", choices=[*CONFIGS, "frozen"], help=words)
    args = parser.parse_args()
    recipes = [recipe for recipe in RECIPES if args.teacher is None or recipe.stem == "stage2"]
    (print_rows if args.rows else print_plans)(args.models, recipes, args.teacher)


if __name__ == "__main__":
    main()
