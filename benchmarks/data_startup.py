"""
Time and memory of reading, checking and mapping a pair dataset before training: first, from the cache, and in a
process that reads what the main one has left there.

```bash
python benchmarks/data_startup.py                 # 100,000 pairs, and what that means for the paper's 692,000
python benchmarks/data_startup.py --rows 692000   # all of them: 692,000 files
python benchmarks/data_startup.py --rows 20000    # a quick look
```

The pairs are generated: texts of realistic length (text-rich 40-110 words, vision-rich 10-40, answers 40-140), all
different, a picture file of its own for every row, and a byte-pair tokenizer trained on such texts. Every measurement
runs in a process of its own; memory is that of the process and its workers together.
"""

import argparse
import contextlib
import io
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import read_arguments, table_head, table_row, verdict


# The paper's stage 2, in seconds and GiB
ROWS = 692_000
GOALS = {"first": 300.0, "cached": 60.0, "memory": 2.0}
PICTURES = 400  # with different contents, in 40 sizes and more


def make_words(rng: random.Random, count: int = 8_000) -> list[str]:
    """Returns made-up words of 2 to 10 letters, the most common ones being the shortest."""
    syllables = [a + b for a in "bcdfglmnprstv" for b in "aeiou"]
    return sorted(("".join(rng.choices(syllables, k=rng.randint(1, 5))) for _ in range(count)), key=len)


def make_text(rng: random.Random, words: list[str], low: int, high: int) -> str:
    """Returns `low` to `high` words, common ones far more often, with formulas between them."""
    size = rng.randint(low, high)
    chosen = [words[int(len(words) ** rng.random())] for _ in range(size)]  # Zipf's law
    for _ in range(size // 12):
        chosen[rng.randrange(size)] = f"${rng.randrange(100)}x + {rng.randrange(1000)} = {rng.random():.3f}$"
    return " ".join(chosen) + "."


def make_pictures(folder: Path, rng: random.Random, count: int) -> None:
    """Writes so many files of pictures, of `PICTURES` contents."""
    from PIL import Image

    folder.mkdir(parents=True)
    contents = []
    for _ in range(PICTURES):
        size = (28 * rng.randint(4, 16), 28 * rng.randint(4, 16))
        buffer = io.BytesIO()
        Image.new("RGB", size, tuple(rng.randrange(256) for _ in range(3))).save(buffer, "PNG")
        contents.append(buffer.getvalue())
    for index in range(count):
        (folder / f"{index}.png").write_bytes(contents[index % PICTURES])


def make_data(folder: Path, rows: int) -> None:
    """Writes `pairs.jsonl`, a picture for each row, and a processor with a trained tokenizer."""
    from puma_trl.mini import build_processor

    rng = random.Random(0)
    words = make_words(rng)
    make_pictures(folder / "images", rng, rows)
    with open(folder / "pairs.jsonl", "w", encoding="utf-8") as file:
        for index in range(rows):
            answer = make_text(rng, words, 40, 140)
            row = {
                "image_url": None,
                "instruction": make_text(rng, words, 40, 110),
                "output": answer,
                "image_url_2": f"images/{index}.png",
                "instruction_2": make_text(rng, words, 10, 40),
                "output_2": answer,
            }
            file.write(json.dumps(row) + "\n")

    processor = build_processor("qwen2_vl")
    texts = [make_text(rng, words, 60, 200) for _ in range(5000)]
    processor.tokenizer = processor.tokenizer.train_new_from_iterator(texts, vocab_size=16_000)
    processor.save_pretrained(folder / "processor")


def load(folder: Path, num_proc: int | None, reads_only: bool) -> None:
    """Loads the dataset once and prints the seconds and what came out; runs in a process of its own."""
    import datasets
    from transformers import AutoProcessor

    from puma_trl.config import PumaKLConfig, PumaScriptArguments
    from puma_trl.data import cache
    from puma_trl.data import load as loading
    from puma_trl.data.load import load_data
    from puma_trl.models.families.qwen import QWEN_VL

    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    processor = AutoProcessor.from_pretrained(folder / "processor")
    script_args = PumaScriptArguments(dataset_name=[str(folder / "pairs.jsonl")])
    training_args = PumaKLConfig(
        output_dir=str(folder / "out"),
        use_cpu=True,
        bf16=False,
        max_length=2048,
        dataset_num_proc=num_proc,
        bad_rows="drop",
    )
    asked, image_stamp = itertools.count(), cache.image_stamp
    cache.image_stamp = lambda value: next(asked) < 0 or image_stamp(value)
    if reads_only:
        loading.fill_first = lambda *_: contextlib.nullcontext(False)
    start = time.perf_counter()
    dataset, reports = load_data(script_args, training_args, processor, QWEN_VL)
    seconds = time.perf_counter() - start
    lengths = dataset["train"].with_format("numpy")["length"][:]
    report = reports["train"]
    print(
        json.dumps(
            {
                "seconds": seconds,
                "rows": report.rows_kept,
                "answer_tokens": report.answer_tokens,
                "mean_length": float(lengths.mean()),
                "stats": next(asked),
            }
        )
    )


def memory_of(pid: int) -> tuple[int, int]:
    """Returns proportional (shared pages count once) and plain resident bytes of a process and its descendants."""
    proportional = resident = 0
    pending = [pid]
    while pending:
        process = Path(f"/proc/{pending.pop()}")
        try:
            values = dict(line.split(":", 1) for line in (process / "smaps_rollup").read_text().splitlines()[1:])
            pending += [
                int(child)
                for task in (process / "task").iterdir()
                for child in (task / "children").read_text().split()
            ]
        except (OSError, ValueError):  # the process has just ended
            continue
        proportional += int(values["Pss"].split()[0]) * 1024
        resident += int(values["Rss"].split()[0]) * 1024
    return proportional, resident


def measure(folder: Path, num_proc: int | None, reads_only: bool = False) -> dict:
    """Runs [`load`] in a new process and watches its memory."""
    command = [sys.executable, __file__, "--dir", str(folder), "--load"]
    command += ["--reads_only"] if reads_only else []
    command += ["--num_proc", str(num_proc)] if num_proc else []
    peaks = [0, 0]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output)
        while process.poll() is None:
            peaks = [max(pair) for pair in zip(peaks, memory_of(process.pid), strict=True)]
            time.sleep(0.2)
        if process.returncode:
            raise SystemExit(process.returncode)
        output.seek(0)
        result = json.loads(output.read().splitlines()[-1])
    return result | {"proportional": peaks[0] / 2**30, "resident": peaks[1] / 2**30}


def print_table(first: dict, cached: dict, other: dict) -> None:
    """Prints the starts, what they mean for the paper's data, and the goals."""
    rows = first["rows"]
    names = ("start", "seconds", f"seconds for {ROWS:,}", "stats per picture", "peak memory (GiB)", "sum of RSS (GiB)")
    print("\n" + table_head(*names))
    for name, result in (("first", first), ("cached", cached), ("cached, another process", other)):
        stats = "–" if result is first else f"{result['stats'] / rows:.1f}"
        cells = [name, f"{result['seconds']:.1f}", f"{result['seconds'] * ROWS / rows:.0f}", stats]
        print(table_row([*cells, f"{result['proportional']:.2f}", f"{result['resident']:.2f}"]))
    memory = max(result["proportional"] for result in (first, cached, other))
    print("\nGoals\n")
    for name, value, unit in (
        ("first", first["seconds"] * ROWS / rows, "s"),
        ("cached", cached["seconds"] * ROWS / rows, "s"),
        ("memory", memory, "GiB"),
    ):
        print(verdict(name, value, "≤", GOALS[name], f"{{:.1f}} {unit}", f"{{:.0f}} {unit}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="Number of pairs, and of picture files.")
    parser.add_argument("--num_proc", type=int, default=None, help="Worker processes. Defaults to every core.")
    parser.add_argument(
        "--dir", type=Path, help="Folder for the data, made when missing. Defaults to a temporary one."
    )
    parser.add_argument("--load", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--reads_only", action="store_true", help=argparse.SUPPRESS)
    args = read_arguments(parser)
    if args.load:
        load(args.dir, args.num_proc, args.reads_only)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.dir or Path(temporary) / "data"
        if not folder.exists():
            make_data(folder, args.rows)
        size = (folder / "pairs.jsonl").stat().st_size / 2**30
        first, cached = measure(folder, args.num_proc), measure(folder, args.num_proc)
        other = measure(folder, args.num_proc, reads_only=True)
    print(f"{first['rows']:,} pairs, {size:.2f} GiB, {first['mean_length']:.0f} tokens per pair on average")
    print_table(first, cached, other)


if __name__ == "__main__":
    main()
