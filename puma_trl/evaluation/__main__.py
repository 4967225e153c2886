"""`python -m puma_trl.evaluation {run,generate,extract,score,report,gap}`."""

import argparse
import json
import sys

from .errors import EvaluationError


BENCHMARK_NAMES = ("mathverse", "mathvista", "wemath")
RULE_NAMES = ("official", "math_puma", "final")
JUDGE_NAMES = ("exact", "math_verify", "openai")


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all subcommands."""
    parser = argparse.ArgumentParser(prog="python -m puma_trl.evaluation", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    score = commands.add_parser("score", help="responses -> metrics.json and scored.jsonl", allow_abbrev=False)
    add_data(score)
    score.add_argument("--responses", required=True, help="jsonl of {id, response[, extraction][, judgement]}")
    score.add_argument("--output", default="metrics.json", help="metrics file; scored.jsonl is written beside it")
    add_scoring(score)
    add_server(score)
    gap = commands.add_parser("gap", help="modality gap of models on a pair file", allow_abbrev=False)
    add_gap(gap)
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds which items are meant."""
    parser.add_argument("--benchmark", required=True, choices=BENCHMARK_NAMES)
    parser.add_argument("--data", help="json, jsonl or parquet file, or Hub data set (default: the official one)")
    parser.add_argument("--split", default="testmini", help="split of the Hub data set (default: testmini)")


def add_scoring(parser: argparse.ArgumentParser) -> None:
    """Adds how replies are extracted and judged."""
    parser.add_argument(
        "--extraction",
        choices=RULE_NAMES,
        help="rule for rows without an extraction (default: final for MathVerse and MathVista, official for We-Math)",
    )
    parser.add_argument("--judge", choices=JUDGE_NAMES, default="exact", help="judge of MathVerse (default: exact)")
    parser.add_argument("--judge_model", help="model of --judge openai")
    parser.add_argument(
        "--allow_partial", action="store_true", help="compute headline scores of incomplete runs, labelled as partial"
    )


def add_server(parser: argparse.ArgumentParser) -> None:
    """Adds the OpenAI-compatible server; its key comes from the environment (OPENAI_API_KEY) only."""
    parser.add_argument("--base_url", help="OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
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


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand; returns the exit code."""
    args = make_parser().parse_args(argv)
    try:
        if args.command == "score":
            from .scoring import run_score

            print_summary(run_score(args))
        elif args.command == "gap":
            from .gap import run_gap

            run_gap(args)
    except (EvaluationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def print_summary(metrics: dict) -> None:
    """Prints the figures that a person looks for first."""
    names = ("benchmark", "items", "answered", "extraction", "judge", "accuracy", "correct", "total", "S1", "S2", "S3")
    print(json.dumps({name: metrics[name] for name in names if name in metrics}))


if __name__ == "__main__":
    sys.exit(main())
