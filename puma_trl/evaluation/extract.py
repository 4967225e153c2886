"""`extract`: from replies to answers, by rule or by a language model, into a file that `score` takes as responses."""

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from .files import read_jsonl, write_jsonl
from .items import BENCHMARKS, item_id, load_items
from .llm_prompts import extraction_messages
from .responses import ResponseWriter, read_responses, read_settings, repair_last_line, write_settings
from .server import Server


def run_extract(args: argparse.Namespace) -> dict[str, int]:
    """
    Runs the subcommand: writes `{"id", "response", "extraction"}` per response, in the order of the items.

    A row that carries an `extraction` keeps it. With `--llm` the official order applies: what the benchmark's direct
    steps decide is not asked; a request that fails for good counts as a failed extraction, "".

    Args:
        args (`argparse.Namespace`):
            The options of the subcommand.

    Returns:
        `{"given", "rule", "llm", "failed"}`: how many extractions came from where.

    Raises:
        EvaluationError: if input is bad or the server is down.
    """
    benchmark, path, output = BENCHMARKS[args.benchmark], Path(args.responses), Path(args.output)
    rule = args.extraction or ("official" if args.llm else benchmark.DEFAULT_EXTRACTION)
    # a `final` extraction never asks a language model, nor does We-Math
    llm = args.llm if rule != "final" and benchmark.DEFAULT_EXTRACTION == "final" else None
    columns = benchmark.COLUMNS + benchmark.EXTRACTION_COLUMNS.get(rule, ())
    items = load_items(
        benchmark, args.data, args.split, columns + (benchmark.PROMPT_COLUMNS["official"] if llm else ())
    )
    benchmark.check_items(items, allow_partial=True)
    responses = read_responses(path, benchmark, items)
    by_llm, failed = _ask_all(args, benchmark, items, responses, rule, output) if llm else ({}, 0)
    rows, counts = [], {"given": 0, "rule": 0, "llm": 0, "failed": failed}
    for item in items:
        key = item_id(benchmark, item)
        if key not in responses:
            continue
        row = dict(responses[key])
        source = "given" if "extraction" in row else "llm" if key in by_llm else "rule"
        counts[source] += 1
        if source == "llm":
            row["extraction"] = by_llm[key]
        elif source == "rule":
            row["extraction"] = benchmark.extract(item, row.get("response"), rule)
        rows.append(row)
    write_settings(output, read_settings(path) | {"extraction": rule, "extraction_llm": llm, "extractions": counts})
    write_jsonl(output, rows)
    return counts


def _ask_all(
    args: argparse.Namespace,
    benchmark: ModuleType,
    items: list[dict[str, Any]],
    responses: dict[str, dict[str, Any]],
    rule: str,
    output: Path,
) -> tuple[dict[str, str], int]:
    """Returns the language model's extractions by id (asked once each, kept in a cache file), and the failures."""
    server = Server.for_llm(args)
    cache = output.with_suffix(".llm.jsonl")
    repair_last_line(cache)
    cached = {row["request"]: row["reply"] for _, row in read_jsonl(cache)} if cache.exists() else {}
    wanted = {}
    for item in items:
        key = item_id(benchmark, item)
        row = responses.get(key)
        if row is not None and "extraction" not in row and benchmark.needs_llm(item, row.get("response")):
            wanted[key] = extraction_messages(benchmark, item, row["response"])
    requests = {key: server.fingerprint(messages) for key, messages in wanted.items()}
    known = {key: cached[request] for key, request in requests.items() if request in cached}
    pending = [(key, messages) for key, messages in wanted.items() if key not in known]
    failed = 0
    with ResponseWriter(cache) as writer:
        answers = server.map(
            pending, lambda messages: server.ask(messages, temperature=0.0, max_tokens=256), "extracting"
        )
        for key, reply in answers:
            failed += reply is None
            if reply is not None:
                known[key] = reply
                writer.write([{"id": key, "model": server.model, "request": requests[key], "reply": reply}])
    if failed:
        print(
            f"{failed} extractions failed and count as empty (reasons above). Run again to ask them.", file=sys.stderr
        )
    return {key: benchmark.clean_llm_extraction(known.get(key, ""), rule) for key in wanted}, failed
