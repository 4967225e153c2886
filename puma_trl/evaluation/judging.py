"""Judges of MathVerse answers that are no exact match: math-verify, or a language model that replies 0 or 1."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from .answers import LETTER
from .benchmarks import Benchmark, MathVerse
from .llm_cache import ask_cached
from .llm_prompts import judge_messages
from .server import Server
from .settings import ServerSettings


# The official script asks again for ever; temperatures as others raise them between tries.
TEMPERATURES = (0.0, 0.5, 1.0, 1.5, 2.0)

Judge = Callable[[list[dict[str, Any]], dict[str, dict[str, Any]], list[dict[str, Any]]], dict[str, Any]]


def make_judge(name: str, benchmark: Benchmark, llm: ServerSettings | None, cache: Path) -> Judge | None:
    """
    Makes the judge that was asked for.

    Args:
        name (`str`):
            One of `JUDGES`.
        benchmark ([`Benchmark`]):
            The benchmark.
        llm ([`ServerSettings`], *optional*):
            The language model of the judge `"openai"`.
        cache (`Path`):
            Where a language model's judgements are kept, so that none is asked for twice.

    Returns:
        `None` for `exact`; else a function (items, responses, scored rows) that sets `correct` where no judgement is
        carried and returns what is to be recorded about the judge.

    Raises:
        EvaluationError: if the benchmark has no judge, or the judge no language model.
    """
    if name == "exact":
        return None
    if not isinstance(benchmark, MathVerse):
        raise EvaluationError(
            f"--judge {name} is for MathVerse. {benchmark.title} compares the normalised answer by its official rule; "
            "a `judgement` of 0 or 1 in a response row overrides it."
        )
    if name == "math_verify":
        return lambda items, responses, scored: judge_by_math_verify(benchmark, items, responses, scored)
    if llm is None:
        raise EvaluationError("--judge openai needs the name of a model: pass --llm.")
    server = Server.connect(llm)
    return lambda items, responses, scored: judge_by_server(benchmark, items, responses, scored, server, cache)


def pending(
    benchmark: MathVerse,
    items: list[dict[str, Any]],
    responses: dict[str, dict[str, Any]],
    scored: list[dict[str, Any]],
) -> list[int]:
    """Returns the positions to judge: answered, with an extraction, no carried judgement, not an exact match."""
    positions = []
    for position, (item, row) in enumerate(zip(items, scored, strict=True)):
        response = responses.get(benchmark.item_id(item))
        if response is None or "judgement" in response or row["correct"] or row["extraction"] in (None, ""):
            continue
        positions.append(position)
    return positions


def judge_by_math_verify(
    benchmark: MathVerse,
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
    benchmark: MathVerse,
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
        benchmark ([`MathVerse`]):
            The benchmark.
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
    keys = {position: benchmark.item_id(items[position]) for position in pending(benchmark, items, responses, scored)}
    chats = {}
    for position, key in keys.items():
        item, extraction = items[position], str(scored[position]["extraction"])
        chats[key] = judge_messages(benchmark.judge_question(item), item["answer"], extraction)
    judgements, failed = ask_cached(server, chats, lambda chat: _ask(server, chat), "judgement", cache, "judging")
    for position, key in keys.items():
        scored[position]["correct"] = judgements.get(key) == 1
    return {"judge": "openai", "model": server.model, "judged": len(keys), "failed": failed}


def _ask(server: Server, messages: list[dict[str, Any]]) -> int | None:
    for temperature in TEMPERATURES:
        reply = server.ask(messages, temperature=temperature, max_tokens=16)
        verdict = reply.replace("Judgement:", "").strip()
        if verdict in ("0", "1"):
            return int(verdict)
    return None
