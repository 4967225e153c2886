"""
Generates text-rich/vision-rich pairs: problems with exact answers by construction, drawn with Pillow.

```bash
puma-trl pairs generate --n 10000 --seed 0 --output outputs/pairs --heldout 500
```

A row is the same problem twice, in the published format: the text-rich side has no picture and all numbers in words
(`image_url`, `instruction`, `output`), the vision-rich side has all numbers in the drawing alone (`image_url_2`,
`instruction_2`, `output_2`). Both answers are equal. The columns `kind`, `level` and `answer` are for people.

`--modality` sets how many words the vision-rich side keeps, after MathVerse; `--text_rich_modality` gives the
text-rich side the figure too, and the words of another level:

```bash
puma-trl pairs generate --n 200 --modality text_dominant text_lite vision_intensive vision_dominant vision_only \\
    --output outputs/levels
puma-trl pairs generate --n 5000 --text_rich_modality text_lite --modality vision_intensive --output outputs/step
```
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from ...errors import ConfigError
from ...evaluation.modality import MODALITIES
from .files import refuse_existing, write_pairs
from .pairs import KINDS, generate_pairs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `puma-trl pairs generate`."""
    parser.add_argument("--n", type=int, required=True, help="number of training problems")
    parser.add_argument("--heldout", type=int, default=0, help="number of held-out problems, other ones")
    parser.add_argument("--seed", type=int, default=0, help="seed of the problems and drawings")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    kinds = f"problem kinds; all by default: {', '.join(KINDS)}"
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), metavar="KIND", help=kinds)
    parser.add_argument("--levels", nargs="+", type=int, choices=(1, 2, 3), default=[1], help="difficulty levels")
    parser.add_argument(
        "--modality",
        nargs="+",
        choices=MODALITIES,
        help="levels of the vision-rich side, a pair of each problem for each; rows have `modality` and `problem_id`",
    )
    parser.add_argument(
        "--text_rich_modality",
        choices=MODALITIES[:-1],
        help="level of the text-rich side, which then has the figure; without, it has the words alone",
    )
    parser.add_argument("--image_size", nargs=2, type=int, default=[512, 384], help="width and height in pixels")
    grid = "distance in pixels of the lines that labels stand on; the patch size helps a small vision tower"
    parser.add_argument("--label_grid", type=int, default=1, help=grid)
    parser.add_argument("--num_proc", type=int, default=1, help="processes that draw")


def main(args: argparse.Namespace) -> None:
    """Writes `train.jsonl`, and `heldout.jsonl` if held-out pairs are asked for, with their pictures; or neither."""
    written = []
    try:
        for path, split, rows in _plan_files(args):
            count = write_pairs(rows, path, f"images/{split}")
            written.append(path)
            print(f"{count:,} pairs in {path}")
    except Exception:
        for path in written:  # so that the corrected command can write it again
            path.unlink()
        raise


def _plan_files(args: argparse.Namespace) -> list[tuple[Path, str, Iterator[dict]]]:
    """Returns path, split and rows of each file, after checking all that can be checked before a row is made."""
    files = []
    for name in ("n", "heldout"):
        if getattr(args, name) < 0:
            raise ConfigError(f"`--{name}` is {getattr(args, name)}; it must be 0 or more.")
    for split, count in (("heldout", args.heldout), ("train", args.n)):  # held-out problems run out sooner
        if not count:
            continue
        rows = generate_pairs(
            count,
            args.seed,
            args.kinds,
            split=split,
            levels=args.levels,
            image_size=tuple(args.image_size),
            label_grid=args.label_grid,
            num_proc=args.num_proc,
            encoded=True,
            modality=args.modality,
            text_rich_modality=args.text_rich_modality,
        )
        path = args.output / f"{split}.jsonl"
        refuse_existing(path)
        files.append((path, split, rows))
    if not files:
        raise ConfigError("`--n` and `--heldout` are both 0, so there is nothing to write. Ask for at least one pair.")
    return files
