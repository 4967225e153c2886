"""Judges of MathVerse answers that are no exact match: math-verify, or a language model that replies 0 or 1."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from .answers import readable_latex, same_option, same_quantity, same_words, strip_thoughts
from .benchmarks import Benchmark, MathVerse
from .llm_cache import ask_cached
from .llm_prompts import judge_messages
from .server import Server
from .settings import LLMSettings


# The official script asks again for ever; temperatures as others raise them between tries.
TEMPERATURES = (0.0, 0.5, 1.0, 1.5, 2.0)
# The verdict that a reply opens with: 1, "Judgement: 1", {"judgement": 1}, "**1**. Both say …"; not 10, 1/2, 0.5,
# "1 cm" or the first of several points
VERDICT = re.compile(
    r"""^[\s*_`{"'\ufeff]*(?:json\s*\{?\s*)?(?:"?judge?ment"?[\s*_]*[:：])?[\s*_"']*([01])(?!1?[.)][^\n]*\n\s*2[.)])"""
    r"""(?=[\s\u200b]*(?:$|\n|[.,:](?!\d)|[;!"'*_}`(（，。；：–—]|-\s)"""
    r"""|\s+(?:because|since|as|the|both|they|it|this|these|for|consistent|inconsistent|correct|incorrect)\b)""",
    re.IGNORECASE,
)
# One that is announced further on, and one that is alone in the last line
ANNOUNCED = re.compile(
    r"""(?:judge?ment|判断|判定)["'”*_\s]{0,4}(?:is\b|[:：=是为])+[\s*_"'“]{0,4}([01])(?![\w/%^]|[.,:]\d|\s*(?:or|/|或))""",
    re.IGNORECASE,
)
LAST_LINE = re.compile(r"""\n[\s*_`"'(\[]{0,4}(?:(?:answer|output):\s?)?([01])[\s*_`"')\].。]*$""", re.IGNORECASE)
WRAPPING = re.compile(r"\\boxed\{([01])\}|<answer>\s*([01])\s*</answer>|\[([01])\]|\(([01])\)")
VERDICT_FORM = {
    "type": "object",
    "properties": {"judgement": {"type": "integer", "enum": [0, 1]}},
    "required": ["judgement"],
    "additionalProperties": False,
}

Judge = Callable[[list[dict[str, Any]], dict[str, dict[str, Any]], list[dict[str, Any]]], dict[str, Any]]


def make_judge(name: str, benchmark: Benchmark, llm: LLMSettings | None, cache: Path) -> Judge | None:
    """
    Makes the judge that was asked for.

    Args:
        name (`str`):
            One of `JUDGES`.
        benchmark ([`Benchmark`]):
            The benchmark.
        llm ([`LLMSettings`], *optional*):
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
    server = Server(llm, llm.max_tokens)
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
        scored[position]["correct"] = is_equivalent(benchmark, items[position], str(scored[position]["extraction"]))
    return {"judge": "math_verify", "judged": len(positions)}


def is_equivalent(benchmark: MathVerse, item: dict[str, Any], extraction: str) -> bool:
    """
    Returns whether an extraction means the gold answer: the option by its letter or text, the same words, the same
    quantity whatever its unit, or what math-verify finds equal.
    """
    gold = item["answer"]
    if item["question_type"] == "multi-choice":
        return same_option(gold, extraction, benchmark.options(item))
    if same_words(gold, extraction):
        return True
    same = same_quantity(gold, extraction)
    if same is not None:
        return same
    from math_verify import parse, verify

    gold, extraction = readable_latex(gold), readable_latex(extraction)
    return verify(parse(f"${gold}$"), parse(f"${extraction}$") or parse(extraction))


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

    A reply in which [`read_verdict`] finds no verdict is asked for again at the next of `TEMPERATURES`, and counts as
    wrong after the last. Servers that can are asked for nothing else.

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


def read_verdict(reply: str) -> int | None:
    """
    Returns the 0 or 1 that a judge's reply opens with, thoughts and the word "Judgement" aside, else the first one
    that it announces as its judgement, else the one that is its last line.
    """
    text = WRAPPING.sub(lambda match: next(filter(None, match.groups())), strip_thoughts(reply))
    verdict = VERDICT.match(text) or ANNOUNCED.search(text) or LAST_LINE.search("\n" + text)
    return verdict and int(verdict[1])


def _ask(server: Server, messages: list[dict[str, Any]]) -> int | None:
    for temperature in TEMPERATURES:
        verdict = read_verdict(server.ask_in_form(messages, "judgement", VERDICT_FORM, temperature=temperature))
        if verdict is not None:
            return verdict
    return None
