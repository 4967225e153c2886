"""A row as it stands in a file → the columns to train on: texts, turns in order, pictures with absolute paths."""

import os
from collections.abc import Iterator
from typing import Any

from ..errors import DataError
from .columns import PUBLISHED, SHARED_FIELDS, SUFFIXES, Form, Path
from .images import read_address
from .marks import marks_wrong
from .numbers import number_to_text
from .places import check_places, mark_places, refuse_places
from .texts import check_text, describe, is_empty, shorten
from .turns import (
    ASSISTANT,
    NO_ANSWER,
    SYSTEM,
    USER,
    Turn,
    check_answer,
    check_order,
    make_turn,
    read_conversation,
    read_history,
    read_turns,
)
from .unread import is_said, is_shown, loss_reason, unread_parts


LONGEST_PATH = 4096  # of Linux
# The columns of a row that was read: both sides, each with the turns before its question
ROW_COLUMNS = tuple(
    f"{name}{suffix}" for suffix in SUFFIXES for name in ("image_url", "instruction", "output", "history")
)


def read_row(raw: Any, root: str | None, form: Form = PUBLISHED) -> dict[str, Any]:
    """
    Brings a row of any form into one: the text to answer, the answer, what was said before, and the pictures.

    Args:
        raw (`Any`):
            The row as it stands in the file.
        root (`str`, *optional*):
            Folder that relative image paths start from.
        form ([`Form`], *optional*):
            The form of the row. Defaults to the published one.

    Returns:
        `dict`: the columns `ROW_COLUMNS`, and `unread`, the columns that the form has not seen and that are not read.
        `history` is a list of turns with `role` and `content`; pictures are structs of `bytes` and `path`, and
        `<image>` in a text of the user's is the place of the next one. All of the second side is `None` when the row
        has nothing of it. An answer that is missing, where the form needs none, is the empty text.

    Raises:
        DataError: if a column is missing, has the wrong type, or holds something that would not be used.
    """
    if not isinstance(raw, dict):
        raise DataError(f"wrong type: the row is {describe(raw)}, not an object with columns")
    row = dict.fromkeys(ROW_COLUMNS)
    row["unread"] = _find_unread(raw, form)
    for suffix, fields in form.sides.items():
        if suffix and not _has_second_side(raw, form):
            break
        turns = _read_all_turns(raw, fields, form.needs_answer)
        side = _read_side(raw, fields, turns, root, all_pictures=f"image_url{suffix}" in form.mapped)
        row.update({f"{name}{suffix}": value for name, value in side.items()})
    lone = find_lone(raw, form)
    if lone is not None:
        raise DataError(f"unread column: `{lone[0]}` is given for one side alone, and no `{lone[1]}` for the other")
    return row


def find_lone(raw: dict[str, Any], form: Form) -> tuple[str, str] | None:
    """Returns a column that a pair has before the question of one side, and the field that the other side lacks."""
    if not _has_second_side(raw, form):
        return None
    for field in SHARED_FIELDS:
        for suffix, other in (SUFFIXES, SUFFIXES[::-1]):
            columns = {path[0] for path in form.fields.get(f"{field}{other}", ())}
            value, name = _choose(raw, form.fields.get(f"{field}{suffix}", ()))
            if value not in (None, "", []) and not columns & {*form.seen, *raw}:
                return name, f"{field}{other}"
    return None


def _has_second_side(raw: dict[str, Any], form: Form) -> bool:
    """Whether a row has anything of its own for the vision-rich side."""
    return any((value := _pick(raw, path)) != [] and not _is_no_picture(value) for path in form.second)


def find_losses(raw: dict[str, Any], form: Form) -> Iterator[tuple[str, Any, str | None]]:
    """
    Yields the columns of a row, and parts of columns, that are not read.

    Yields:
        `tuple[str, Any, str | None]`: a name, what it holds, and why that must not be lost, if so.
    """
    texts = None
    for name, value in unread_parts(raw, form):
        reason = loss_reason(name, value, form) if value and not is_empty(value) else None
        if reason is not None:
            texts = read_texts(raw, form) if texts is None else texts
            said = is_said(value, reason, [text for side in texts.values() for text in side])
            if said or is_shown(value, _picture_values(raw, form)):
                reason = None
        yield name, value, reason


def _picture_values(raw: dict[str, Any], form: Form) -> list[Any]:
    """Returns what the columns of pictures hold; of pairs nothing, as a column may be meant for either side."""
    try:
        return [] if _has_second_side(raw, form) else [_pick(raw, path) for path in form.fields["image_url"]]
    except DataError:  # which is told when the row is read
        return []


def _find_unread(raw: dict[str, Any], form: Form) -> list[str] | None:
    """Returns the columns that are new; one that is not read must not hold a picture, nor what has the name of one."""
    if not form.partly and raw.keys() <= form.settled:
        return None
    late = []
    for name, value, reason in find_losses(raw, form):
        if form.is_mark(name) and marks_wrong(name, value):
            raise DataError(
                f"marked wrong: `{name}` is {describe(value)}, which may say that the answer is not to be learned"
            )
        if reason:
            raise DataError(f"unread column: `{name}` is not read, but {reason}")
        if value and name not in form.seen and not is_empty(value):
            late.append(name)
    return late or None


def read_texts(raw: dict[str, Any], form: Form) -> dict[str, list[str]]:
    """Returns the texts of the turns of each side that can be read, whatever its pictures are."""
    texts = {}
    for suffix, fields in form.sides.items():
        try:
            if not suffix or _has_second_side(raw, form):
                texts[suffix] = [turn.text for turn in _read_all_turns(raw, fields, form.needs_answer)[0]]
        except DataError:  # which is told when the row is read
            pass
    return texts


def _pick(raw: dict[str, Any], path: Path) -> Any:
    value = raw.get(path[0])
    for name in path[1:]:
        if value is None:
            return None
        if isinstance(value, list) and name.isdecimal():
            value = value[int(name)] if int(name) < len(value) else None
        elif isinstance(value, dict):
            value = value.get(name)
        else:
            raise DataError(f"wrong type: `{path[0]}` is {describe(value)}, not an object with `{name}`")
    return value


def _choose(raw: dict[str, Any], paths: tuple[Path, ...]) -> tuple[Any, str]:
    """Returns the value of a field, and the column that has it."""
    found = [(value, ".".join(path)) for path in paths if (value := _pick(raw, path)) not in (None, "", [])]
    if len(found) > 1:
        names = " and ".join(f"`{name}`" for _, name in found)
        raise DataError(f"several columns: {names} both hold something; `columns` says which one is to be read")
    return found[0] if found else (_pick(raw, paths[0]), ".".join(paths[0])) if paths else (None, "")


def _read_text(raw: dict[str, Any], paths: tuple[Path, ...]) -> tuple[str, str]:
    """Returns the text of a field, and the column that has it."""
    value, name = _choose(raw, paths)
    if value is None:
        raise DataError(f"missing value: `{name}` is missing or null; the row has: {shorten(', '.join(raw), 300)}")
    value = number_to_text(value)
    if not isinstance(value, str):
        hint = f"; `columns` reads the first of it as `{name}.0`" if isinstance(value, list) else ""
        raise DataError(f"wrong type: `{name}` is {describe(value)}, not text{hint}")
    return check_text(value, name), name


def _read_answer(raw: dict[str, Any], paths: tuple[Path, ...], needs_answer: bool) -> tuple[str, str]:
    """Returns the text of an answer, which is empty where it is missing and none is needed, and its column."""
    value, name = _choose(raw, paths)
    if value in (None, "", []) and not needs_answer:
        return "", name
    if value is None:
        raise DataError(f"{NO_ANSWER}: `{name}` is missing or null; the row has: {shorten(', '.join(raw), 300)}")
    if value == []:
        raise DataError(f"{NO_ANSWER}: `{name}` is empty")
    return _read_text(raw, paths)


def _read_side(
    raw: dict[str, Any],
    fields: dict[str, tuple[Path, ...]],
    read: tuple[list[Turn], str],
    root: str | None,
    all_pictures: bool,
) -> dict[str, Any]:
    turns, name = read
    paths = fields.get("image_url", ())
    if all_pictures:
        images = [image for path in paths for image in _read_images(_pick(raw, path), ".".join(path), root)]
    else:
        images = _read_images(*_choose(raw, paths), root)
    places = [place for turn in turns for place in turn.places]
    if places:
        check_places([place for place in places if place.picture is None], len(images), name)
        following = iter(images)
        images = [
            next(following) if place.picture is None else _read_image(place.picture, name.strip("`"), root)
            for place in places
        ]
    *history, question, answer = turns
    return {
        "image_url": images,
        "instruction": question.text,
        "output": answer.text,
        "history": [{"role": turn.role, "content": turn.text} for turn in history],
    }


def _read_all_turns(
    raw: dict[str, Any], fields: dict[str, tuple[Path, ...]], needs_answer: bool
) -> tuple[list[Turn], str]:
    """Returns the conversation of a side with its system prompt, and what messages call it."""
    turns, name = _read_side_turns(raw, fields, needs_answer)
    system, column = _choose(raw, fields.get("system", ()))
    if system not in (None, "", []):
        if turns[0].role == SYSTEM:
            raise DataError(f"roles: both `{column}` and {name} give a system prompt")
        turns.insert(0, make_turn(SYSTEM, system, f"`{column}`"))
    return turns, name


def _read_side_turns(
    raw: dict[str, Any], fields: dict[str, tuple[Path, ...]], needs_answer: bool
) -> tuple[list[Turn], str]:
    """Returns the conversation of a side, its answer last, and what messages call it."""
    if "messages" in fields:
        value, name = _choose(raw, fields["messages"])
        if value is None:
            _read_text(raw, fields["messages"])
        return read_conversation(value, name, needs_answer), f"`{name}`"
    if "prompt" in fields:
        return _read_prompt(raw, fields, needs_answer)
    output, name = _read_answer(raw, fields["output"], needs_answer)
    refuse_places(output, f"`{name}`")
    text, name = _read_text(raw, fields["instruction"])
    text, places = mark_places(text, f"`{name}`")
    value, column = _choose(raw, fields.get("input", ()))
    if value not in (None, "", []):
        more, places_of_more = mark_places(_read_text(raw, fields["input"])[0], f"`{column}`")
        text, places = f"{text}\n\n{more}" if text.strip() else more, places + places_of_more
    turns = [Turn(USER, text, places), Turn(ASSISTANT, output)]
    value, column = _choose(raw, fields.get("history", ()))
    if value:
        turns = read_history(value, column) + turns
        check_order(turns, column)
    return turns, f"`{name}`"


def _read_prompt(
    raw: dict[str, Any], fields: dict[str, tuple[Path, ...]], needs_answer: bool
) -> tuple[list[Turn], str]:
    value, name = _choose(raw, fields["prompt"])
    if not isinstance(value, list):
        value, name = _read_text(raw, fields["prompt"])
    prompt = read_turns(value, name) if isinstance(value, list) else [make_turn(USER, value, f"`{name}`")]
    value, column = _choose(raw, fields["completion"])
    if isinstance(value, list) and value:
        answer = read_turns(value, column, ends_in_answer=True)
    else:
        value, column = _read_answer(raw, fields["completion"], needs_answer)
        answer = [make_turn(ASSISTANT, value, f"`{column}`", may_be_blank=True)]
    if len(answer) > 1:
        raise DataError(f"roles: `{column}` has {len(answer)} turns, but one answer is trained on")
    check_order(prompt + answer, f"{name} + {column}")
    check_answer(answer[0].text, f"`{column}` (assistant)", needs_answer)
    return prompt + answer, f"`{name}`"


def _read_images(value: Any, name: str, root: str | None) -> list[dict[str, Any]]:
    """Returns the images of a column, which holds a path, an image, a list of them, or nothing."""
    images = value if isinstance(value, list) else [value]
    if value == "" or all(map(_is_no_picture, images)):
        return []
    return [_read_image(image, name, root) for image in images]


def _is_no_picture(value: Any) -> bool:
    """Whether a value is null, as `datasets.Image` may store it too; or a list of such."""
    if isinstance(value, list) and value:
        return all(map(_is_no_picture, value))
    return value is None or (isinstance(value, dict) and value == {"bytes": None, "path": None})


def _read_image(value: Any, name: str, root: str | None) -> dict[str, Any]:
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if isinstance(value, dict) and value.get("bytes") is not None:
        if not isinstance(value["bytes"], bytes):
            raise DataError(f"wrong type: the bytes of `{name}` are {describe(value['bytes'])}")
        return {"bytes": value["bytes"], "path": value.get("path")}
    path = value.get("path") if isinstance(value, dict) else value
    if not isinstance(path, str) or not path:
        raise DataError(f"wrong type: `{name}` holds {describe(value)}, not a path or an image")
    if len(path) > LONGEST_PATH and not path.startswith("data:"):
        raise DataError(
            f"wrong type: `{name}` holds {len(path):,} characters, '{shorten(path)}', not a path; a picture in base64 "
            "has 'data:image/png;base64,' before it"
        )
    check_text(path, name)
    address = read_address(path)
    if address is not None:
        return address
    if root is None and not os.path.isabs(path):
        raise DataError(f"missing image: `{name}` is '{path}', relative to no folder; set `image_root`")
    return {"bytes": None, "path": path if root is None else os.path.join(root, path)}
