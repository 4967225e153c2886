"""Answers of a language model that extracts or judges, kept in a file so that none is asked for twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .files import read_jsonl
from .responses import ResponseWriter, repair_last_line
from .server import Server


Chat = list[dict[str, Any]]


def ask_cached(
    server: Server, chats: dict[str, Chat], ask: Callable[[Chat], Any], name: str, cache: Path, title: str
) -> tuple[dict[str, Any], int]:
    """
    Asks the chats that the cache does not hold, and adds the answers to it as they come.

    Args:
        server ([`Server`]):
            The language model.
        chats (`dict[str, list[dict[str, Any]]]`):
            Id → chat.
        ask (`Callable[[list[dict[str, Any]]], Any]`):
            Asks one chat; `None` is a failure.
        name (`str`):
            What an answer is called in the cache, rows `{"id", "model", "request", name}`.
        cache (`Path`):
            The jsonl file; a chat is known by its fingerprint, whatever its id.
        title (`str`):
            Words of the progress bar.

    Returns:
        Id → answer, without those that failed, and how many failed.

    Raises:
        EvaluationError: if the server is down.
    """
    repair_last_line(cache)
    cached = {row["request"]: row[name] for _, row in read_jsonl(cache)} if cache.exists() else {}
    requests = {key: server.fingerprint(chat) for key, chat in chats.items()}
    answers = {key: cached[request] for key, request in requests.items() if request in cached}
    failed = 0
    with ResponseWriter(cache) as writer:
        asked = [(key, chat) for key, chat in chats.items() if key not in answers]
        for key, answer in server.map(asked, ask, title):
            failed += answer is None
            if answer is not None:
                answers[key] = answer
                writer.write([{"id": key, "model": server.model, "request": requests[key], name: answer}])
    return answers, failed
