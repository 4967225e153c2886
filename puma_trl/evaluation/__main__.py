"""`python -m puma_trl.evaluation {run,generate,extract,score,report,gap}`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from .answers import RULES


BENCHMARK_NAMES = ("mathverse", "mathvista", "wemath")
JUDGE_NAMES = ("exact", "math_verify", "openai")


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all subcommands."""
    parser = argparse.ArgumentParser(prog="python -m puma_trl.evaluation", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, words: str, *groups: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=words, description=words, allow_abbrev=False)
        for group in groups:
            group(command)
        return command

    run = add("run", "generate, extract, score and report", add_data, add_model, add_rule, add_judge, add_server)
    run.add_argument("--output_dir", required=True, help="folder of all files; a second run continues the first")
    run.add_argument("--reference", help="json of published figures: {name: {metric: fraction}}")
    generate = add("generate", "items -> responses.jsonl", add_data, add_model, add_server)
    generate.add_argument("--output", default="responses.jsonl", help="continued where it stops")
    generate.set_defaults(allow_partial=False)
    extract = add("extract", "responses -> responses with `extraction`", add_data, add_responses, add_rule, add_server)
    extract.add_argument("--output", default="extractions.jsonl", help="rows {id, response, extraction}")
    score = add(
        "score", "responses -> metrics.json, scored.jsonl", add_data, add_responses, add_rule, add_judge, add_server
    )
    score.add_argument("--output", default="metrics.json", help="metrics file; scored.jsonl is written beside it")
    report = add("report", "metrics.json -> report.md and a chart")
    report.add_argument("--metrics", default="metrics.json", help="what `score` wrote")
    report.add_argument("--output", default="report.md", help="Markdown file; the chart is written beside it")
    report.add_argument("--reference", help="json of published figures: {name: {metric: fraction}}")
    add("gap", "modality gap of models on a pair file", add_gap)
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds which items are meant."""
    parser.add_argument("--benchmark", required=True, choices=BENCHMARK_NAMES)
    parser.add_argument("--data", help="json, jsonl or parquet file, or Hub data set (default: the official one)")
    parser.add_argument("--split", default="testmini", help="split of the Hub data set (default: testmini)")


def add_responses(parser: argparse.ArgumentParser) -> None:
    """Adds the file with the replies."""
    parser.add_argument("--responses", required=True, help="jsonl of {id, response[, extraction][, judgement]}")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the model under test and how it replies."""
    parser.add_argument("--model", required=True, help="folder or Hub name, or the name at the server")
    parser.add_argument("--backend", choices=("transformers", "openai"), default="transformers")
    parser.add_argument("--base_url", help="server of --backend openai, such as http://127.0.0.1:8000/v1")
    parser.add_argument("--image_root", help="folder or zip with the pictures, or `hub` to download the archive")
    parser.add_argument("--prompt", choices=("official", "math_puma"), default="official")
    parser.add_argument("--batch_size", type=int, default=16, help="prompts in a batch (default: 16)")
    parser.add_argument("--max_new_tokens", type=int, default=1024, help="longest reply in tokens (default: 1024)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) takes the likeliest token")
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling")
    parser.add_argument("--dtype", default="auto", help="type of the weights (default: that of the checkpoint)")


def add_rule(parser: argparse.ArgumentParser) -> None:
    """Adds how answers are taken from replies."""
    parser.add_argument(
        "--extraction",
        choices=RULES,
        help="rule for rows without `extraction` (default: official for We-Math or with --llm, else final)",
    )


def add_judge(parser: argparse.ArgumentParser) -> None:
    """Adds how answers are judged."""
    parser.add_argument("--judge", choices=JUDGE_NAMES, default="exact", help="judge of MathVerse (default: exact)")
    parser.add_argument(
        "--allow_partial", action="store_true", help="compute headline scores of incomplete runs, labelled as partial"
    )


def add_server(parser: argparse.ArgumentParser) -> None:
    """Adds the OpenAI-compatible servers; the key comes from the environment (OPENAI_API_KEY) only."""
    parser.add_argument("--llm", help="model that extracts answers, and judges them with --judge openai")
    parser.add_argument("--llm_base_url", help="its server (default: OpenAI's)")
    parser.add_argument("--concurrency", type=int, default=8, help="requests under way at once (default: 8)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one try (default: 120)")
    parser.add_argument("--max_retries", type=int, default=5, help="tries after the first (default: 5)")


def add_gap(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `gap`."""
    parser.add_argument("--model", nargs="+", required=True, help="one or several model folders, a row each")
    parser.add_argument("--data", required=True, help="pairs with the published columns: file, folder or Hub data set")
    parser.add_argument("--image_root", help="folder that relative image paths start from")
    parser.add_argument("--batch_size", type=int, default=16, help="pairs in a batch (default: 16)")
    parser.add_argument("--max_new_tokens", type=int, help="longest reply (default: a quarter over the longest gold)")
    parser.add_argument("--num_rows", type=int, help="use the first rows only")
    parser.add_argument("--dtype", default="auto", help="type of the weights (default: that of the checkpoint)")
    parser.add_argument("--output", default="gap.json", help="json; gap.png and gap.pairs.jsonl are written beside it")


def run_all(args: argparse.Namespace) -> None:
    """Generates, extracts, scores and reports into one folder; under `accelerate launch` every rank generates."""
    from .extract import run_extract
    from .generate import run_generate
    from .items import BENCHMARKS
    from .judging import make_judge
    from .report import read_reference, run_report
    from .scoring import run_score

    folder = Path(args.output_dir)
    # what the last steps need is looked at before hours of generation
    read_reference(args.reference and Path(args.reference))
    make_judge(args, BENCHMARKS[args.benchmark], folder / "judgements.jsonl")
    if not run_generate(args, folder / "responses.jsonl"):
        return
    steps = argparse.Namespace(**vars(args))
    steps.responses, steps.output = folder / "responses.jsonl", folder / "extractions.jsonl"
    run_extract(steps)
    # what the extraction step wrote is taken as it is
    steps.responses, steps.output, steps.extraction = folder / "extractions.jsonl", folder / "metrics.json", None
    print_summary(run_score(steps))
    print(run_report(folder / "metrics.json", folder / "report.md", args.reference and Path(args.reference)))


def run_command(args: argparse.Namespace) -> None:
    """Runs the chosen subcommand; only what it needs is imported."""
    if args.command == "run":
        run_all(args)
    elif args.command == "generate":
        from .generate import run_generate

        run_generate(args, Path(args.output))
    elif args.command == "extract":
        from .extract import run_extract

        print(json.dumps(run_extract(args)))
    elif args.command == "score":
        from .scoring import run_score

        print_summary(run_score(args))
    elif args.command == "report":
        from .report import run_report

        print(run_report(Path(args.metrics), Path(args.output), args.reference and Path(args.reference)))
    else:
        from .gap import run_gap

        run_gap(args)


def print_summary(metrics: dict[str, Any]) -> None:
    """Prints the figures that a person looks for first."""
    names = ("benchmark", "items", "answered", "extraction", "judge", "accuracy", "correct", "total", "S1", "S2", "S3")
    print(json.dumps({name: metrics[name] for name in names if name in metrics}))


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = make_parser().parse_args(argv)
    try:
        run_command(args)
    except (EvaluationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
