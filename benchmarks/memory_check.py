"""
The formula of `puma_trl/start/memory.py` against the memory of two-process runs of the run script.

```bash
python benchmarks/memory_check.py                     # seven runs, some minutes each
python benchmarks/memory_check.py --runs "LoRA, DDP"  # one of them
```

Each run is measured twice, with a model of some hundred megabytes and with a tiny one, and what both take (libraries,
buffers of the launcher) falls out of the difference. Memory is the largest resident set of a rank from the start of
training on; loading is not in it, as it is not on the GPU. Freed tensors go back to the system at once, so that gaps
of the allocator do not count.
"""

import argparse
import tempfile
from pathlib import Path

from common import launch, table_head, table_row
from transformers import AutoConfig

from puma_trl.mini import build_model, build_processor, write_data
from puma_trl.recipe import parse_recipe
from puma_trl.start.memory import REDUCE_BUCKET, Setting, count, empty_model, plan
from puma_trl.start.shipped import zero_stage


SIZES = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 1, "vision_embed_dim": 32, "vision_depth": 1},
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 10,
        "vision_embed_dim": 512,
        "vision_depth": 6,
        "num_heads": 8,
    },
}
VOCABULARY = 16_384
BATCH_SIZE = 8
TOWERS = {"trainable_parts": "aligner,vision_tower_low,vision_tower_high"}
LORA = {"use_peft": True, "lora_r": 64, "lora_alpha": 128}
# name → accelerate configuration, options
RUNS = {
    "full, DDP, checkpointing": ("ddp", {"gradient_checkpointing": True}),
    "full, ZeRO-3, checkpointing": ("zero3_8xa100", {"gradient_checkpointing": True}),
    "stage 2, DDP": ("ddp", TOWERS | {"gradient_checkpointing": False}),
    "stage 2, ZeRO-2": ("zero2_8xa100", TOWERS | {"gradient_checkpointing": False}),
    "stage 2, ZeRO-3": ("zero3_8xa100", TOWERS | {"gradient_checkpointing": False}),
    "LoRA, DDP": ("ddp", LORA | {"gradient_checkpointing": False}),
    "QLoRA, DDP": (
        "ddp",
        LORA | {"load_in_4bit": True, "use_bnb_nested_quant": True, "gradient_checkpointing": False},
    ),
}
GOAL = 0.15
# what is freed goes back to the system at once
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}


def measure(engine: str, folder: Path, options: dict) -> list[dict]:
    """Runs two optimizer steps of two micro-batches in two processes; returns the facts of both ranks."""
    facts = folder / f"facts-{len(list(folder.iterdir()))}"
    arguments = {
        "model_name_or_path": folder / "model",
        "dataset_name": folder.parent / "stage2.jsonl",
        "output_dir": facts.with_suffix(".out"),
        "gradient_accumulation_steps": 2,
        "max_steps": 2,
        "optim": "adamw_torch_fused",
        "per_device_train_batch_size": BATCH_SIZE,
    }
    return launch(engine, facts, arguments | options, ["--memory_without_loading"], ALLOCATOR)


def predict(folder: Path, engine: str, options: dict, shape: dict[str, int]):
    """Returns the plan of a run whose largest micro-batch had these numbers of tokens, patches and answer tokens."""
    config = AutoConfig.from_pretrained(folder / "model")
    argv = [f"--{key}={value}" for key, value in options.items()]
    argv += ["--model_name_or_path=x", "--dataset_name=x", "--output_dir=x", "--use_cpu=true", "--bf16=false"]
    _, args, model_args, _ = parse_recipe(argv)
    counts = count(empty_model(config), model_args, args.trainable_parts or ["all"])
    setting = Setting(
        width=4,
        processes=2,
        zero=zero_stage(engine),
        pairs=True,
        rows=BATCH_SIZE,
        length=shape["tokens"] / BATCH_SIZE,
        patches=shape["patches"] / BATCH_SIZE,
        answers=shape["answers"] / BATCH_SIZE,
        checkpointing=args.gradient_checkpointing,
        optimizer=8,
        bucket=min(counts.trained, REDUCE_BUCKET),  # memory of a CPU is taken when it is written to
    )
    return plan(config, counts, setting, model_args.use_peft)


def main() -> None:
    """Prints the formula beside the measured memory."""
    parser = argparse.ArgumentParser(description="The memory plan against measured runs.")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS, help="all by default")
    args = parser.parse_args()
    processor = build_processor()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(folder, num_rows=64, num_heldout=2, seed=0, num_proc=1)
        for name, sizes in SIZES.items():
            model = build_model("qwen2_vl", processor, **sizes)
            model.resize_token_embeddings(VOCABULARY)
            model.save_pretrained(folder / name / "model")
            processor.save_pretrained(folder / name / "model")
            print(f"{name}: {model.num_parameters() / 1e6:.1f}M parameters")
        print("\n" + table_head("run", "predicted (MB)", "measured (MB)", "predicted / measured", ""))
        for name in args.runs:
            engine, options = RUNS[name]
            predicted, measured = {}, {}
            for size in SIZES:
                ranks = measure(engine, folder / size, options)
                measured[size] = 1024 * max(rank["peak_memory"] for rank in ranks)
                shape = {key: max(rank["largest"][key] for rank in ranks) for key in ranks[0]["largest"]}
                predicted[size] = predict(folder / size, engine, options, shape)
            difference = predicted["large"].total - predicted["tiny"].total
            ratio = difference / (measured["large"] - measured["tiny"])
            cells = [name, f"{difference / 1e6:,.0f}", f"{(measured['large'] - measured['tiny']) / 1e6:,.0f}"]
            cells += [f"{ratio:.2f}", "within" if abs(ratio - 1) <= GOAL else "missed"]
            print(table_row(cells), flush=True)
    print(f"\nThe goal is a ratio within {1 - GOAL:.2f} and {1 + GOAL:.2f}.")


if __name__ == "__main__":
    main()
