"""
Has a model answer the problems of pairs, keeps the answers that agree with the gold ones, and writes pairs with them.

```bash
puma-trl pairs answer --model outputs/stage1 --data pairs.jsonl --side text_rich --n 4 --output own.jsonl
```

The rows have the published form, with the model's answer on both sides and the gold one in `gold_answer`, which no
command reads. All replies are kept beside them in `.own.progress.jsonl`, with which a killed run goes on, and in
`own.md` is what came of them by kind and length.
"""

import argparse
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...evaluation.settings import REQUESTS, SAMPLING, ReplySettings, add_settings, check_sampling
from ..mapping import add_columns, read_columns


def answer_pairs(
    data: list[str],
    output: Path,
    settings: ReplySettings,
    *,
    side: str = "text_rich",
    num_samples: int = 4,
    keep: str = "shortest",
    judge: str = "exact",
    round: int | None = None,
    columns: dict[str, str | list[str]] | None = None,
    split: str = "train",
) -> str | None:
    """
    Asks, judges, and writes what is kept.

    The arguments are the options of the command, where they are described; `columns` is our column → the data's, and
    `settings` has the model and how it replies.

    Returns:
        `str`, *optional*: what came of the replies, as a page in Markdown; `None` on other processes than the first.

    Raises:
        DataError: if an option is out of range, a row cannot be used or has no gold answer, or no reply is right.
        EvaluationError: if a setting is out of range, the model cannot be read or asked, or earlier replies were made
            with other settings.
    """
    _check_options(data, output, settings, num_samples)
    if judge == "math_verify" and find_spec("math_verify") is None:
        raise DataError("`--judge math_verify` needs a package that is not installed: pip install puma_trl[eval].")
    from ...evaluation.answers import is_prose
    from ...evaluation.files import json_line
    from ...evaluation.local_model import load_for_prompts
    from ...files import whole_file
    from .choice import Yield, choose, judge_replies
    from .problems import read_problems
    from .replies import Asking, ask_model, ask_server, group_replies

    is_local = settings.backend == "transformers"
    if is_local:
        load_for_prompts(settings.model)
    folder = output.parent.absolute()
    problems, reader = read_problems(
        data,
        folder,
        columns=columns,
        image_root=settings.image_root,
        split=split,
        model=settings.model if is_local else None,
    )
    asking = Asking(problems, side, num_samples, settings, _progress_path(output))
    if not (ask_model if is_local else ask_server)(asking):
        return None
    counts = Yield([each.row_id for each in problems if not each.options and is_prose(each.gold)])
    named = {} if round is None else {"round": round}
    with whole_file(output) as file:
        for problem, replies in zip(problems, group_replies(asking), strict=True):
            judged = judge_replies(problem, replies, judge, folder, reader)
            kept = choose(judged, keep, f"{settings.seed} {problem.row_id}")
            counts.add(problem, judged, kept)
            for each in kept:
                file.write(json_line(problem.write(each.answer, folder) | {"sample": each.sample} | named))
        if not counts.kept:
            raise DataError(
                f"None of {asking.total:,} replies can be kept, so {output} is not written. {counts.reasons} Ask a "
                "model that solves some of the problems, or more of it (`--n`, `--max_new_tokens`)."
            )
    page = counts.describe()
    with whole_file(output.with_suffix(".md")) as file:
        file.write(page)
    return page


def _progress_path(output: Path) -> Path:
    return output.with_name(f".{output.stem}.progress.jsonl")


def _check_options(data: list[str], output: Path, settings: ReplySettings, num_samples: int) -> None:
    if output.suffix != ".jsonl":
        raise DataError(f"`--output` is '{output}', but rows are written as JSON lines. Give a name with .jsonl.")
    if any(Path(name).exists() and output.exists() and output.samefile(name) for name in data):
        raise DataError(f"`--output` is '{output}', which is read, and would be written over. Choose another name.")
    foreign = [path for path in (output, output.with_suffix(".md")) if path.exists()]
    if foreign and not _progress_path(output).exists():
        raise DataError(
            f"{foreign[0]} is there, but not the replies it would be made of ({_progress_path(output).name}), and "
            "would be written over. Choose another `--output`, or delete the file."
        )
    if num_samples < 1:
        raise DataError(f"`--n` is {num_samples}, but must be at least 1.")
    check_sampling(settings.batch_size, settings.max_new_tokens, settings.temperature, settings.top_p)
    if not settings.temperature and num_samples > 1:
        raise DataError(
            f"`--temperature 0` gives the same reply each time, and `--n` asks for {num_samples}. Set `--n 1`, or a "
            "temperature above 0."
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `puma-trl pairs answer`."""

    def add(name: str, words: str, **options: Any) -> None:
        default = "" if options.get("default") is None else " (default: %(default)s)"
        parser.add_argument(f"--{name}", help=words + default, **options)

    add("model", "folder or Hub name, or the name at the server", required=True)
    add("data", "pairs: files, folders or Hub datasets", nargs="+", required=True)
    add_columns(parser)
    add("output", "file of JSON lines; a second run continues the first", type=Path, required=True)
    add("side", "which side is asked", choices=("text_rich", "vision_rich"), default="text_rich")
    add("n", "replies to each problem", type=int, default=4)
    add("keep", "which right answers to a problem are kept", choices=("shortest", "random", "all"), default="shortest")
    add("judge", "how answers are compared with the gold ones", choices=("exact", "math_verify"), default="exact")
    add("round", "number of the round, written to each row", type=int)
    add("image_root", "folder that relative image paths start from (default: that of the file)")
    add("split", "split of Hub datasets", default="train")
    add_settings(parser, ReplySettings, "backend", "base_url", *SAMPLING, *REQUESTS)
    parser.set_defaults(temperature=1.0)


def main(args: argparse.Namespace) -> None:
    """Asks and writes, and prints what came of it."""
    given = {field.name: getattr(args, field.name) for field in fields(ReplySettings) if hasattr(args, field.name)}
    page = answer_pairs(
        args.data,
        args.output,
        ReplySettings(**given),
        side=args.side,
        num_samples=args.n,
        keep=args.keep,
        judge=args.judge,
        round=args.round,
        columns=read_columns(args.columns),
        split=args.split,
    )
    if page is not None:
        print(f"{page}Written to {args.output}.")
