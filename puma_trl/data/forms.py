"""
The forms of the rows of datasets: found out from the columns of each source, once, before anything is loaded.

What a source holds and its form does not read is listed, and refused where it would be missed.
"""

import difflib
import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from datasets import Audio, Video

from ..errors import DataError, UnreadError
from .columns import FIELDS, SHARED_FIELDS, SUFFIXES, Form, Path, field_of, find_form, word_columns
from .files import Source, column_names, empty_error, find_chunks
from .json_lists import by_columns_error, is_by_columns
from .lookalikes import CHOICE, MEDIA, PICTURES, REPLY, SYSTEM, TEMPLATE, find_picture, names_answer
from .marks import is_mark
from .readers import BrokenRow, read_chunk
from .references import find_referred
from .rows import find_lone, find_losses, read_texts
from .texts import describe, shorten


# Rows whose columns tell the form of JSON
SAMPLE = 100
# What a column is mapped to if it is to be left out
IGNORE = "ignore"


@dataclass
class Sample:
    """
    The first rows of a source.

    Args:
        rows (`dict[str, dict]`):
            Row id → row.
        columns (`list[str]`):
            Columns of these rows, or of the table.
        places (`dict[str, Path]`):
            Column of a mapping → where it stands, for those that the source has.
    """

    rows: dict[str, dict[str, Any]]
    columns: list[str]
    places: dict[str, Path]


def find_forms(
    sources: Sequence[Source], columns: dict[str, str | list[str]] | None = None, needs_answers: bool = True
) -> list[Source]:
    """
    Finds out how the rows of each source are read.

    Forms are known by the names of their columns, see `SIDE_FORMS` in `columns.py`: the published format, Alpaca's,
    messages, conversations, prompt and completion, question and answer. The vision-rich side has the same names with
    `_2` behind them.

    Args:
        sources (`Sequence[Source]`):
            What [`find_sources`] returned.
        columns (`dict[str, str | list[str]]`, *optional*):
            Our column → the data's, where that has another name: `{"image_url_2": "picture", "output":
            "answer.text"}`. Dots lead into a column of objects or lists (`answers.0`), unless there is a column of
            just that name. Pictures may be in several columns: `{"image_url": ["image_1", "image_2"]}`. What is mapped
            is read, whatever a form would say. A source without such a column is read as if it were not mapped, but
            some source must have it. `{"photo": "ignore"}` leaves the data's column `photo` out.
        needs_answers (`bool`, *optional*, defaults to `True`):
            Whether rows without an answer cannot be read, nor a source without a column of answers.

    Returns:
        `list[Source]`: the sources, each with its `form`.

    Raises:
        DataError: if a source is empty, fits no form or several, or holds columns that are not read and look as if
            they should be, by their names or by pictures in them; or if a column of `columns` is nowhere.
    """
    columns = columns or {}
    mapping = {
        field: [names] if isinstance(names, str) else names for field, names in columns.items() if names != IGNORE
    }
    ignored = [name for name in columns if name not in mapping]
    _check_fields(mapping)
    mapped = list(dict.fromkeys(name for names in mapping.values() for name in names))
    samples = [_read_sample(source, [*mapped, *ignored]) for source in sources]
    _check_names(mapped, ignored, samples)
    found = []
    for source, sample in zip(sources, samples, strict=True):
        here = {
            field: places
            for field, names in mapping.items()
            if (places := tuple(sample.places[name] for name in names if name in sample.places))
        }
        left_out = [name for name in ignored if name in sample.places]
        form = find_form(sample.columns, here, left_out, f"'{source.path or source.name}'", needs_answers)
        form = replace(form, marks=tuple(_find_marks(form, sample)))
        form = replace(form, passed=_passed_columns(source, form))
        _refuse_losses(source, form, sample)
        _refuse_lone(source, form, sample)
        found.append(replace(source, form=form))
    return found


def _check_names(mapped: list[str], ignored: list[str], samples: list[Sample]) -> None:
    """Makes sure that the data has the columns that are named, and no other column could be meant."""
    known = dict.fromkeys(column for sample in samples for column in sample.columns)
    partly = {name.partition(".")[0] for name in mapped if "." in name}
    for name in [*mapped, *ignored]:
        places = [sample.places[name] for sample in samples if name in sample.places]
        if name in ignored and IGNORE in known and field_of(name):
            raise DataError(
                f"`columns` has `{name}: {IGNORE}`, which leaves `{name}` out, but the data has a column `{IGNORE}` "
                "too. Rename that column."
            )
        # of a column that is not read, no part can be left out
        part = name in ignored and (name,) not in places and name.partition(".")[0] not in partly
        head, _, inside = name.partition(".")
        if not places and inside and head in known and head not in ignored:
            values = (row[head] for sample in samples for row in sample.rows.values() if head in row)
            found = describe(next(values, None))
            raise DataError(f"`columns` names `{name}`, but `{head}` has no `{inside}` in it: it is {found}.")
        if not places or part:
            raise DataError(f"`columns` names `{name}`, but no row has that column.{_nearest(name, known)}")


def _find_marks(form: Form, sample: Sample) -> list[str]:
    names = [name for name in form.unread if name not in form.ignored]
    return [name for name in names if is_mark(name, [row.get(name) for row in sample.rows.values()])]


def _check_fields(mapping: dict[str, list[str]]) -> None:
    fields = [f"{field}{suffix}" for suffix in SUFFIXES for field in FIELDS]
    for field, names in mapping.items():
        name = ", ".join(names)
        if len(names) > 1 and not field.startswith("image_url"):
            raise DataError(
                f"`columns` names several columns for `{field}` ({name}), but only pictures may be in several. Name "
                "one."
            )
        if field not in fields:
            meant = field_of(field)
            hint = f" Did you mean `{meant}`?" if meant else _nearest(field, fields)
            raise DataError(
                f"`columns` has `{field}: {name}`, but `{field}` is not one of our columns.{hint} Ours stand before "
                f"the colon, the data's behind it; `{field}: {IGNORE}` leaves the data's column `{field}` out."
            )


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean `{near[0]}`?" if near else f" There are: {', '.join(known)}."


def _read_sample(source: Source, names: list[str]) -> Sample:
    """Reads the first rows, and on until the columns of the mapping have been met."""
    rows, broken = {}, None
    stream = _read_rows(source)
    for number, row in stream:
        if isinstance(row, dict):
            rows[source.row_id(number)] = row
            if len(rows) == SAMPLE:
                break
        elif broken is None:
            problem = (
                row.problem if isinstance(row, BrokenRow) else f"it is {describe(row)}, not an object with columns"
            )
            broken = f"{source.row_id(number)}: {problem}"
    if not rows:
        if broken is None:
            raise empty_error(source.path or source.name)
        raise DataError(f"No row of '{source.path or source.name}' can be read. The first one: {broken}.")
    if source.kind in ("csv", "table"):
        columns = column_names(source)
        schema = None if source.kind == "csv" else source.table.data.schema
        places = {name: place for name in names if (place := _find_column(name, columns, schema))}
        return Sample(rows, columns, places)
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    if len(rows) == 1 and is_by_columns(next(iter(rows.values()))):
        raise by_columns_error(source.path or source.name)
    places = {name: (name,) for name in names if name in columns}
    for row in itertools.chain(rows.values(), (row for _, row in stream if isinstance(row, dict))):
        missing = [name for name in names if name not in places]
        if not missing:
            break
        places |= {name: place for name in missing if (place := _find_place(name, row))}
    return Sample(rows, columns, places)


def _read_rows(source: Source) -> Iterator[tuple[int, Any]]:
    """Reads the rows of a source, of a table without the bytes of pictures, which its types tell."""
    columns = None
    if source.kind == "table":
        columns = [field.name for field in source.table.data.schema if not any(map(_is_bytes, _leaves(field.type)))]
        if not columns:
            yield from ((number, {}) for number in range(1, len(source.table) + 1))
            return
        source = replace(source, table=source.table.select_columns(columns))
    for chunk in find_chunks([source]):
        yield from read_chunk(source, chunk)


def _find_place(name: str, row: dict[str, Any]) -> Path | None:
    """Returns where a name stands in a row: as a column, or inside of one."""
    place = (name,) if name in row else tuple(name.split("."))
    return None if _value_at(place, row, missing := object()) is missing else place


def _value_at(place: Path, row: dict[str, Any], missing: Any = None) -> Any:
    value = row
    for key in place:
        if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, dict) and key in value:
            value = value[key]
        else:
            return missing
    return value


def _find_column(name: str, columns: list[str], schema: pa.Schema | None) -> Path | None:
    """Returns where a name stands in the rows of a table, or of csv, whose columns hold texts alone."""
    if name in columns:
        return (name,)
    column, *inside = name.split(".")
    if schema is None or column not in columns:
        return None
    kind = schema.field(column).type
    for key in inside:
        if key.isdecimal() and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            kind = kind.value_type
        elif pa.types.is_struct(kind) and kind.get_field_index(key) >= 0:
            kind = kind.field(key).type
        else:
            return None
    return (column, *inside)


def _passed_columns(source: Source, form: Form) -> tuple[str, ...]:
    """Returns the columns of a table that need not be looked at."""
    if source.kind != "table":
        return ()
    types = {field.name: field.type for field in source.table.data.schema}
    looked_at = {*form.suspects, *form.marks}
    return tuple(
        name
        for name in form.unread
        if name in form.ignored or (name not in looked_at and not any(map(_is_text, _leaves(types[name]))))
    )


def _leaves(kind: pa.DataType) -> list[pa.DataType]:
    """Returns the types of the values inside of a type."""
    if pa.types.is_dictionary(kind):
        return _leaves(kind.value_type)
    if kind.num_fields:
        return [leaf for index in range(kind.num_fields) for leaf in _leaves(kind.field(index).type)]
    return [kind]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _refuse_losses(source: Source, form: Form, sample: Sample) -> None:
    """Stops if a column that is not read looks as if it should be."""
    losses = {}
    if source.kind == "table":
        for name in form.unread:
            column = source.table.data.column(name)
            holds_bytes = any(map(_is_bytes, _leaves(column.type))) and column.null_count < len(column)
            if holds_bytes and name not in form.ignored:
                is_media = isinstance(source.table.features[name], Audio | Video)
                losses[name] = form.suspicion(name) or (MEDIA if is_media else "holds bytes, as of pictures")
    for row in sample.rows.values():
        for name, value, reason in find_losses(row, form):
            if reason and name not in losses:
                losses[name] = reason if "holds" in reason else f"{reason} ({shorten(repr(value))})"
    rows = [(row, texts) for row in sample.rows.values() if (texts := _texts_without_pictures(row, form))]
    unread = [name for name in form.unread if name not in form.ignored and name not in losses]
    losses |= find_referred(rows, unread)
    if losses:
        found = "; ".join(f"`{name}` {reason}" for name, reason in losses.items())
        remedy = _remedy(losses, form, sample)
        advice = f"Say what it is with {word_columns(remedy)}, or leave" if remedy else "Leave"
        if not remedy and not any(
            names_answer(name) or reason.startswith((MEDIA, TEMPLATE)) for name, reason in losses.items()
        ):
            advice = "Write it into the question, or leave"
        raise UnreadError(
            f"'{source.path or source.name}' has columns that are not read, but look as if they should be: {found}. "
            f"Read are {', '.join(f'`{name}`' for name in form.read)}. {advice} it out with "
            f"{word_columns(dict.fromkeys(losses, IGNORE))}.",
            losses,
        )


def _texts_without_pictures(raw: dict[str, Any], form: Form) -> list[tuple[str, str]]:
    """Returns all before the answer, and the answer, of those sides that have no picture."""
    found = []
    for suffix, texts in read_texts(raw, form).items():
        columns = {path[0] for path in form.fields.get(f"image_url{suffix}", ())} & {*form.seen}
        # bytes of pictures are not in the rows of a sample
        if not columns - raw.keys() and not any(raw[column] for column in columns):
            found.append(("\n".join(texts[:-1]), texts[-1]))
    return found


def _refuse_lone(source: Source, form: Form, sample: Sample) -> None:
    """Stops if what comes before the question is given for one side of pairs alone."""
    for row in sample.rows.values():
        try:
            lone = find_lone(row, form)
        except DataError:  # of that row alone
            continue
        if lone is not None:
            name, field = lone
            raise DataError(
                f"'{source.path or source.name}' has `{name}` for one side of pairs, and no `{field}` for the other: "
                f"they read other conversations. Give it to both with {word_columns({field: name})}, or "
                f"to none with {word_columns({name: IGNORE})}."
            )


def _remedy(losses: dict[str, str], form: Form, sample: Sample) -> dict[str, str | list[str]] | None:
    """Returns an entry for `columns` that would read the first column for which that is plain, and its like."""
    paired = any(column.endswith("_2") for column in (*form.read, *form.mapped))
    for name, reason in losses.items():
        field = _field_like(reason)
        if _is_of_pictures(reason):
            series = [other for other in losses if _is_of_pictures(losses[other]) and _stem(other) == _stem(name)]
            places = [_place_of_picture(other, sample) for other in series]
            paired = paired or (len(series) == 1 and name.endswith("_2"))
            return {f"image_url{'_2' if paired else ''}": places if len(places) > 1 else places[0]}
        if reason.startswith("needs"):
            return {field: form.fields[field.removesuffix("_2")][0][0]}
        if reason.startswith(SYSTEM):
            field = "system"
        if field in SHARED_FIELDS and paired:
            return {field: name, f"{field}_2": name}
        if field:
            return {field: name}
        is_text = any(isinstance(row.get(name), str) for row in sample.rows.values())
        alone = not any(_stem(other) == _stem(name) for other in losses if other != name)
        may_be_read = not reason.startswith((CHOICE, REPLY, MEDIA, TEMPLATE)) and not names_answer(name)
        if "input" in form.fields and is_text and alone and may_be_read:
            return {"input": name}
    return None


def _field_like(reason: str) -> str | None:
    """Returns the field that a column was meant for, as the reason says."""
    return field_of(reason.split("`")[1]) if reason.startswith(("needs", "looks like")) else None


def _is_of_pictures(reason: str) -> bool:
    return reason.startswith(("holds", PICTURES)) or (
        reason.startswith("looks like") and _field_like(reason) in ("image_url", "image_url_2")
    )


def _stem(name: str) -> str:
    return re.sub(r"\d+$|(?<=_)[a-h]$", "", name)


def _place_of_picture(name: str, sample: Sample) -> str:
    """Returns the name of a column of pictures, with dots where it has them inside of objects."""
    values = (_value_at((name,) if name in row else name.split("."), row) for row in sample.rows.values())
    value = next(filter(find_picture, values), None)
    while isinstance(value, dict) and not value.keys() & {"bytes", "path"}:
        key = next((key for key, part in value.items() if find_picture(part)), None)
        if key is None:
            break
        name, value = f"{name}.{key}", value[key]
    return name
