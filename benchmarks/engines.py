"""
A stage-2 step under every engine against DDP: samples per second and peak memory of a rank, in two processes on a CPU.

```bash
python benchmarks/engines.py             # a model of 73M parameters, 8 steps of each engine
python benchmarks/engines.py --steps 4   # a quick look
```

The real script runs under each file of `accelerate_configs`, through the probe of the tests that also tells which
engine really ran. On a CPU the collectives go through memory, so the ratios say what an engine's bookkeeping costs,
not how it uses a network; the resident memory contains Python and the libraries (the line "imports").
"""

import argparse
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path

from common import launch, memory_of_imports, read_arguments, table_head, table_row

from puma_trl.mini import build_model, build_processor, write_data


ENGINES = ("ddp", "zero2_8xa100", "zero3_8xa100", "zero3_offload", "fsdp2")
SIZES = {"hidden_size": 768, "num_hidden_layers": 8, "vision_embed_dim": 128, "num_heads": 8}
BATCH_SIZE = 8


def measure(engine: str, folder: Path, steps: int) -> list[dict]:
    """Runs the steps and returns the facts of both ranks."""
    options = {
        "model_name_or_path": folder / "model",
        "dataset_name": folder / "stage2.jsonl",
        "output_dir": folder / engine,
        "gradient_checkpointing": False,
        "max_steps": steps,
        "optim": "adamw_torch",
        "per_device_train_batch_size": BATCH_SIZE,
    }
    flags = ["--fsdp_on_cpu"] if engine == "fsdp2" else []
    return launch(engine, folder / f"{engine}-facts", options, flags)


def main() -> None:
    """Measures and prints all engines."""
    parser = argparse.ArgumentParser(description="Speed and memory of every engine against DDP.")
    parser.add_argument("--steps", type=int, default=8, help="steps of each engine; the first two are not timed")
    args = read_arguments(parser, steps=3)
    imports = memory_of_imports()
    memory_name = "peak memory of a rank (MiB)"
    print(table_head("engine", "wrapper", "samples/s", "against DDP", memory_name, "against DDP"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        processor = build_processor()
        model = build_model("qwen2_vl", processor, **SIZES)
        model.save_pretrained(folder / "model")
        processor.save_pretrained(folder / "model")
        write_data(folder, num_rows=128, num_heldout=2, seed=0, num_proc=1)
        reference = None
        for engine in ENGINES:
            facts = measure(engine, folder, args.steps)
            times = [after - before for before, after in pairwise(facts[0]["times"][2:])]
            speed = 2 * BATCH_SIZE / statistics.median(times)
            memory = max(fact["peak_memory"] for fact in facts)
            reference = reference or (speed, memory)
            cells = [engine, facts[0]["wrapper"], f"{speed:.1f}", f"{speed / reference[0]:.2f}×"]
            cells += [f"{memory / 1024:,.0f}", f"{memory / reference[1]:.2f}×"]
            print(table_row(cells), flush=True)
    print(f"\n{model.num_parameters():,} parameters, of which stage 2 trains all; ", end="")
    print(f"imports alone: {imports / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
