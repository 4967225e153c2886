"""
Batched generation, sorted by length, against one prompt at a time (how the original project evaluates).

```bash
python benchmarks/generation.py               # 192 prompts with pictures, batches of 32
python benchmarks/generation.py --items 32    # a quick look
```

Both sides answer the same generated problems with the same tiny model through the same code, only the batch size
differs, and their greedy answers are compared. The model never ends a reply, so both sides make equally many tokens. A
third line shows batches in the order of the data.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

import torch
from common import read_arguments, table_head, table_row, verdict
from PIL import Image

from puma_trl.evaluation.local_model import Generator, Prompt
from puma_trl.mini import build_model, build_processor


GOAL = 5.0


def make_prompts(folder: Path, count: int) -> list[Prompt]:
    """Returns prompts of 5 to 120 words with a picture each, in random order."""
    rng = random.Random(0)
    words = "the angle of a triangle and its side with circle line point area find sum".split()
    prompts = []
    for index in range(count):
        path = folder / f"{index}.png"
        size = (28 * rng.randint(2, 6), 28 * rng.randint(2, 6))
        Image.new("RGB", size, tuple(rng.randrange(256) for _ in range(3))).save(path)
        text = " ".join(rng.choices(words, k=rng.randint(5, 120))) + f" {index}?"
        prompts.append(Prompt(text, [str(path)]))
    return prompts


class InOrder(Generator):
    """Batches in the order of the data."""

    def batches(self, prompts):
        """Returns consecutive positions."""
        positions = list(range(len(prompts)))
        return [positions[start : start + self.batch_size] for start in range(0, len(prompts), self.batch_size)]


def measure(generator: Generator, prompts: list[Prompt]) -> tuple[float, list[str]]:
    """Returns the seconds and the replies in the order of the prompts."""
    start = time.perf_counter()
    answers = dict(answer for batch in generator.generate(prompts) for answer in batch)
    return time.perf_counter() - start, [answers[position] for position in range(len(prompts))]


def main() -> None:
    """Measures and prints both sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=192)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    args = read_arguments(parser)
    torch.set_num_threads(args.threads)
    processor = build_processor("qwen2_vl")
    model = build_model("qwen2_vl", processor, seed=0).eval()
    with torch.no_grad():  # never the end token: both sides make equally many tokens
        model.lm_head.weight[processor.tokenizer.eos_token_id] = 0
    sides = {
        "one at a time": Generator(model, processor, 1, args.max_new_tokens),
        "batched, in order": InOrder(model, processor, args.batch_size, args.max_new_tokens),
        "batched, by length": Generator(model, processor, args.batch_size, args.max_new_tokens),
    }
    with tempfile.TemporaryDirectory() as folder:
        prompts = make_prompts(Path(folder), args.items)
        measure(sides["batched, by length"], prompts[: args.batch_size])  # warm-up
        results = {name: measure(generator, prompts) for name, generator in sides.items()}
    slow, expected = results["one at a time"]
    print(f"{args.items} prompts, batches of {args.batch_size}, {args.max_new_tokens} new tokens, ", end="")
    print(f"{args.threads} threads\n")
    print(table_head("way", "seconds", "prompts per second", "one at a time / this", "equal answers"))
    equal = {
        name: sum(reply == gold for reply, gold in zip(replies, expected, strict=True))
        for name, (_, replies) in results.items()
    }
    for name, (seconds, _) in results.items():
        cells = [name, f"{seconds:.2f}", f"{args.items / seconds:.2f}", f"{slow / seconds:.2f}"]
        print(table_row([*cells, f"{equal[name]}/{args.items}"]))
    ratio = slow / results["batched, by length"][0]
    all_equal = equal["batched, by length"] == args.items
    name = "one at a time / batched by length, all answers equal"
    print("\n" + verdict(name, ratio, "≥", GOAL, "{:.2f}", "{:g}", all_equal))


if __name__ == "__main__":
    main()
