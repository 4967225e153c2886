"""A checkpoint as Trainer and we write it, in miniature."""

import json

import torch
from safetensors.torch import save_file

from puma_trl.train.compare import describe_settings
from puma_trl.train.marker import write_marker


def write_checkpoint(folder, args=None, **facts):
    """Writes `checkpoint-<step>` with all kinds of files that checkpoints have, and its marker."""
    weights = {"a": torch.arange(1000.0)}
    (folder / "ema_teacher").mkdir(parents=True)
    for name in ("model.safetensors", "ema_teacher/model.safetensors"):
        save_file(weights, folder / name)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"):
        torch.save(weights, folder / name)
    step = int(folder.name.split("-")[1])
    (folder / "config.json").write_text('{"model_type": "qwen2_vl"}')
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": 8}))
    defaults = {"step": step, "total_steps": 8, "num_processes": 1, "batch_size": 2, "rows_per_step": 2, "resumed": []}
    defaults |= {"settings": {}, "weights": {}, "data": {}}
    if args is not None:
        defaults["settings"] = describe_settings(args)
    write_marker(folder, defaults | facts)
    return folder
