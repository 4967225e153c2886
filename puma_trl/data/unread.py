"""What a row has and its form does not read: which of it must not be lost."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from .columns import Form, Path
from .lookalikes import BESIDE, CHOICE, MEDIA, PICTURES, QUESTION, SYSTEM, find_picture, has_choices, names_choices
from .texts import shorten


# A shorter text may be in another by chance.
SHORTEST_PIECE = 20


def unread_parts(raw: dict[str, Any], form: Form) -> Iterator[tuple[str, Any]]:
    """
    Yields what is not read of a row, but what is left out on purpose: columns, and parts of columns of which others
    are read, with dots in their names. The rest of a list is one part.
    """
    for name, value in raw.items():
        if name not in form.settled:
            yield name, value
        elif name in form.partly:
            yield from _parts(name, value, form.partly[name], form)


def _parts(name: str, value: Any, read: Sequence[Path], form: Form) -> Iterator[tuple[str, Any]]:
    if () in read or name in form.ignored:
        return
    keys = {path[0] for path in read}
    if isinstance(value, dict):
        for key, part in value.items():
            inner = f"{name}.{key}"
            if key in keys:
                yield from _parts(inner, part, [path[1:] for path in read if path[0] == key], form)
            elif inner not in form.ignored:
                yield inner, part
    elif isinstance(value, list) and (rest := [part for index, part in enumerate(value) if str(index) not in keys]):
        yield f"{name}.…", rest


def loss_reason(name: str, value: Any, form: Form) -> str | None:
    """Says why a value must not be lost, if so: the name of its column, or pictures or choices in it."""
    if name.endswith(".…"):  # of a list, some other entry was asked for
        return None
    reason = form.suspicion(name)
    if isinstance(value, bool | int | float) and (reason in (QUESTION, SYSTEM) or form.is_mark(name)):
        reason = None
    if reason is None and (picture := find_picture(value)) is not None:
        return f"holds a picture ('{shorten(picture)}')"
    if reason is None and isinstance(value, dict):
        for key, part in value.items():
            if names_choices(key) and isinstance(part, list) and len(part) > 1:
                return f"{BESIDE}: it has `{key}`"
    return reason


def is_said(value: Any, reason: str, texts: Sequence[str]) -> bool:
    """
    Whether all that a column holds stands in the texts of its row anyway, so that nothing is lost.

    Args:
        value (`Any`):
            What the column holds.
        reason (`str`):
            Why it must not be lost otherwise.
        texts (`Sequence[str]`):
            The texts that are read.
    """
    if reason.startswith(("needs", "holds", PICTURES, MEDIA)) or find_picture(value) is not None:
        return False
    pieces = [piece for piece in _pieces(value) if piece]
    is_conversation = isinstance(value, list) and all(isinstance(part, dict) for part in value)
    if reason == CHOICE or (isinstance(value, list | dict) and not is_conversation):
        # choices are short, and must be in a list of choices
        return any(has_choices(text) and _in_order(pieces, text) for text in texts)
    texts = [" ".join(text.split()) for text in texts]
    return all(piece in texts or (len(piece) >= SHORTEST_PIECE and piece in "\n".join(texts)) for piece in pieces)


def is_shown(value: Any, pictures: Any) -> bool:
    """Whether all that a column holds are names of pictures that are read, or longer or shorter paths to these."""
    named, read = list(_pieces(value)), [name for name in _pieces(pictures) if find_picture(name)]
    return bool(named) and all(
        any(f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}") for other in read) for one in named
    )


def _pieces(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = [part for key, part in value.items() if key not in ("role", "from")]
    if isinstance(value, list):
        for part in value:
            yield from _pieces(part)
    elif not isinstance(value, bytes | None):
        yield " ".join(str(value).split())


def _in_order(pieces: Sequence[str], text: str) -> bool:
    pattern = ".*?".join(rf"(?<!\w){re.escape(piece)}(?!\w)" for piece in pieces)
    return bool(re.search(pattern, " ".join(text.split()), re.DOTALL))
