"""
What a stage-2 step costs whose answers the student samples, beside one whose answers are given.

```bash
python benchmarks/on_policy.py            # about three minutes on two cores
python benchmarks/on_policy.py --quick    # a small vocabulary, to see that it runs
```

Model, batch and trainer are those of `step` in `benchmarks/step.py`, but all rows have one answer, and sampled answers
are as long as that; `on_policy_share` is 0 or 1. The clock runs from the collated batch, whose answers are not yet
sampled, to the end of the optimizer's step:

- `generation`: all that puts the student's answers into the batch.
- `both forwards`: teacher and student up to the hidden states that predict the answers.
- `loss and backward`: the loss from these, and the backward pass through head and student.
- `whole step`: these, and the optimizer's.

Either share is measured in a process of its own. Memory is the peak of the resident set above that of the model,
optimizer and batch; logits of one side alone would be N × V floats more, for N answer tokens of the batch. Processor
time is that of all threads, which other work on the machine changes less than the clock.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import step
import torch
from common import table_head, table_row, verdict
from loss import memory


SHARES = ["0", "1"]
STEP_PARTS = ["generation", "both forwards", "loss and backward"]
# peak of a sampled step above model, optimizer and batch, against the logits of one side
GOAL = 1.0


class WatchParts(step.Watch):
    """Besides, seconds of the parts of a run, its processor time, and the peak of memory in sampling."""

    def __init__(self):
        super().__init__()
        self.parts, self.of_runs, self.num_logits, self.sampling_peak = {}, [], 0, 0

    def start(self) -> None:
        """Begins a run."""
        self.parts = dict.fromkeys(STEP_PARTS, 0.0)
        self.started_cpu = time.process_time()
        super().start()

    def stop(self) -> None:
        """Ends a run."""
        super().stop()
        self.of_runs.append(self.parts | {"processor": time.process_time() - self.started_cpu})

    def timed(self, function: Callable, part: str) -> Callable:
        """Returns a function that does the same and adds its seconds to a part."""

        def call(*args, **kwargs):
            started = time.perf_counter()
            result = function(*args, **kwargs)
            self.parts[part] += time.perf_counter() - started
            if part == "generation" and self.num_runs == 1:  # before any other part since the peak was forgotten
                self.sampling_peak = memory("VmHWM")
            return result

        return call

    def result(self) -> dict[str, float]:
        """Returns medians of seconds, and bytes."""
        parts = {name: statistics.median(run[name] for run in self.of_runs[1:]) for name in self.of_runs[0]}
        memories = {"sampling_memory": self.sampling_peak - self.before, "num_logits": self.num_logits}
        return super().result() | parts | memories


def watch_parts(trainer: Any, watch: WatchParts) -> None:
    """Lets the parts of a step be timed, and a run begin with the collated batch."""
    from puma_trl.step import forward

    count_items, loss = trainer._get_num_items_in_batch, watch.timed(forward.fused_puma_loss, "loss and backward")

    def begin(*args, **kwargs):
        watch.start()
        return count_items(*args, **kwargs)

    def counted_loss(student_hidden, teacher_hidden, weight, *args, **kwargs):
        watch.num_logits = len(student_hidden) * len(weight)
        return loss(student_hidden, teacher_hidden, weight, *args, **kwargs)

    trainer._get_num_items_in_batch = begin
    forward.fused_puma_loss = counted_loss
    forward.answer_hidden_states = watch.timed(forward.answer_hidden_states, "both forwards")
    trainer.accelerator.backward = watch.timed(trainer.accelerator.backward, "loss and backward")
    if trainer._on_policy is not None:
        trainer._on_policy.write_answers = watch.timed(trainer._on_policy.write_answers, "generation")


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Measures steps of one share in this process."""
    from transformers import TrainerCallback

    from puma_trl.mini import build_processor

    watch = WatchParts()

    class EndOfStep(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            watch.stop()

    with tempfile.TemporaryDirectory() as folder:
        rows = step.make_rows(args, Path(folder))
        answer = rows[0]["output_2"]
        rows = rows.map(lambda row: {"output": answer, "output_2": answer})
        settings = {}
        if args.variants[0] == "1":
            length = len(build_processor("qwen2_vl").tokenizer(answer)["input_ids"]) + 1  # and what ends it
            settings = {"on_policy_share": 1.0, "max_completion_length": length}
            settings["generation_kwargs"] = {"min_new_tokens": length - 1}  # the last one may end it
        trainer = step.make_trainer(args, rows, Path(folder), use_kl=True, **settings)
        watch_parts(trainer, watch)
        trainer.add_callback(EndOfStep())
        trainer.train()
    return watch.result() | {"parameters": sum(parameter.numel() for parameter in trainer.model.parameters())}


def print_table(results: dict[str, dict[str, float]]) -> None:
    """Prints what the steps of either share cost, and whether the goal is reached."""
    given, sampled = results["0"], results["1"]
    columns = ["`on_policy_share`", *(f"{part}, s" for part in STEP_PARTS), "whole step, s", "against 0"]
    columns += ["processor time, s", "against 0", "extra peak MB", "of it while sampling", "N × V floats, MB"]
    print(table_head(*columns))
    for share, result in results.items():
        cells = [f"{result[part]:.2f}" for part in STEP_PARTS]
        for name in ("seconds", "processor"):
            cells += [f"{result[name]:.2f}", f"{result[name] / given[name]:.2f}×"]
        peaks = [result["memory"], result["sampling_memory"] if share == "1" else None, 4 * result["num_logits"]]
        print(table_row([share, *cells, *("–" if peak is None else f"{peak / 1e6:.0f}" for peak in peaks)]))
    print("\nGoals\n")
    ratio = sampled["memory"] / (4 * sampled["num_logits"])
    print(verdict("extra peak of a sampled step / N × V floats", ratio, "≤", GOAL))


def main() -> None:
    """Measures both shares and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    step.add_sizes(parser)
    parser.add_argument("--quick", action="store_true", help="A small model, vocabulary and batch.")
    parser.add_argument("--variants", nargs=1, choices=SHARES, help=argparse.SUPPRESS)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args)))
        return
    if args.quick:
        args.hidden_size, args.layers, args.vocab, args.batch_size, args.image_size = 64, 2, 20_000, 2, 56
        args.answer_words, args.repeats = 10, 2
    results = {share: step.measure_apart(args, share, Path(__file__).name) for share in SHARES}
    given, sampled = results.values()
    if given["num_logits"] != sampled["num_logits"]:
        raise SystemExit(f"Answers differ in length: {given['num_logits']} and {sampled['num_logits']} logits.")
    print(
        f"{given['parameters'] / 1e6:.0f}M parameters, V {args.vocab:,}, batch {args.batch_size}, "
        f"N {given['num_logits'] // args.vocab:,}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    print_table(results)


if __name__ == "__main__":
    main()
