"""
Builds text-rich/vision-rich pairs from ordinary problems: question, answer, and a diagram if there is one.

```bash
python -m puma_trl.pairs build --input problems.jsonl --output outputs/built
python -m puma_trl.pairs build --input gsm8k_train.jsonl --preset gsm8k --levels vision_only vision_dominant --output outputs/gsm8k
```

The rows have `question`, `answer` and perhaps `image` (a path or a picture), or what `--question_column` and its like
name.

The text-rich side has all in words, with or without the diagram. The vision-rich side has a picture with the diagram
and, by level (after MathVerse), `vision_only`: the whole question, and a prompt without content; `vision_dominant`: the
conditions, while the sentence that asks stays in the prompt; a problem without such conditions has no pair of that
level. Both answers are equal. MathVerse's other versions leave
out words that the diagram makes redundant, which only a person can tell.

The same command goes on where a killed one stopped. The bytes depend on input, options and seed alone.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError
from tqdm import tqdm

from ...data.files import DROPPED, BrokenRow, Source, find_chunks, find_sources, read_chunk
from ...data.images import open_image
from ...errors import DataError
from .compose import compose, draw_style
from .files import Part, write_whole
from .fonts import FontBook
from .presets import IMAGE, PRESETS, Columns, NoConditions, Problem, read_conversation, read_plain, split_question


LEVELS = ("vision_only", "vision_dominant")
PROMPTS = (
    "Solve the problem in the picture.",
    "Read the problem in the image and solve it.",
    "The problem is shown in the picture. Solve it.",
    "Answer the question in the image.",
)
SETTINGS = "build.yaml"  # no name that a reader of data files would take for one
MARKER = "{}.json"  # of a part that is finished
COUNTS = ("read", "rows", "diagrams", "formulas", "plain_formulas")


@dataclass(frozen=True)
class Settings:
    """Everything that decides what is written."""

    inputs: list[str]
    versions: list[str]
    image_root: str | None
    preset: str | None
    columns: Columns
    levels: tuple[str, ...]
    text_rich_image: str
    format: str
    fonts: tuple[str, ...]
    seed: int


class Builder:
    """
    Builds one chunk of the input at a time, in any process.

    Args:
        settings ([`Settings`]):
            What to build.
        sources (`list[Source]`):
            Where from.
        output (`Path`):
            Where to.
        bad_rows (`str`):
            `"error"` or `"drop"`.
    """

    def __init__(self, settings: Settings, sources: list[Source], output: Path, bad_rows: str):
        self.settings, self.sources, self.output, self.bad_rows = settings, sources, output, bad_rows
        self.book = FontBook(settings.fonts)
        self.reader = PRESETS[settings.preset][0] if settings.preset else read_plain

    def __call__(self, task: tuple[int, dict[str, int]]) -> dict[str, Any]:
        """
        Builds a chunk, unless that is done, and leaves `parts/<number>.json`, which is written last.

        Returns:
            `rows` (written), `read`, `diagrams`, `formulas`, `plain_formulas`, `skipped` (level and reason → rows that
            cannot have it), `dropped` (reason → rows) and `examples` of rows that cannot be used.
        """
        number, chunk = task
        marker = self.output / "parts" / MARKER.format(f"{number:05d}")
        if marker.exists():
            return json.loads(marker.read_text())
        source = self.sources[chunk.source]
        dropped, counts, skipped = [], Counter(dict.fromkeys(COUNTS, 0)), Counter()
        part = Part(self.output, number, embedded=self.settings.format == "parquet")
        columns = [*dict.fromkeys([*self.settings.columns.names, IMAGE])]
        for index, raw in read_chunk(source, chunk, columns):
            row_id = f"{source.name}:{index}"
            counts["read"] += 1
            try:
                skipped.update(self._build_row(raw, row_id, source.root, part, counts))
            except DataError as error:
                written = raw.text if isinstance(raw, BrokenRow) else repr(raw)
                dropped.append({"row_id": row_id, "reason": str(error), "raw": written[:1000]})
        reasons = Counter(row["reason"].split(":", 1)[0] for row in dropped)
        result = counts | {"skipped": skipped, "dropped": reasons, "examples": dropped[:3]}
        if dropped and self.bad_rows == "error":
            return result  # ends the build; the chunk is not marked as done
        part.finish(dropped)
        write_whole(marker, json.dumps(result))
        return result

    def _build_row(self, raw: Any, row_id: str, root: str | None, part: Part, counts: Counter) -> list[str]:
        """
        Adds the pairs of a row to the part; returns the levels that it cannot have, with the reasons.

        Raises:
            DataError: if the row cannot be used: no level can be made, and not only for want of conditions.
        """
        if isinstance(raw, BrokenRow):
            raise DataError(raw.problem)
        if not isinstance(raw, dict):
            raise DataError(f"wrong type: the row is {type(raw).__name__}, not an object with columns")
        problem = self.reader(raw, self.settings.columns, root)
        if len(problem.images) > 1:
            raise DataError(f"several images: {len(problem.images)} diagrams, but one canvas takes one")
        diagram = open_image(problem.images[0]) if problem.images else None
        made, skipped, failure = {}, [], None
        for level in self.settings.levels:
            try:
                made[level] = self._make_side(problem, level, diagram, row_id)
            except DataError as error:
                skipped.append(f"{level}: {str(error).split(':', 1)[0]}")
                if not isinstance(error, NoConditions):
                    failure = error
        if not made and failure is not None:
            raise failure
        keeps_diagram = diagram is not None and self.settings.text_rich_image == "keep"
        text_rich = {
            "image_url": part.add_diagram(problem.images[0]) if keeps_diagram else None,
            "instruction": _join(problem.hint, problem.facts, problem.question),
            "output": problem.answer,
        }
        for level, (prompt, composition) in made.items():
            picture = part.add_picture(composition.image)
            vision_rich = {"image_url_2": picture, "instruction_2": prompt, "output_2": problem.answer}
            part.add_row(text_rich | vision_rich | {"kind": level})
            counts.update(formulas=composition.formulas, plain_formulas=composition.plain_formulas)
        counts.update(rows=len(made), diagrams=bool(made) and diagram is not None)
        return skipped

    def _make_side(self, problem: Problem, level: str, diagram, row_id: str):
        """Returns prompt and picture of the vision-rich side, which depend on seed, row and level alone."""
        rng = random.Random(f"{self.settings.seed}/{row_id}/{level}")
        if level == "vision_only":
            text, prompt = _join(problem.facts, problem.question), rng.choice(PROMPTS)
        else:
            text, prompt = split_question(problem)
        composition = compose(text, diagram, draw_style(rng), self.book, seed=rng.getrandbits(32))
        return _join(problem.hint, prompt), composition


def _join(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


def prepare_output(output: Path, settings: Settings) -> bool:
    """
    Claims the output folder for a build; returns whether it is finished already.

    A build that has not finished a part, as when its input has to be repaired first, gives way to another.

    Raises:
        DataError: if the folder holds something else, such as a build of other input or options.
    """
    path, parts = output / SETTINGS, output / "parts"
    wanted = json.loads(json.dumps(asdict(settings)))
    if path.exists():
        found = _read_build(path)
        differing = [name for name, value in wanted.items() if found["settings"].get(name) != value]
        if not differing:
            finished = "result" in found
            if finished:
                shutil.rmtree(parts, ignore_errors=True)  # was killed while they were removed
            else:
                parts.mkdir(exist_ok=True)
            return finished
        if "result" in found or any(parts.glob(MARKER.format("*"))):
            name = differing[0]
            raise DataError(
                f"{output} holds another build: its `{name}` is {found['settings'].get(name)}, this one's {wanted[name]}. "
                "Choose another `--output`, or delete that folder."
            )
        for folder in (parts, output / "images", output / "data"):
            shutil.rmtree(folder, ignore_errors=True)
    elif output.exists() and any(output.iterdir()):
        raise DataError(f"{output} is not empty and holds no build. Choose another `--output`.")
    output.mkdir(parents=True, exist_ok=True)
    write_whole(path, yaml.safe_dump({"settings": wanted}, allow_unicode=True))
    parts.mkdir()
    return False


def _read_build(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("settings"), dict):
        raise DataError(f"{path} is no file of a build: it has no `settings`. Choose another `--output`.")
    return found


def run_chunks(builder: Builder, num_proc: int) -> Iterator[dict[str, Any]]:
    """
    Builds all chunks, and yields their results in order.

    Raises:
        DataError: if rows cannot be used and `bad_rows` is `"error"`, or the input's structure is broken.
    """
    tasks = list(enumerate(find_chunks(builder.sources, builder.settings.columns.names)))
    # unlike multiprocessing.Pool, it notices when a worker is killed; spawned, since a copy of a process with threads may
    # wait for ever for one of them
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_proc, context, initializer=_end_with_parent) if num_proc > 1 else None
    try:
        results = pool.map(builder, tasks) if pool else map(builder, tasks)
        for result in tqdm(results, total=len(tasks), unit="chunk", disable=None):
            if result["dropped"] and builder.bad_rows == "error":
                first = "\n".join(f"  {row['row_id']}: {row['reason']}" for row in result["examples"])
                raise DataError(
                    f"{sum(result['dropped'].values()):,} of {result['read']:,} rows cannot be used. The first ones:\n"
                    f"{first}\nRepair them, or pass `--bad_rows drop` to leave such rows out and have them listed in "
                    f"{builder.output / DROPPED}."
                )
            yield result
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Lets a worker end when the command is killed, so that none still writes when it is started again."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def finish(output: Path, settings: Settings, results: list[dict[str, Any]]) -> dict[str, Any]:
    """
    Joins the parts, writes down the counts, and removes the parts; returns the counts.

    Raises:
        DataError: if there is no pair.
    """
    total = {name: sum(result[name] for result in results) for name in COUNTS}
    reasons = sum((Counter(result["dropped"]) for result in results), Counter())
    skipped = sum((Counter(result["skipped"]) for result in results), Counter())
    total |= {"skipped": dict(skipped.most_common()), "dropped": dict(reasons.most_common())}
    if not total["rows"]:
        shutil.rmtree(output / "parts")  # so that a corrected command may have the folder
        counts = _list_counts(total["dropped"] | total["skipped"])
        raise DataError(f"No pair could be built from {total['read']:,} rows ({counts or 'the input is empty'}).")
    joined = [("dropped.jsonl", DROPPED)] if reasons else []
    joined += [("jsonl", "train.jsonl")] if settings.format == "jsonl" else []
    for suffix, name in joined:
        unfinished = output / f"{name}.tmp"
        with open(unfinished, "wb") as file:
            for number in range(len(results)):
                with open(output / "parts" / f"{number:05d}.{suffix}", "rb") as part:
                    shutil.copyfileobj(part, file)
        os.replace(unfinished, output / name)
    content = {"settings": json.loads(json.dumps(asdict(settings))), "result": total}
    write_whole(output / SETTINGS, yaml.safe_dump(content, allow_unicode=True))
    shutil.rmtree(output / "parts")
    return total


def check_login() -> None:
    """
    Makes sure, before anything is built, that somebody is logged in to the Hub.

    Raises:
        DataError: if nobody is, the token is not valid, or the Hub cannot be reached.
    """
    api = HfApi()
    instead = "Or leave `--push_to_hub` out: the same command with it pushes the build when it is over."
    try:
        api.whoami()
    except LocalTokenNotFoundError as error:
        raise DataError(
            f"`--push_to_hub`, but nobody is logged in to the Hub. Run `hf auth login`, or set HF_TOKEN. {instead}"
        ) from error
    except Exception as error:  # of the connection, the server or the client
        raise DataError(
            f"`--push_to_hub`, but the Hub at {api.endpoint} cannot be used: {error}. {instead}"
        ) from error


def push(output: Path, repo_id: str) -> str:
    """
    Uploads a finished parquet build as a data set of the Hub; returns its id.

    Raises:
        DataError: if that fails.
    """
    api = HfApi()
    try:
        repo_id = api.create_repo(repo_id, repo_type="dataset", exist_ok=True).repo_id
        api.upload_folder(
            folder_path=output,
            repo_id=repo_id,
            repo_type="dataset",
            allow_patterns="data/*.parquet",
            delete_patterns="data/*.parquet",  # of a build before, which may have had more files
        )
    except Exception as error:  # of the connection, the server or the client: the build is safe on the disk
        raise DataError(
            f"{output} is finished, but could not be pushed to the Hub at {api.endpoint}: {error}. The same command "
            "pushes it again."
        ) from error
    return repo_id


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `python -m puma_trl.pairs build`."""
    parser.add_argument(
        "--input", nargs="+", required=True, help="files (json, jsonl, csv, parquet), folders, Hub data sets"
    )
    parser.add_argument("--config", help="configuration of a Hub data set")
    parser.add_argument("--split", default="train", help="split of a Hub data set (default: train)")
    parser.add_argument("--image_root", help="folder that image paths start from; by default that of each file")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--preset", choices=PRESETS, help="read the rows of a common data set")
    for name in ("question", "answer", "image", "choices", "facts"):
        parser.add_argument(f"--{name}_column", help=f"column of the {name}, instead of the preset's")
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
    parser.add_argument("--seed", type=int, default=0, help="seed of prompts, fonts, sizes, noise")
    parser.add_argument("--num_proc", type=int, default=1, help="processes")
    parser.add_argument("--push_to_hub", metavar="REPO_ID", help="upload the data set; with --format parquet")


def read_settings(args: argparse.Namespace) -> tuple[Settings, list[Source]]:
    """
    Turns the options into settings and the sources that they name.

    Raises:
        DataError: if the options contradict each other or the input is not there.
    """
    if args.push_to_hub and args.format != "parquet":
        raise DataError("`--push_to_hub` needs `--format parquet`, which holds the pictures.")
    reader, columns = PRESETS[args.preset] if args.preset else (read_plain, Columns())
    given = {name: getattr(args, f"{name}_column") for name in asdict(columns)}
    if reader is read_conversation:
        for name in ("answer", "choices", "facts"):
            if given[name]:
                raise DataError(
                    f"The rows of `--preset {args.preset}` are conversations: leave `--{name}_column` out."
                )
        given["answer"] = given["question"]
    columns = Columns(**asdict(columns) | {name: value for name, value in given.items() if value})
    sources = find_sources(args.input, args.image_root, args.config, args.split)
    check_columns(sources, columns, {given[name] for name in ("image", "choices", "facts") if given[name]})
    settings = Settings(
        inputs=args.input,
        versions=[source.version for source in sources],
        image_root=args.image_root,
        preset=args.preset,
        columns=columns,
        levels=tuple(args.levels),
        text_rich_image=args.text_rich_image,
        format=args.format,
        fonts=tuple(args.font),
        seed=args.seed,
    )
    return settings, sources


def check_columns(sources: list[Source], columns: Columns, named: set[str]) -> None:
    """
    Makes sure that the columns which the user named, and rows may do without, are there; mostly the first row has all.

    Raises:
        DataError: if a column occurs in no row.
    """
    missing, seen = set(named), set()
    chunks = find_chunks(sources, columns.names)
    while missing and (chunk := next(chunks, None)):
        source = sources[chunk.source]
        for _, row in read_chunk(source, chunk, columns.names):
            if isinstance(row, dict):
                missing -= row.keys()
                seen |= row.keys()
    if missing and seen:
        name = min(missing)
        raise DataError(
            f"No row of the input has the column `{name}`. The columns are: {', '.join(sorted(seen))}. Name one of "
            "them, or leave that option out."
        )


def main(args: argparse.Namespace) -> None:
    """Builds, reports, and uploads if that is asked for."""
    try:
        settings, sources = read_settings(args)
        if args.push_to_hub:
            check_login()
        builder = Builder(settings, sources, args.output, args.bad_rows)
        if prepare_output(args.output, settings):
            print(f"{args.output} holds this build already.")
        else:
            total = finish(args.output, settings, list(run_chunks(builder, args.num_proc)))
            print(describe(total, args.output, settings))
        if args.push_to_hub:
            print(f"Pushed to {push(args.output, args.push_to_hub)}.")
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")


def _list_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())


def describe(total: dict[str, Any], output: Path, settings: Settings) -> str:
    """Words the result of a build, and how to train on it."""
    read = f"{total['read']:,} rows, {total['diagrams']:,} with a diagram"
    lines = [f"{total['rows']:,} pairs from {read}, in {output}."]
    if total["skipped"]:
        lines.append(f"Levels that rows cannot have: {_list_counts(total['skipped'])}.")
    if total["dropped"]:
        lines.append(f"Left out: {_list_counts(total['dropped'])}; see {output / DROPPED}.")
    if total["plain_formulas"]:
        lines.append(
            f"{total['plain_formulas']:,} of {total['formulas']:,} formulas could not be drawn and stand as LaTeX."
        )
    data = output / ("train.jsonl" if settings.format == "jsonl" else "data")
    return "\n".join([*lines, f"Train on it with `dataset_name: {data}`."])
