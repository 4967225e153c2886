"""Conversations in any writing → turns: a role, a text, and the places of its pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import DataError
from .numbers import number_to_text
from .places import IMAGE_PLACE, Place, mark_places, refuse_places
from .texts import describe, find_flaw, shorten


SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = {
    **dict.fromkeys((SYSTEM, "developer"), SYSTEM),
    **dict.fromkeys((USER, "human"), USER),
    **dict.fromkeys((ASSISTANT, "gpt", "chatgpt", "bot", "model"), ASSISTANT),
}
# The kind of problem of a row that has nothing to learn
NO_ANSWER = "no answer"
TOOL_ROLES = ("tool", "function", "function_call", "function_response", "observation", "ipython")
TOOL_KEYS = ("tool_calls", "tool_call_id", "tool_responses", "function_call")
# What else a turn may have, as it is no part of the conversation
ABOUT_TURN = set(
    "id message_id index idx turn turn_id date time timestamp created_at model lang language hash uuid source toxic "
    "redacted".split()
)
# Which say how much a turn is to be trained on: 1 for the answer, and nothing or 0 for the others
WEIGHT_KEYS = ("weight", "train", "trainable", "loss", "loss_mask", "loss_scale", "loss_weight")
EMPTY = (None, "", [], {})
TEXT_PARTS = ("text", "input_text", "output_text")
PICTURE_PARTS = ("image", "image_url", "input_image")
# Where a part of a message has its picture, if it has it itself
PICTURE_KEYS = ("image", "image_url", "url", "path")


@dataclass
class Turn:
    """
    A turn of a conversation.

    Args:
        role (`str`):
            `"system"`, `"user"` or `"assistant"`.
        text (`str`):
            Its text, with `<image>` in the places of pictures.
        places (`list[Place]`):
            These places.
    """

    role: str
    text: str = ""
    places: list[Place] = field(default_factory=list)


def read_turns(value: Any, name: str, ends_in_answer: bool = False) -> list[Turn]:
    """
    Reads the messages of a conversation: objects with `role` and `content`, or `from` and `value`.

    Args:
        value (`Any`):
            What stands in the column.
        name (`str`):
            The column.
        ends_in_answer (`bool`, *optional*, defaults to `False`):
            Whether a last turn of the assistant is the answer, of which [`check_answer`] says whether it may be empty.

    Raises:
        DataError: if it is not a list of messages, has something that is not read, such as calls of tools, or weights
            by which something else than the answer is to be trained on.
    """
    if not isinstance(value, list) or not value:
        raise DataError(f"wrong type: `{name}` is {describe(value)}, not a list of turns")
    turns = [
        _read_turn(turn, f"turn {number} of `{name}`", is_answer=ends_in_answer and number == len(value))
        for number, turn in enumerate(value, 1)
    ]
    return turns[1:] if len(turns) > 1 and not turns[0].text else turns  # without an empty system prompt


def _read_turn(turn: Any, name: str, is_answer: bool) -> Turn:
    if not isinstance(turn, dict):
        raise DataError(f"wrong type: {name} is {describe(turn)}, not an object with `role` and `content`")
    speaker = turn.get("role") or turn.get("from")
    content = turn.get("value") if turn.get("content") is None else turn["content"]
    role = ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
    called = next((f"has `{key}`" for key in TOOL_KEYS if turn.get(key)), None)
    if called or speaker in TOOL_ROLES:
        raise DataError(f"tool calls: {name} {called or f'is by {speaker!r}'}, which is not read")
    if role is None:
        raise DataError(f"roles: {name} is by {describe(speaker)}; known are {', '.join(ROLES)}")
    read = {"role" if turn.get("role") else "from", "value" if turn.get("content") is None else "content"}
    for key, value in turn.items():
        if key in read or key in ABOUT_TURN or key in WEIGHT_KEYS or value in EMPTY:
            continue
        same = key in ("role", "from", "name") and isinstance(value, str) and ROLES.get(value.lower()) == role
        if not same:
            raise DataError(f"unread key: {name} has `{shorten(key)}` ({describe(value)}), which is not read")
    is_answer = is_answer and role == ASSISTANT
    _check_weight(turn, name, is_answer)
    if content in EMPTY and (role == SYSTEM or is_answer):
        return Turn(role)
    return make_turn(role, content, name, may_be_blank=is_answer)


def _check_weight(turn: dict[str, Any], name: str, is_answer: bool) -> None:
    """Makes sure that the answer, which alone is trained on, has no other weight than 1, and the other turns none."""
    for key in WEIGHT_KEYS:
        weight = turn.get(key)
        if weight in (*EMPTY, 1 if is_answer else 0):
            continue
        if is_answer and weight == 0:
            raise DataError(f"not trained on: {name}, the answer, is not to be learned, as its `{key}` is 0")
        if weight == 1:
            raise DataError(
                f"not trained on: {name} is to be learned, as its `{key}` is 1, but only the last answer is trained on"
            )
        raise DataError(f"unread key: {name} has `{key}` ({describe(weight)}), which is not read")


def make_turn(role: str, content: Any, name: str, may_be_blank: bool = False) -> Turn:
    """
    Makes a turn of a text, or of a list of parts with the types `text` and `image`.

    Args:
        role (`str`):
            Whose turn it is.
        content (`Any`):
            The text or the parts.
        name (`str`):
            What messages call it.
        may_be_blank (`bool`, *optional*, defaults to `False`):
            Whether the text may be empty.

    Raises:
        DataError: if it is neither, is empty, or a picture stands where none can be.
    """
    turn = Turn(role)
    for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
        text, places = _read_part(part, role, name)
        turn.text += text
        turn.places += places
    if not turn.text.strip() and not may_be_blank:
        raise DataError(f"empty text: {name} ({role}) is empty")
    return turn


def _read_part(part: Any, role: str, name: str) -> tuple[str, list[Place]]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in TEXT_PARTS:
        _refuse_others(part, ("text",), name)
        return _read_text(part.get("text"), role, name)
    if kind not in PICTURE_PARTS:
        shown = describe(part) if kind is None else f"of the type {describe(kind)}"
        raise DataError(f"unread key: {name} has a part {shown}, but only parts with text and pictures are read")
    if role != USER:
        raise DataError(f"image places: {name} has a picture, but pictures stand in questions alone")
    given = [key for key in PICTURE_KEYS if part.get(key) not in EMPTY]
    picture, number = (part[given[0]] if given else None), part.get("index")
    # of pictures in a column of their own, some say which one is meant
    numbered = not given and isinstance(number, int) and not isinstance(number, bool)
    _refuse_others(part, [*given[:1], *(["index"] if numbered else [])], name)
    if isinstance(picture, dict) and "url" in picture:
        _refuse_others(picture, ("url",), name)
        picture = picture["url"]
    return IMAGE_PLACE, [Place("a part of the type image", number if numbered else None, picture)]


def _refuse_others(part: dict[str, Any], read: Sequence[str], name: str) -> None:
    """Makes sure that a part of a message has nothing but its type and what is read."""
    for key, value in part.items():
        if key not in ("type", *read) and value not in EMPTY and (key, value) != ("detail", "auto"):
            beside = f" beside `{read[0]}`" if read else ""
            raise DataError(
                f"unread key: {name} has a part with `{shorten(key)}` ({describe(value)}){beside}, which is not read"
            )


def _read_text(text: Any, role: str, name: str) -> tuple[str, list[Place]]:
    text = number_to_text(text)
    if not isinstance(text, str):
        raise DataError(f"wrong type: {name} is {describe(text)}, not text")
    flaw = find_flaw(text)
    if flaw:
        raise DataError(f"invalid text: {name} {flaw}")
    if role == USER:
        return mark_places(text, name)
    refuse_places(text, name)
    return text, []


def read_history(value: Any, name: str) -> list[Turn]:
    """
    Reads what was said before: pairs of a question and an answer, or turns.

    Raises:
        DataError: if it is neither.
    """
    if not isinstance(value, list):
        raise DataError(f"wrong type: `{name}` is {describe(value)}, not a list of questions with their answers")
    if isinstance(value[0], dict):
        return read_turns(value, name)
    turns = []
    for number, pair in enumerate(value, 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DataError(
                f"wrong type: entry {number} of `{name}` is {describe(pair)}, not a question and its answer"
            )
        turns += [
            make_turn(role, pair[index], f"entry {number} of `{name}`") for index, role in enumerate((USER, ASSISTANT))
        ]
    return turns


def read_conversation(value: Any, name: str, needs_answer: bool = True) -> list[Turn]:
    """
    Reads a conversation up to its last answer, the one that is trained on.

    Args:
        value (`Any`):
            Messages, as [`read_turns`] takes them.
        name (`str`):
            The column.
        needs_answer (`bool`, *optional*, defaults to `True`):
            Whether it must end in an answer. Otherwise one that ends in a question gets an empty one.

    Raises:
        DataError: if it cannot be read, its turns are out of order, or its weights do not say that its last answer
            alone is to be trained on.
    """
    turns = read_turns(value, name, ends_in_answer=True)
    if turns[-1].role == USER and not needs_answer:
        turns.append(Turn(ASSISTANT))
    check_order(turns, name)
    check_answer(turns[-1].text, f"turn {len(value)} of `{name}` (assistant)", needs_answer)
    return turns


def check_answer(text: str, name: str, needs_answer: bool) -> None:
    """
    Makes sure that an answer that is needed has a text.

    Raises:
        DataError: if it has none.
    """
    if needs_answer and not text.strip():
        raise DataError(f"{NO_ANSWER}: {name} is empty")


def check_order(turns: list[Turn], name: str) -> None:
    """
    Makes sure that a conversation ends in an answer, before which user and assistant alternate.

    Raises:
        DataError: if it does not.
    """
    roles = [turn.role for turn in turns]
    if roles[-1] != ASSISTANT:
        raise DataError(f"{NO_ANSWER}: the last turn of `{name}` is by the {roles[-1]}, not by the assistant")
    speakers = roles[1:] if roles[0] == SYSTEM else roles
    if not speakers or speakers != [USER, ASSISTANT] * (len(speakers) // 2):
        shown = ", ".join(roles[:8]) + (", …" if len(roles) > 8 else "")
        raise DataError(
            f"roles: the turns of `{name}` are by {shown}; behind a system prompt, if any, user and assistant must "
            "alternate"
        )
