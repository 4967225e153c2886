"""`puma-trl eval {run,generate,extract,score,report,gap}`."""

import argparse
import json
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ..entry import Parser, report, run_command  # before the libraries that it quietens
from ..errors import EvaluationError, PumaError
from ..files import check_file, check_folder
from .answers import RULES
from .benchmarks import BENCHMARKS
from .settings import (
    JUDGES,
    REQUESTS,
    SAMPLING,
    GapSettings,
    ItemSource,
    LLMSettings,
    ReplySettings,
    ServerSettings,
    add_settings,
)


Settings = TypeVar("Settings")

SHARED = ("run", "generate")  # which several processes do together
ENDINGS = {"generate": ".jsonl", "extract": ".jsonl", "score": ".json", "report": ".md", "gap": ".json"}
FAILED = 3  # exit code of a run that is whole, but to which the language model said too little


def make_parser() -> Parser:
    """Returns the parser of all subcommands."""
    parser = Parser(prog="puma-trl eval", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, words: str, *groups: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=words, description=words)
        for group in groups:
            group(command)
        return command

    run = add(
        "run", "generate, extract, score and report", add_data, add_model, add_rule, add_judge, add_llm, add_server
    )
    run.add_argument(
        "--output_dir", type=Path, required=True, help="folder of all files; a second run continues the first"
    )
    add_reference(run)
    generate = add("generate", "items -> responses.jsonl", add_data, add_model, add_server)
    generate.add_argument("--output", type=Path, default="responses.jsonl", help="continued where it stops")
    words = "responses -> responses with `extraction`"
    extract = add("extract", words, add_data, add_responses, add_rule, add_llm, add_server)
    extract.add_argument("--output", type=Path, default="extractions.jsonl", help="rows {id, response, extraction}")
    words = "responses -> metrics.json, scored.jsonl; with --rules also rules.json, rules.md"
    score = add("score", words, add_data, add_responses, add_rule, add_judge, add_llm, add_server)
    score.add_argument("--rules", nargs="+", choices=RULES, help="compare these extraction rules on the same replies")
    score.add_argument(
        "--output", type=Path, default="metrics.json", help="metrics file; scored.jsonl is written beside it"
    )
    report = add("report", "metrics.json -> report.html, report.md and a chart")
    report.add_argument("--metrics", type=Path, default="metrics.json", help="what `score` wrote")
    report.add_argument(
        "--output", type=Path, default="report.md", help="Markdown file; page and chart are written beside it"
    )
    report.add_argument("--image_root", help="folder or zip with the pictures of the examples")
    add_reference(report)
    add("gap", "modality gap of models on a pair file", add_gap)
    return parser


def add_reference(parser: argparse.ArgumentParser) -> None:
    """Adds the published figures that stand beside ours."""
    form = "{name: {metric: fraction[, rule: text]}}"
    parser.add_argument("--reference", type=Path, help=f"json of published figures: {form}")


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds which items are meant."""
    parser.add_argument("--benchmark", required=True, choices=BENCHMARKS)
    add_settings(parser, ItemSource, "data", "split")


def add_responses(parser: argparse.ArgumentParser) -> None:
    """Adds the file with the replies."""
    parser.add_argument(
        "--responses",
        type=Path,
        required=True,
        help="jsonl of {id, response[, extraction][, judgement]}, or json that an official script wrote",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the model under test and how it replies."""
    parser.add_argument("--model", required=True, help="folder or Hub name, or the name at the server")
    add_settings(parser, ReplySettings, "backend", "base_url", "image_root", "prompt", *SAMPLING)


def add_rule(parser: argparse.ArgumentParser) -> None:
    """Adds how answers are taken from replies."""
    parser.add_argument(
        "--extraction",
        choices=RULES,
        help="rule for rows without `extraction` (default: official for We-Math or with --llm, else final)",
    )


def add_judge(parser: argparse.ArgumentParser) -> None:
    """Adds how answers are judged."""
    parser.add_argument("--judge", choices=JUDGES, default="exact", help="judge of MathVerse (default: exact)")
    parser.add_argument(
        "--allow_partial", action="store_true", help="compute headline scores of incomplete runs, labelled as partial"
    )


def add_llm(parser: argparse.ArgumentParser) -> None:
    """Adds the language model that extracts and judges."""
    parser.add_argument("--llm", help="model that extracts answers, and judges them with --judge openai")
    parser.add_argument("--llm_base_url", help="its server (default: OpenAI's)")
    parser.add_argument(
        "--judge_max_tokens",
        type=int,
        default=LLMSettings.max_tokens,
        help="room for a reply of --llm, thoughts included (default: %(default)s)",
    )
    parser.add_argument(
        "--max_failures",
        type=float,
        default=0.02,
        help=f"share of its extractions or judgements that may fail; with more the exit code is {FAILED} (default: "
        "%(default)s)",
    )


def add_server(parser: argparse.ArgumentParser) -> None:
    """Adds how OpenAI-compatible servers are asked; the key comes from the environment (OPENAI_API_KEY) only."""
    add_settings(parser, ServerSettings, *REQUESTS)


def add_gap(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `gap`."""
    parser.add_argument("--model", nargs="+", required=True, help="one or several model folders, a row each")
    parser.add_argument("--data", required=True, help="pairs with the published columns: file, folder or Hub data set")
    add_settings(parser, GapSettings, "image_root", "batch_size", "max_new_tokens", "num_rows", "dtype")
    parser.add_argument(
        "--output", type=Path, default="gap.json", help="json; gap.png and gap.pairs.jsonl are written beside it"
    )


def pick(kind: type[Settings], args: argparse.Namespace) -> Settings:
    """Makes settings from the options of the same names."""
    return kind(**{field.name: getattr(args, field.name) for field in fields(kind)})


def pick_source(args: argparse.Namespace) -> ItemSource:
    """Makes the source of the items from its options."""
    return ItemSource(BENCHMARKS[args.benchmark], args.data, args.split)


def pick_llm(args: argparse.Namespace) -> LLMSettings | None:
    """Makes the language model that extracts and judges from its options, if one is named."""
    if not args.llm:
        return None
    limits = (args.concurrency, args.timeout, args.max_retries, args.judge_max_tokens)
    return LLMSettings(args.llm, args.llm_base_url, *limits)


def run_all(args: argparse.Namespace) -> int:
    """
    Generates, extracts, scores and reports into one folder; under `accelerate launch` every rank generates. Returns
    the exit code.
    """
    from .extract import run_extract
    from .generate import run_generate
    from .judging import make_judge
    from .report import read_reference, run_report
    from .scoring import Replies, run_score

    source, llm, folder = pick_source(args), pick_llm(args), args.output_dir
    # what the last steps need is looked at before hours of generation
    read_reference(args.reference)
    judge = make_judge(args.judge, source.benchmark, llm, folder / "judgements.jsonl")
    if not run_generate(source, pick(ReplySettings, args), folder / "responses.jsonl", args.allow_partial):
        return 0
    counts = run_extract(source, folder / "responses.jsonl", folder / "extractions.jsonl", args.extraction, llm)
    # what the extraction step wrote is taken as it is
    replies = Replies.read(source, folder / "extractions.jsonl", allow_partial=args.allow_partial)
    metrics = run_score(replies, folder / "metrics.json", None, judge, args.allow_partial)
    print_summary(metrics)
    print(run_report(folder / "metrics.json", folder / "report.md", args.reference, args.image_root))
    return max(exit_code("extractions", counts, args), exit_code("judgements", metrics["judge_settings"] or {}, args))


def run_subcommand(args: argparse.Namespace) -> int:
    """Runs the chosen subcommand and returns the exit code; only what it needs is imported."""
    if args.command not in SHARED and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise EvaluationError(
            f"`{args.command}` is the work of one process, but {os.environ['WORLD_SIZE']} run. Start it without "
            "`accelerate launch`."
        )
    if args.command == "run":
        check_folder(args.output_dir)
        return run_all(args)
    ending = ENDINGS[args.command]
    if args.output.suffix != ending:  # files of other endings are written beside it
        raise EvaluationError(f"`--output {args.output}` must end with {ending}.")
    check_file(args.output)  # before hours of work
    if args.command == "generate":
        from .generate import run_generate

        run_generate(pick_source(args), pick(ReplySettings, args), args.output)
    elif args.command == "extract":
        from .extract import run_extract

        counts = run_extract(pick_source(args), args.responses, args.output, args.extraction, pick_llm(args))
        print(json.dumps(counts))
        return exit_code("extractions", counts, args)
    elif args.command == "score":
        metrics = score(args)
        return exit_code("judgements", metrics["judge_settings"] or {}, args)
    elif args.command == "report":
        from .report import run_report

        print(run_report(args.metrics, args.output, args.reference, args.image_root))
    else:
        from .gap import run_gap

        run_gap(pick(GapSettings, args), args.model, args.output)
    return 0


def score(args: argparse.Namespace) -> dict[str, Any]:
    """Scores one responses file, by several rules where they are asked for, and returns the metrics."""
    from .judging import make_judge
    from .rules import run_rules
    from .scoring import Replies, run_score

    if args.llm and args.judge != "openai":
        raise EvaluationError(
            "score asks --llm only with --judge openai. To extract by it, run `eval extract` with --llm and score "
            "its file, or leave --llm out."
        )
    source, rules = pick_source(args), args.rules or ()
    judge = make_judge(args.judge, source.benchmark, pick_llm(args), args.output.with_name("judgements.jsonl"))
    replies = Replies.read(source, args.responses, (args.extraction, *rules), args.allow_partial)
    metrics = run_score(replies, args.output, args.extraction, judge, args.allow_partial)
    print_summary(metrics)
    if rules:
        print(run_rules(replies, args.output, rules, judge))
    return metrics


def exit_code(what: str, counts: dict[str, Any], args: argparse.Namespace) -> int:
    """Says how many answers of the language model failed; returns `FAILED` where that is more than was allowed."""
    asked, failed = counts.get("asked", counts.get("judged", 0)), counts.get("failed", 0)
    if not failed:
        return 0
    too_many = failed > args.max_failures * asked
    print(
        f"{failed} of {asked} {what} by {args.llm} failed ({failed / asked:.1%}) and count as wrong. "
        + (f"That is more than --max_failures {args.max_failures:g}: these figures are not to be used. " * too_many)
        + "Run the same command again to ask them, with more room (--judge_max_tokens) if the model thinks long.",
        file=sys.stderr,
    )
    return FAILED if too_many else 0


def print_summary(metrics: dict[str, Any]) -> None:
    """Prints the figures that a person looks for first."""
    names = ("benchmark", "items", "answered", "extraction", "judge", "accuracy", "correct", "total", "S1", "S2", "S3")
    print(json.dumps({name: metrics[name] for name in names if name in metrics}))


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = make_parser().parse_args(argv)
    try:
        if not 0 <= getattr(args, "max_failures", 0) <= 1:
            raise EvaluationError(f"--max_failures is {args.max_failures:g}, but it must be a share from 0 to 1.")
        return run_subcommand(args)
    except (PumaError, OSError) as error:
        return report(error, 1)


if __name__ == "__main__":
    run_command(main)
