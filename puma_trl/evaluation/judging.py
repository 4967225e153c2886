"""Judges of MathVerse answers that are no exact match: math-verify, or a language model that replies 0 or 1."""

import argparse
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import EvaluationError
from .answers import LETTER
from .files import read_jsonl
from .items import item_id
from .llm_prompts import judge_messages
from .responses import ResponseWriter, repair_last_line
from .server import Server


JUDGES = ("exact", "math_verify", "openai")
# The official script asks again for ever; temperatures as others raise them between tries.
TEMPERATURES = (0.0, 0.5, 1.0, 1.5, 2.0)

Judge = Callable[[list[dict[str, Any]], dict[str, dict[str, Any]], list[dict[str, Any]]], dict[str, Any]]


def make_judge(args: argparse.Namespace, benchmark: ModuleType, cache: Path) -> Judge | None:
    """
    Makes the judge that was asked for.

    Args:
        args (`argparse.Namespace`):
            Options with `judge` and, for `openai`, those of the server.
        benchmark (module):
            The benchmark.
        cache (`Path`):
            Where a language model's judgements are kept, so that none is asked for twice.

    Returns:
        `None` for `exact`; else a function (items, responses, scored rows) that sets `correct` where no judgement is
        carried and returns what is to be recorded about the judge.

    Raises:
        EvaluationError: if the benchmark has no judge.
    """
    if args.judge == "exact":
        return None
    if benchmark.NAME != "mathverse":
        raise EvaluationError(
            f"--judge {args.judge} is for MathVerse. {benchmark.TITLE} compares the normalised answer by its official "
            "rule; a `judgement` of 0 or 1 in a response row overrides it."
        )
    if args.judge == "math_verify":
        return lambda items, responses, scored: judge_by_math_verify(benchmark, items, responses, scored)
    if args.llm is None:
        raise EvaluationError("--judge openai needs the name of a model: pass --llm.")
    server = Server.for_llm(args)
    return lambda items, responses, scored: judge_by_server(benchmark, items, responses, scored, server, cache)


def pending(
    benchmark: ModuleType,
    items: list[dict[str, Any]],
    responses: dict[str, dict[str, Any]],
    scored: list[dict[str, Any]],
) -> list[int]:
    """Returns the positions to judge: answered, with an extraction, no carried judgement, not an exact match."""
    positions = []
    for position, (item, row) in enumerate(zip(items, scored, strict=True)):
        response = responses.get(item_id(benchmark, item))
        if response is None or "judgement" in response or row["correct"] or row["extraction"] in (None, ""):
            continue
        positions.append(position)
    return positions


def judge_by_math_verify(
    benchmark: ModuleType,
    items: list[dict[str, Any]],
    responses: dict[str, dict[str, Any]],
    scored: list[dict[str, Any]],
) -> dict[str, Any]:
    """Sets `correct` by mathematical equality (free form) or by the option letter (multiple choice)."""
    positions = pending(benchmark, items, responses, scored)
    for position in positions:
        scored[position]["correct"] = is_equivalent(items[position], str(scored[position]["extraction"]))
    return {"judge": "math_verify", "judged": len(positions)}


def is_equivalent(item: dict[str, Any], extraction: str) -> bool:
    """Returns whether an extraction means the gold answer, by math-verify or, in multiple choice, by its letter."""
    from math_verify import parse, verify

    if item["question_type"] == "multi-choice":
        letter = LETTER.search(extraction)
        return letter is not None and letter.group().strip("()") == item["answer"].strip(" ()")
    return verify(parse(f"${item['answer']}$"), parse(f"${extraction}$") or parse(extraction))


def judge_by_server(
    benchmark: ModuleType,
    items: list[dict[str, Any]],
    responses: dict[str, dict[str, Any]],
    scored: list[dict[str, Any]],
    server: Server,
    cache: Path,
) -> dict[str, Any]:
    """
    Sets `correct` by a language model that compares question, gold answer and extraction.

    A reply must be exactly 0 or 1 once "Judgement:" is removed; anything else is asked again at the next of
    `TEMPERATURES`, and counts as wrong after the last.

    Args:
        benchmark (module):
            MathVerse.
        items (`list[dict[str, Any]]`):
            Its items, with `question_for_eval` or, where that is missing, a non-empty `question`.
        responses (`dict[str, dict[str, Any]]`):
            Id as text → row.
        scored (`list[dict[str, Any]]`):
            Rows to complete.
        server ([`Server`]):
            The judge.
        cache (`Path`):
            Where judgements are kept.

    Returns:
        Model, number of items judged, and of those whose judgement failed.
    """
    positions = pending(benchmark, items, responses, scored)
    repair_last_line(cache)
    cached = {row["request"]: row["judgement"] for _, row in read_jsonl(cache)} if cache.exists() else {}
    keys = {position: item_id(benchmark, items[position]) for position in positions}
    chats = {key: judge_messages(items[p], str(scored[p]["extraction"])) for p, key in keys.items()}
    requests = {key: server.fingerprint(chat) for key, chat in chats.items()}
    known = {key: cached[request] for key, request in requests.items() if request in cached}
    asked = [(key, chat) for key, chat in chats.items() if key not in known]
    failed = 0
    with ResponseWriter(cache) as writer:
        for key, judgement in server.map(asked, lambda chat: _ask(server, chat), "judging"):
            failed += judgement is None
            if judgement is not None:
                known[key] = judgement
                writer.write([{"id": key, "model": server.model, "request": requests[key], "judgement": judgement}])
    for position, key in keys.items():
        scored[position]["correct"] = known.get(key) == 1
    return {"judge": "openai", "model": server.model, "judged": len(positions), "failed": failed}


def _ask(server: Server, messages: list[dict[str, Any]]) -> int | None:
    for temperature in TEMPERATURES:
        reply = server.ask(messages, temperature=temperature, max_tokens=16)
        verdict = reply.replace("Judgement:", "").strip()
        if verdict in ("0", "1"):
            return int(verdict)
    return None
