"""
Builds text-rich/vision-rich pairs from ordinary problems: question, answer, and a diagram if there is one.

```bash
puma-trl pairs build --input problems.jsonl --output outputs/built
puma-trl pairs build --input gsm8k_train.jsonl --preset gsm8k --levels vision_only vision_dominant \\
    --output outputs/gsm8k
```

The rows have any form that training reads, with one side: `question`, `answer` and perhaps `image`, conversations and
so on. `--columns`, and `--question_column` and its like, name other columns.

The text-rich side has all in words, with or without the diagram. The vision-rich side has a picture with the diagram
and, by level (after MathVerse), `vision_only`: the whole question, and a prompt without content; `vision_dominant`:
the conditions, while the sentence that asks stays in the prompt; a problem without such conditions has no pair of that
level. Both answers are equal. MathVerse's other versions leave out words that the diagram makes redundant, which only
a person can tell.

The same command goes on where a killed one stopped. The bytes depend on input, options and seed alone.
"""

import argparse
from pathlib import Path
from typing import Any

from ...data.files import DROPPED
from ...data.texts import shorten
from ..mapping import add_columns
from ..processes import count_processes
from .files import finish, list_counts, prepare_output
from .hub import check_login, push
from .page import PAGE, join_showcases, write_page
from .pairs import Builder, add_up, run_chunks
from .presets import PRESETS
from .settings import LEVELS, BuildSettings, read_settings, unread_columns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `puma-trl pairs build`."""
    parser.add_argument(
        "--input", nargs="+", required=True, help="files (json, jsonl, csv, parquet), folders, Hub datasets"
    )
    parser.add_argument("--config", help="configuration of a Hub dataset")
    parser.add_argument("--split", default="train", help="split of a Hub dataset (default: train)")
    parser.add_argument("--image_root", help="folder that image paths start from; by default that of each file")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--preset", choices=PRESETS, help="put the texts of a common dataset in order")
    add_columns(parser)
    for name in ("question", "answer", "image", "facts"):
        parser.add_argument(f"--{name}_column", help=f"column of the {name}, if it is not found by its name")
    parser.add_argument("--choices_column", nargs="+", default=[], help="column of the choices, or one for each")
    parser.add_argument(
        "--levels", nargs="+", choices=LEVELS, default=LEVELS[:1], help="one pair of each row for each"
    )
    parser.add_argument(
        "--text_rich_image", choices=("keep", "drop"), default="keep", help="the diagram on the text-rich side"
    )
    parser.add_argument(
        "--format", choices=("jsonl", "parquet"), default="jsonl", help="with files, or with embedded pictures"
    )
    parser.add_argument("--font", nargs="+", default=[], help="further font files, for scripts that the system lacks")
    parser.add_argument("--bad_rows", choices=("error", "drop"), default="error", help="rows that cannot be used")
    parser.add_argument(
        "--source",
        choices=("error", "drop", "keep"),
        default="drop",
        help="pictures that would show the source of formulas: stop, leave them out (default), or draw them so",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of prompts, fonts, sizes, noise")
    parser.add_argument("--num_proc", type=int, default=1, help="processes")
    parser.add_argument("--push_to_hub", metavar="REPO_ID", help="upload the dataset; with --format parquet")


def main(args: argparse.Namespace) -> None:
    """Builds, reports, and uploads if that is asked for."""
    num_proc = count_processes(args.num_proc)
    settings, sources = read_settings(args)
    if args.push_to_hub:
        check_login()
    builder = Builder(settings, sources, args.output, args.bad_rows)
    if prepare_output(args.output, settings):
        print(f"{args.output} holds this build already.")
    else:
        results, shown = [], {}
        for result in run_chunks(builder, num_proc):
            shown = join_showcases(shown, result.pop("showcase"))
            results.append(result)
        total = add_up(results)
        unread = dict.fromkeys([*unread_columns(sources, settings), *total["unread"]])
        lines = describe(total, settings, list(unread))
        if total["rows"]:
            write_page(args.output, lines, total, shown)
        finish(args.output, settings, total, len(results))
        data = args.output / ("train.jsonl" if settings.format == "jsonl" else "data")
        print("\n".join(lines))
        print(f"Look at some of it in {args.output / PAGE}. Train on it with `dataset_name: {data}`.")
    if args.push_to_hub:
        print(f"Pushed to {push(args.output, args.push_to_hub)}.")


def describe(total: dict[str, Any], settings: BuildSettings, unread: list[str]) -> list[str]:
    """Words the result of a build."""
    lines = [f"{total['rows']:,} pairs from {total['read']:,} rows, {total['diagrams']:,} with a diagram."]
    if unread:
        lines.append(f"Columns not read: {', '.join(unread)}.")
    if total["skipped"]:
        lines.append(f"Levels that rows cannot have: {list_counts(total['skipped'])}.")
    if total["dropped"]:
        lines.append(f"Left out: {list_counts(total['dropped'])}; see {DROPPED}.")
    if total["by_position"]:
        positions = f"{total['by_position']:,} answers were positions of choices, counted from 0"
        lines.append(f"{positions}, and are letters now.")
    return lines + describe_source(total, settings)


def describe_source(total: dict[str, Any], settings: BuildSettings) -> list[str]:
    """Words how many pictures show source, or would, with examples."""
    count = total["source_pictures"]
    if not count:
        return []
    pictures = total["rows"] + (count if settings.source != "keep" else 0)
    done = "show" if settings.source == "keep" else "would have shown"
    left = "" if settings.source == "keep" else ", and were left out; `--source keep` draws them so"
    lines = [f"{count:,} of {pictures:,} pictures ({count / pictures:.1%}) {done} source{left}."]
    return lines + [f"  {row['row_id']}: '{shorten(row['source'])}' ({row['reason']})" for row in total["examples"]]
