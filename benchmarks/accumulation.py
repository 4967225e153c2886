"""
How far gradients in bf16 under DeepSpeed are from those that are added and reduced in fp32.

```bash
python benchmarks/accumulation.py            # 8 micro-batches in each of two processes, ZeRO-2 and ZeRO-3
python benchmarks/accumulation.py --quick    # a tiny model, to see that it runs
```

The forward and backward of every micro-batch are in bf16. What differs is in what numbers the gradients of the
micro-batches are then added, and reduced over the processes: DeepSpeed's own choice is bf16, and the files of
accelerate_configs/deepspeed say fp32. The reference takes the very same gradients and adds them in fp32. The error is
the norm of the difference, relative to the norm of the gradient.
"""

import argparse
import copy
import json
import os
import socket

import torch
from common import ROOT, environment, read_arguments, table_head, table_row, verdict


STAGES = (2, 3)
GOAL = 1e-3
SIZES = {"hidden_size": 256, "num_hidden_layers": 4, "vision_embed_dim": 64, "vision_depth": 1, "num_heads": 8}
QUICK = {"hidden_size": 64, "num_hidden_layers": 2, "vision_embed_dim": 32, "vision_depth": 1, "num_heads": 4}
ROWS, LENGTH = 2, 64


def deepspeed_settings(stage: int, in_fp32: bool, micro_batches: int) -> dict:
    """Returns the settings of accelerate_configs/deepspeed, with or without the two keys that ask for fp32."""
    values = json.loads((ROOT / "accelerate_configs" / "deepspeed" / f"zero{stage}.json").read_text())
    values.pop("train_batch_size")
    values |= {"train_micro_batch_size_per_gpu": ROWS, "gradient_accumulation_steps": micro_batches}
    values |= {"gradient_clipping": 0.0, "bf16": {"enabled": True}, "steps_per_print": float("inf")}
    if not in_fp32:
        values.pop("communication_data_type")
        values.pop("data_types")
    return values


def gradients_in_fp32(model, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the mean gradients of all micro-batches of all processes, added in fp32."""
    sums = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in model.named_parameters()}
    for batch in batches:
        model.zero_grad()
        (model(input_ids=batch, labels=batch).loss / len(batches)).backward()
        for name, value in model.named_parameters():
            if value.grad is not None:
                sums[name] += value.grad.float()
    for value in sums.values():
        torch.distributed.all_reduce(value)
    return {name: value / torch.distributed.get_world_size() for name, value in sums.items()}


def gradients_of_deepspeed(model, batches: list[torch.Tensor], settings: dict) -> dict[str, torch.Tensor]:
    """Returns the gradients that DeepSpeed would step with."""
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    optimizer = torch.optim.AdamW(model.parameters())
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    for batch in batches:
        engine.backward(engine(input_ids=batch, labels=batch).loss)
        if not engine.is_gradient_accumulation_boundary():
            engine.step()
    found = {name: safe_get_full_grad(value) for name, value in engine.module.named_parameters()}
    found = {name: value.float().clone() for name, value in found.items() if value is not None}
    engine.destroy()
    return found


def relative_error(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Returns the norm of the difference of all gradients, relative to the norm of what is wanted."""
    difference = sum((found[name] - wanted[name].view_as(found[name])).square().sum() for name in found)
    return (difference / sum(wanted[name].square().sum() for name in found)).sqrt().item()


def measure(rank: int, args: argparse.Namespace, port: int) -> None:
    """Runs one process; the first one prints the table."""
    import deepspeed

    from puma_trl.mini import build_model, build_processor

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(args.processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    processor = build_processor("qwen2_vl")
    model = build_model("qwen2_vl", processor, **(QUICK if args.quick else SIZES)).to(torch.bfloat16)
    generator = torch.Generator().manual_seed(rank)
    # plain words: no token of pictures
    batches = [torch.randint(200, (ROWS, LENGTH), generator=generator) for _ in range(args.micro_batches)]
    wanted = gradients_in_fp32(copy.deepcopy(model), batches)
    errors = {}
    for stage in STAGES:
        for in_fp32 in (False, True):
            settings = deepspeed_settings(stage, in_fp32, args.micro_batches)
            found = gradients_of_deepspeed(copy.deepcopy(model), batches, settings)
            errors[stage, in_fp32] = relative_error(found, wanted)
    if rank == 0:
        print(table_head("engine", "added and reduced in bf16: error", "in fp32: error"))
        for stage in STAGES:
            print(table_row([f"ZeRO-{stage}", *(f"{errors[stage, in_fp32]:.1e}" for in_fp32 in (False, True))]))
        print("\nGoals\n")
        for stage in STAGES:
            print(verdict(f"error under ZeRO-{stage}, fp32", errors[stage, True], "≤", GOAL, "{:.1e}"))
    torch.distributed.destroy_process_group()


def main() -> None:
    """Starts the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro_batches", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a tiny model")
    args = read_arguments(parser)
    os.environ.update(environment() | {"DS_ACCELERATOR": "cpu"})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(measure, (args, port), args.processes)


if __name__ == "__main__":
    main()
