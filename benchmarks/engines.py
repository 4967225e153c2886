"""
A stage-2 step under every engine against DDP: samples per second and peak memory of a rank, in two processes on a CPU.

```bash
python benchmarks/engines.py             # a model of 60M parameters, 8 steps of each engine
python benchmarks/engines.py --steps 4   # a quick look
```

The real script runs under each file of `accelerate_configs`, through the probe of the tests that also tells which
engine really ran. On a CPU the collectives go through memory, so the ratios say what an engine's bookkeeping costs,
not how it uses a network; the resident memory contains Python and the libraries (the line "imports").
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from puma_trl.mini import build_model, build_processor, write_data


ROOT = Path(__file__).parents[1]
ENGINES = ("ddp", "zero2", "zero3_8xa100", "zero3_offload", "fsdp2")
SIZES = {"hidden_size": 768, "num_hidden_layers": 8, "vision_embed_dim": 128, "num_heads": 8}
BATCH_SIZE = 8
IMPORTS = "import resource, puma_trl.run; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


def launch(engine: str, folder: Path, steps: int) -> list[dict]:
    """Runs the steps and returns the facts of both ranks."""
    output = folder / engine
    arguments = {
        "model_name_or_path": folder / "model",
        "dataset_name": folder / "stage2.jsonl",
        "output_dir": output,
        "bf16": False,
        "dtype": "float32",
        "gradient_checkpointing": False,
        "lambda_kl": 0.5,
        "max_steps": steps,
        "optim": "adamw_torch",
        "per_device_train_batch_size": BATCH_SIZE,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
    }
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ROOT / "accelerate_configs" / f"{engine}.yaml"), "--num_processes", "2"]
    command += [str(ROOT / "tests" / "distributed" / "probe.py"), str(folder / f"{engine}-facts")]
    command += ["--fsdp_on_cpu"] if engine == "fsdp2" else []
    command += [str(piece) for key, value in arguments.items() for piece in (f"--{key}", value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{engine} failed:\n{result.stderr[-3000:]}")
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{engine}-facts.*"))]


def main() -> None:
    """Measures and prints all engines."""
    parser = argparse.ArgumentParser(description="Speed and memory of every engine against DDP.")
    parser.add_argument("--steps", type=int, default=8, help="steps of each engine; the first two are not timed")
    args = parser.parse_args()
    imports = int(subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True).stdout)
    print("| engine | wrapper | samples/s | against DDP | peak memory of a rank (MiB) | against DDP |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        processor = build_processor()
        model = build_model("qwen2_vl", processor, **SIZES)
        model.save_pretrained(folder / "model")
        processor.save_pretrained(folder / "model")
        write_data(folder, num_rows=128, num_heldout=2, seed=0, num_proc=1)
        reference = None
        for engine in ENGINES:
            facts = launch(engine, folder, args.steps)
            times = [after - before for before, after in pairwise(facts[0]["times"][2:])]
            speed = 2 * BATCH_SIZE / statistics.median(times)
            memory = max(fact["peak_memory"] for fact in facts)
            reference = reference or (speed, memory)
            print(
                f"| {engine} | {facts[0]['wrapper']} | {speed:.1f} | {speed / reference[0]:.2f}× | {memory / 1024:,.0f} "
                f"| {memory / reference[1]:.2f}× |",
                flush=True,
            )
    print(
        f"\n{model.num_parameters():,} parameters, of which stage 2 trains all; imports alone: {imports / 1024:,.0f} MiB"
    )


if __name__ == "__main__":
    main()
