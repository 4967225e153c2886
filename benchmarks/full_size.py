"""
Recipes at the full size of Qwen2-VL-2B with random weights, on a CPU: whether they run, and memory beside the plan.

```bash
python benchmarks/full_size.py                      # LoRA and full stage 2: about 10 GB of memory, 15 GB of disk
python benchmarks/full_size.py --runs "stage 3"     # about 20 GB of memory
python benchmarks/full_size.py --layers 2           # the same widths, two layers: seconds
```

The real script runs two steps of each recipe as it stands but for the device and the batch, on rows of the mini data.
Memory is the largest resident set from the start of training on, above that of Python and the libraries. Without an
engine, weights that are trained as a whole stay in bf16, so the plan is made for that.
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from common import PROBE, ROOT, environment, memory_of_imports, read_arguments, run, table_head, table_row
from gpu_parts.model import make_processor, read_config

from puma_trl.mini import write_data
from puma_trl.recipe import parse_recipe
from puma_trl.start.memory import Plan, count, empty_model, make_setting, plan


MODEL = "Qwen2-VL-2B"
# name → recipe, data
RUNS = {
    "LoRA, stage 2": ("qwen2_vl/lora/stage2.yaml", "stage2.jsonl"),
    "stage 2": ("stage2.yaml", "stage2.jsonl"),
    "stage 3": ("stage3.yaml", "stage3.jsonl"),
}
SMALL = ("LoRA, stage 2", "stage 2")
ON_CPU = {"use_cpu": True, "tf32": False, "max_steps": 2, "gradient_accumulation_steps": 1, "save_strategy": "no"}
ON_CPU |= {"report_to": "none", "dataloader_num_workers": 0, "dataset_num_proc": 1}
BLOCK = 2**20  # random numbers, over and over: 2 billion different ones take a minute


def write_model(folder: Path, layers: int | None) -> Any:
    """Writes a model with random weights in bf16 and a processor, and returns its configuration."""
    processor = make_processor("qwen2_vl", 8)
    config = read_config(MODEL, processor)
    if layers is not None:
        config.text_config.num_hidden_layers = config.vision_config.depth = layers
        config.text_config.layer_types = config.text_config.layer_types[:layers]
    model = empty_model(config).to(torch.bfloat16).to_empty(device="cpu")
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).mul(0.02).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
            continue
        flat = parameter.data.view(-1)
        for start in range(0, len(flat), BLOCK):
            flat[start : start + BLOCK] = block[: len(flat) - start]
    model.tie_weights()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return config


def measure(recipe: Path, data: Path, folder: Path, rows: int) -> dict[str, Any]:
    """Runs two steps and returns what the probe of the tests wrote."""
    flags = ON_CPU | {"model_name_or_path": folder / "model", "dataset_name": data, "output_dir": folder / "out"}
    flags |= {"per_device_train_batch_size": rows}
    command = [sys.executable, str(PROBE), str(folder / "facts"), "--memory_without_loading", str(recipe)]
    command += [str(piece) for key, value in flags.items() for piece in (f"--{key}", value)]
    run(command, str(recipe), env=environment())
    shutil.rmtree(folder / "out")
    return json.loads((folder / "facts.0").read_text())


def predict(config: Any, recipe: Path, rows: int, largest: dict[str, int]) -> Plan:
    """Returns the plan of a run whose largest micro-batch was so large."""
    _, args, model_args, _ = parse_recipe([str(recipe), "--use_cpu", "true", "--tf32", "false"])
    shape = {"rows": rows, "length": largest["tokens"] / rows, "patches": largest["patches"] / rows}
    setting = replace(make_setting(config, args), answers=largest["answers"] / rows, **shape)
    counts = count(empty_model(config), model_args, args.trainable_parts)
    result = plan(config, counts, setting, model_args.use_peft)
    if not model_args.use_peft:
        result = replace(
            result,
            parameters=2.0 * (counts.trained + counts.frozen),
            gradients=2.0 * counts.trained,
            optimizer=2.0 * 2 * counts.trained,
        )
    return result


def main() -> None:
    """Runs the recipes and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=SMALL)
    parser.add_argument("--rows", type=int, default=2, help="rows of a micro-batch")
    layers = {"choices": range(1, 29), "metavar": "N"}  # as many as the language model has
    parser.add_argument("--layers", type=int, **layers, help="of language model and tower, instead of all")
    args = read_arguments(parser)
    libraries = 1024 * memory_of_imports()
    names = ("recipe", "parameters", "seconds per step", "planned (GB)", "measured (GB)", "planned / measured")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(folder / "data", num_rows=64, num_heldout=2, seed=0, num_proc=1)
        config = write_model(folder / "model", args.layers)
        parameters = sum(parameter.numel() for parameter in empty_model(config).parameters())
        print(table_head(*names))
        for name in args.runs:
            recipe, data = RUNS[name]
            recipe = ROOT / "recipes" / recipe
            facts = measure(recipe, folder / "data" / data, folder, args.rows)
            planned = predict(config, recipe, args.rows, facts["largest"]).total
            measured = 1024 * facts["peak_memory"] - libraries
            seconds = max(after - before for before, after in pairwise(facts["times"]))
            cells = [f"`{recipe.relative_to(ROOT)}`", f"{parameters / 1e9:.2f}B", f"{seconds:.1f}"]
            cells += [f"{planned / 1e9:.1f}", f"{measured / 1e9:.1f}", f"{planned / measured:.2f}"]
            print(table_row(cells), flush=True)


if __name__ == "__main__":
    main()
