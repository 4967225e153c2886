"""
Share of padding in the batches of stage 2: in random order, with transformers' length-grouped sampling, and with
`padding_free`.

```bash
python benchmarks/padding.py
```

Prompts and answers have log-normal lengths (medians of 60 and 160 tokens, standard deviations 0.5 and 0.6 of the
logarithm), as written text has, and rows above `max_length` 2048 are out. Pictures cost either 576 tokens each, as in
the models of Math-PUMA, whose towers read one fixed size, or 64 to 512, as in models that read any size. As
`load_data` does, a row is measured by both its sides together. The sampler is the trainer's own, with the
`train_sampling_strategy` of the recipes; each side of a batch is padded to its longest row, or its rows are laid one
behind the other by what the collator does it with, and the share is what the trainer logs as `padding_share`.
"""

import argparse
import random
import tempfile
from typing import Any

import torch
from common import read_arguments, table_head, table_row, verdict
from datasets import Dataset

from puma_trl.config import PumaKLConfig
from puma_trl.data.padding_free import line_up
from puma_trl.mini import build_model, build_processor
from puma_trl.train.trainer import PumaKLTrainer


GOAL = 0.01
# tokens of the smallest and of the largest picture
PICTURES = {"one fixed size": (576, 576), "any size": (64, 512)}
MAX_LENGTH = 2048


def make_rows(count: int, picture: tuple[int, int]) -> list[dict]:
    """Returns rows with the number of tokens on either side; everything else is empty."""
    rng = random.Random(0)
    rows = []
    while len(rows) < count:
        text, answer = rng.lognormvariate(4.1, 0.5), rng.lognormvariate(5.1, 0.6)
        teacher, student = int(text + answer), int(0.4 * text + rng.randint(*picture) + answer)
        if max(teacher, student) <= MAX_LENGTH:
            sides = {f"{name}{suffix}": "" for name in ("instruction", "output") for suffix in ("", "_2")}
            row = sides | {"row_id": str(len(rows)), "image_url": [], "image_url_2": []}
            # by which checked rows are known
            row |= {"num_answer_tokens": int(answer), "length": teacher + student}
            rows.append(row | {"teacher": teacher, "student": student})
    return rows


def padding_share(rows: list[dict], order: list[int], batch_size: int, config: Any = None) -> float:
    """Returns the share of positions that hold no token, both sides of all batches together."""
    read = slots = 0
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        for side in ("teacher", "student"):
            lengths = torch.tensor([rows[position][side] for position in batch])
            mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
            inputs = {"input_ids": mask, "attention_mask": mask, "labels": mask}
            if config is not None:
                inputs = line_up(inputs, config)
            read, slots = read + int(inputs["input_ids"].sum()), slots + inputs["input_ids"].numel()
    return 1 - read / slots


def measure(args: argparse.Namespace, rows: list[dict], strategy: str, padding_free: bool = False) -> float:
    """Returns the padding share in the order of the trainer's sampler."""
    processor = build_processor("qwen2_vl")
    model = build_model("qwen2_vl", processor)
    with tempfile.TemporaryDirectory() as folder:
        config = PumaKLConfig(
            output_dir=folder,
            bf16=False,
            use_cpu=True,
            max_length=None,
            max_steps=1,
            per_device_train_batch_size=args.batch_size,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            train_sampling_strategy=strategy,
            report_to="none",
        )
        trainer = PumaKLTrainer(
            model,
            config,
            train_dataset=Dataset.from_list(rows),
            processing_class=processor,
        )
        order = list(trainer.get_train_dataloader().batch_sampler.sampler)
        return padding_share(rows, order, args.batch_size, model.config if padding_free else None)


def main() -> None:
    """Measures both orders and padding-free batches, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    args = read_arguments(parser)
    print(f"{args.rows:,} pairs, batch {args.batch_size}, accumulation {args.gradient_accumulation_steps}\n")
    print(table_head("pictures", "random", "grouped", "padding-free"))
    goals = []
    for name, picture in PICTURES.items():
        rows = make_rows(args.rows, picture)
        shares = [measure(args, rows, strategy) for strategy in ("random", "group_by_length")]
        shares.append(measure(args, rows, "random", padding_free=True))
        print(table_row([name, *(f"{share:.1%}" for share in shares)]))
        what = f"padding share, padding-free, pictures of {name}"
        goals.append(verdict(what, shares[-1], "≤", GOAL, "{:.1%}", "{:.0%}"))
    print("\nGoals\n\n" + "\n".join(goals))


if __name__ == "__main__":
    main()
