"""
Seconds and extra peak memory of a whole stage-2 step in the real trainer, against the passes that it cannot avoid.

```bash
python benchmarks/step.py            # about five minutes on two cores
python benchmarks/step.py --quick    # a small vocabulary, to see that it runs
```

- `step`: `PumaKLTrainer` with `use_kl`, aligner and vision tower trained, from a collated batch to the end of the
  optimizer's step.
- `passes`: teacher forward, student forward, backward of the logits' sum; logits at the answer positions alone.
- `passes, all logits`: the same with logits at every position, as the model's own forward computes them.
- `step, plain loss`: `step` with the reference loss on the logits of both sides instead of the fused one.
- `sft`: TRL's step on the student side only, with the same trained parts.
- `padded` and `padding-free`: `step` on eight rows of varied lengths, with padding and sdpa, and without padding and
  with `varlen`; the vocabulary is cut to 8,000 there, so that layers and tower are nearly all of the step, as they
  are in large models.

All take the same batch of generated pairs with a picture on the vision-rich side. Every variant runs in a process of
its own. Memory is the peak of the resident set above that of the model, optimizer and batch.
"""

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from common import PARTS, WORDS, read_arguments, table_head, table_row, verdict
from loss import memory


VARIED = ["padded", "padding-free"]
VARIANTS = ["step", "passes", "passes, all logits", "step, plain loss", "sft", *VARIED]
GOAL = 1.10
PADDING_FREE_GOAL = 0.75


def make_rows(args: argparse.Namespace, folder: Path) -> Any:
    """Returns a dataset of one batch of pairs: a long text-rich side, a short vision-rich side with a picture."""
    from datasets import Dataset
    from PIL import Image

    rng = random.Random(0)
    rows = []
    for index in range(args.batch_size):
        path = folder / f"{index}.png"
        factor = math.exp(args.spread * rng.gauss(0, 1))
        # every word is a token or more, and a picture of twice the width has four times the tokens
        width = round(args.image_size * factor**0.5)
        Image.new("RGB", (width, width), tuple(rng.randrange(256) for _ in range(3))).save(path)
        answer = " ".join(rng.choices(WORDS, k=round(args.answer_words * factor)))
        row = {"row_id": str(index), "image_url": [], "image_url_2": [{"bytes": None, "path": str(path)}]}
        row |= {"instruction": " ".join(rng.choices(WORDS, k=round(args.prompt_words * factor))), "output": answer}
        rows.append(row | {"instruction_2": " ".join(rng.choices(WORDS, k=10)), "output_2": answer})
    return Dataset.from_list(rows)


def make_trainer(
    args: argparse.Namespace, rows: Any, folder: Path, use_kl: bool, padding_free: bool = False, **settings: Any
) -> Any:
    """Returns the trainer over a batch of rows, each of whose epochs is one step."""
    from puma_trl.config import PumaKLConfig
    from puma_trl.mini import build_model, build_processor
    from puma_trl.models.families import get_family
    from puma_trl.models.parts import set_trainable_parts
    from puma_trl.train.trainer import PumaKLTrainer

    processor = build_processor("qwen2_vl")
    processor.image_processor.size["longest_edge"] = max(
        args.image_size**2, processor.image_processor.size["longest_edge"] if not args.spread else 10**7
    )
    model = build_model(
        "qwen2_vl",
        processor,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.layers,
        vision_embed_dim=128,
        vision_depth=4,
        num_heads=8,
        tie_word_embeddings=True,
    )
    model.resize_token_embeddings(args.vocab, mean_resizing=False)
    set_trainable_parts(model, PARTS, get_family(model.config))
    if padding_free:
        model.set_attn_implementation("varlen")
    config = PumaKLConfig(
        output_dir=str(folder / "out"),
        use_kl=use_kl,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        max_length=None,
        max_steps=args.repeats + 1,
        padding_free=padding_free,
        per_device_train_batch_size=args.batch_size,
        logging_steps=args.repeats + 1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **settings,
    )
    return PumaKLTrainer(model, config, train_dataset=rows, processing_class=processor)


class Watch:
    """Times of the runs after the first, and their peak of memory above what there was before them."""

    def __init__(self):
        self.seconds, self.num_runs, self.before = [], 0, 0

    def start(self) -> None:
        """Begins a run; the first one warms up (it compiles, and makes the optimizer's state)."""
        if self.num_runs == 1:
            self.before = memory("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        self.started = time.perf_counter()

    def stop(self) -> None:
        """Ends a run."""
        if self.num_runs:
            self.seconds.append(time.perf_counter() - self.started)
        self.num_runs += 1

    def result(self) -> dict[str, float]:
        """Returns the median of the seconds, and bytes."""
        return {"seconds": statistics.median(self.seconds), "memory": memory("VmHWM") - self.before}


def measure_trainer(trainer: Any, watch: Watch) -> None:
    """Trains, watching each step from the collated batch to the end of the optimizer's step."""
    from transformers import TrainerCallback

    class WatchSteps(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            watch.start()

        def on_step_end(self, *args, **kwargs):
            watch.stop()

    trainer.add_callback(WatchSteps())
    trainer.train()


def measure_passes(args: argparse.Namespace, trainer: Any, watch: Watch, all_logits: bool) -> None:
    """Runs the passes alone on the trainer's batch."""
    from puma_trl.data.collator import split_sides
    from puma_trl.data.padding_free import find_answers
    from puma_trl.step.forward import answer_hidden_states

    student, teacher = sides = split_sides(next(iter(trainer.get_train_dataloader())))
    for side in sides:
        for name in ("row_id", "same_images", "blank_tokens"):
            side.pop(name, None)
    answers, teacher_answers = (find_answers(side.pop("labels")) for side in sides)
    model = trainer.model.train()

    def logits(inputs: dict[str, Any], positions: torch.Tensor) -> torch.Tensor:
        if all_logits:
            return model.lm_head(model.base_model(**inputs, use_cache=False).last_hidden_state)
        return model.lm_head(answer_hidden_states(model, inputs, positions))

    for _ in range(args.repeats + 1):
        watch.start()
        with torch.no_grad():
            logits(teacher, teacher_answers)
        logits(student, answers).sum().backward()
        watch.stop()
        model.zero_grad()


def plain_loss(student_hidden, teacher_hidden, weight, labels, *, num_items, **settings):
    """Stands in for `fused_puma_loss`: the reference on the logits of both sides, without the metrics."""
    from puma_trl.step.reference import puma_loss

    with torch.no_grad():
        teacher_logits = teacher_hidden @ weight.T
    names = ("alpha_kl", "lambda_kl", "temp_kl", "standardize_logits")
    kept = {name: settings[name] for name in names}
    loss = puma_loss(student_hidden @ weight.T, teacher_logits, labels, num_items=num_items, **kept)
    none = torch.zeros(())
    sums = dict.fromkeys(("teacher_ce", "entropy", "correct", "teacher_correct"), none)
    sums |= {name: getattr(loss, name).detach() for name in ("kl", "forward_kl", "reverse_kl", "ce")}
    return SimpleNamespace(loss=loss.loss, num_tokens=none + len(labels), **sums)


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Measures one variant in this process."""
    from puma_trl.step import forward

    variant, watch = args.variants[0], Watch()
    with tempfile.TemporaryDirectory() as folder:
        rows = make_rows(args, Path(folder))
        trainer = make_trainer(args, rows, Path(folder), variant != "sft", variant == "padding-free")
        if variant.startswith("passes"):
            measure_passes(args, trainer, watch, all_logits=variant != "passes")
        else:
            if variant == "step, plain loss":
                forward.fused_puma_loss = plain_loss
            measure_trainer(trainer, watch)
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    padding = next((logs["padding_share"] for logs in trainer.state.log_history if "padding_share" in logs), None)
    return watch.result() | {"parameters": parameters, "padding": padding}


def measure_apart(args: argparse.Namespace, variant: str, script: str = "step.py") -> dict[str, float]:
    """Measures one variant of a script in a process of its own."""
    names = ("hidden_size", "layers", "vocab", "batch_size", "image_size", "prompt_words", "answer_words", "spread")
    names += ("repeats",)
    command = [sys.executable, str(Path(__file__).with_name(script)), "--measure", "--variants", variant]
    command += [part for name in names for part in (f"--{name}", str(getattr(args, name)))]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{process.stderr}")
    return json.loads(process.stdout.splitlines()[-1])


def vary(args: argparse.Namespace) -> argparse.Namespace:
    """Returns the sizes of the batch of varied lengths."""
    changed = {"spread": 0.18, "batch_size": 8, "vocab": 8_000}
    changed |= {} if args.quick else {"image_size": 448, "prompt_words": 400}
    return argparse.Namespace(**vars(args) | changed)


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Adds the options that make the model and its batch."""
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12, help="Layers of the language model.")
    parser.add_argument("--vocab", type=int, default=151_936, help="Size of the vocabulary V.")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--image_size", type=int, default=280, help="Width and height of the pictures.")
    parser.add_argument("--prompt_words", type=int, default=60, help="Words of the text-rich prompt.")
    parser.add_argument("--answer_words", type=int, default=60)
    parser.add_argument("--spread", type=float, default=0.0, help="Deviation of the logarithm of rows' lengths.")
    parser.add_argument("--repeats", type=int, default=3, help="Timed steps of each variant; the median counts.")


def main() -> None:
    """Measures every variant and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--quick", action="store_true", help="A small model, vocabulary and batch.")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = read_arguments(parser, spread=0)
    if args.quick:
        args.hidden_size, args.layers, args.vocab, args.batch_size, args.image_size = 64, 2, 20_000, 2, 56
        args.repeats = 2
    if args.measure:
        print(json.dumps(measure(args)))
        return
    results: dict[str, dict[str, float]] = {}
    for variant in args.variants:
        results[variant] = measure_apart(vary(args) if variant in VARIED else args, variant)
    first: Any = next(iter(results.values()))
    print(
        f"{first['parameters'] / 1e6:.0f}M parameters, V {args.vocab:,}, batch {args.batch_size}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    print(table_head("variant", "seconds", "step / this", "extra peak MB", "step / this"))
    step: Any = results.get("step", first)
    for variant, result in results.items():
        if variant in VARIED:
            continue
        cells = [f"{result['seconds']:.2f}", f"{step['seconds'] / result['seconds']:.2f}"]
        cells += [f"{result['memory'] / 1e6:.0f}", f"{step['memory'] / result['memory']:.2f}"]
        print(table_row([variant, *cells]))
    if set(VARIED) <= results.keys():
        print("\n" + table_head("eight rows of varied lengths", "padding", "seconds", "extra peak MB"))
        for variant in VARIED:
            result = results[variant]
            cells = [f"{result['padding']:.1%}", f"{result['seconds']:.2f}", f"{result['memory'] / 1e6:.0f}"]
            print(table_row([variant, *cells]))
    print("\nGoals\n")
    for variant in ("passes", "passes, all logits"):
        if variant in results:
            ratio = step["seconds"] / results[variant]["seconds"]
            print(verdict(f"time, step / ({variant})", ratio, "≤", GOAL))
    if set(VARIED) <= results.keys():
        padded, free = (results[variant]["seconds"] for variant in VARIED)
        print(verdict("time, padding-free / padded", free / padded, "≤", PADDING_FREE_GOAL))


if __name__ == "__main__":
    main()
