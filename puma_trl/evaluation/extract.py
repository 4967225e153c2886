"""`extract`: from replies to answers, by rule or by a language model, into a file that `score` takes as responses."""

from pathlib import Path
from typing import Any

from .answers import strip_thoughts
from .benchmarks import Benchmark
from .files import write_jsonl
from .items import load_items
from .llm_cache import ask_cached
from .llm_prompts import extraction_messages
from .responses import read_responses, read_settings, write_settings
from .server import Server
from .settings import ItemSource, LLMSettings


def run_extract(
    source: ItemSource, responses_path: Path, output: Path, rule: str | None = None, llm: LLMSettings | None = None
) -> dict[str, int]:
    """
    Runs the subcommand: writes `{"id", "response", "extraction"}` per response, in the order of the items.

    A row that carries an `extraction` keeps it. With a language model the official order applies: what the benchmark's
    direct steps decide is not asked; a request that fails for good counts as a failed extraction, "".

    Args:
        source ([`ItemSource`]):
            The items.
        responses_path (`Path`):
            The responses file.
        output (`Path`):
            The file to write.
        rule (`str`, *optional*):
            One of `RULES`. Defaults to `"official"` with a language model, else to the benchmark's rule without one.
        llm ([`LLMSettings`], *optional*):
            The language model that extracts.

    Returns:
        `{"given", "rule", "llm", "asked", "failed"}`: how many extractions came from where, and how many of those that
        a language model was asked for it did not give.

    Raises:
        EvaluationError: if input is bad or the server is down.
    """
    benchmark = source.benchmark
    rule = rule or ("official" if llm else benchmark.default_extraction)
    if rule not in benchmark.llm_rules:
        llm = None
    columns = benchmark.columns + benchmark.extraction_columns.get(rule, ())
    items = load_items(
        benchmark, source.data, source.split, columns + (benchmark.prompt_columns["official"] if llm else ())
    )
    benchmark.check_items(items, allow_partial=True)
    responses = read_responses(responses_path, benchmark, items)
    by_llm, failed = _ask_all(llm, benchmark, items, responses, rule, output) if llm else ({}, 0)
    rows, counts = [], {"given": 0, "rule": 0, "llm": 0, "asked": len(by_llm), "failed": failed}
    for item in items:
        key = benchmark.item_id(item)
        if key not in responses:
            continue
        row = dict(responses[key])
        origin = "given" if "extraction" in row else "llm" if key in by_llm else "rule"
        counts[origin] += 1
        if origin == "llm":
            row["extraction"] = by_llm[key]
        elif origin == "rule":
            row["extraction"] = benchmark.extract(item, row.get("response"), rule)
        rows.append(row)
    made_by = {"extraction": rule, "extraction_llm": llm.model if llm else None, "extractions": counts}
    write_settings(output, read_settings(responses_path) | made_by)
    write_jsonl(output, rows)
    return counts


def _ask_all(
    llm: LLMSettings,
    benchmark: Benchmark,
    items: list[dict[str, Any]],
    responses: dict[str, dict[str, Any]],
    rule: str,
    output: Path,
) -> tuple[dict[str, str], int]:
    """Returns the language model's extractions by id (asked once each, kept in a cache file), and the failures."""
    server = Server(llm, llm.max_tokens)
    chats = {}
    for item in items:
        key = benchmark.item_id(item)
        row = responses.get(key)
        if row is not None and "extraction" not in row and benchmark.needs_llm(item, row.get("response")):
            chats[key] = extraction_messages(benchmark, item, row["response"])
    replies, failed = ask_cached(
        server,
        chats,
        lambda chat: _ask(server, chat),
        "reply",
        output.with_suffix(".llm.jsonl"),
        "extracting",
    )
    return {key: benchmark.clean_llm_extraction(replies.get(key, ""), rule) for key in chats}, failed


def _ask(server: Server, chat: list[dict[str, Any]]) -> str | None:
    """Returns what a language model says after its thoughts; `None` where it did not come to an end of them."""
    reply = server.ask(chat, temperature=0.0)
    answer = strip_thoughts(reply)
    return None if reply.strip() and not answer else answer
