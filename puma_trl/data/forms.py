"""
The forms of the rows of data sets: found out from the columns of each source, once, before anything is loaded.

What a source holds and its form does not read is listed, and refused where it would be missed.
"""

import difflib
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from ..errors import DataError
from .columns import FIELDS, SUFFIXES, Form, Path, field_of, find_form, word_columns
from .files import Source, column_names, empty_error, find_chunks
from .lookalikes import find_picture
from .readers import BrokenRow, read_chunk
from .rows import find_lone, loss_reason
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


def find_forms(sources: Sequence[Source], columns: dict[str, str] | None = None) -> list[Source]:
    """
    Finds out how the rows of each source are read.

    Forms are known by the names of their columns, see `SIDE_FORMS` in `columns.py`: the published format, Alpaca's,
    messages, conversations, prompt and completion, question and answer. The vision-rich side has the same names with
    `_2` behind them.

    Args:
        sources (`Sequence[Source]`):
            What [`find_sources`] returned.
        columns (`dict[str, str]`, *optional*):
            Our column → the data's, where that has another name: `{"image_url_2": "picture", "output":
            "answer.text"}`. Dots lead into a column of objects, unless there is a column of just that name. What is
            mapped is read, whatever a form would say. A source without such a column is read as if it were not
            mapped, but some source must have it. `{"photo": "ignore"}` leaves the data's column `photo` out.

    Returns:
        `list[Source]`: the sources, each with its `form`.

    Raises:
        DataError: if a source is empty, fits no form or several, or holds columns that are not read and look as if
        they
            should be, by their names or by pictures in them; or if a column of `columns` is nowhere.
    """
    columns = columns or {}
    mapping = {field: name for field, name in columns.items() if name != IGNORE}
    ignored = [name for name in columns if name not in mapping]
    _check_fields(mapping)
    samples = [_read_sample(source, [*mapping.values(), *ignored]) for source in sources]
    for name in [*mapping.values(), *ignored]:
        places = [sample.places[name] for sample in samples if name in sample.places]
        if not places or (name in ignored and (name,) not in places):  # no part of a column can be left out
            known = dict.fromkeys(column for sample in samples for column in sample.columns)
            raise DataError(f"`columns` names `{name}`, but no row has that column.{_nearest(name, known)}")
    found = []
    for source, sample in zip(sources, samples, strict=True):
        here = {field: sample.places[name] for field, name in mapping.items() if name in sample.places}
        left_out = [name for name in ignored if sample.places.get(name) == (name,)]
        form = find_form(sample.columns, here, left_out, f"'{source.path or source.name}'")
        form = replace(form, passed=_passed_columns(source, form))
        _refuse_losses(source, form, sample)
        _refuse_lone(source, form, sample)
        found.append(replace(source, form=form))
    return found


def _check_fields(mapping: dict[str, str]) -> None:
    fields = [f"{field}{suffix}" for suffix in SUFFIXES for field in FIELDS]
    for field, name in mapping.items():
        if field not in fields:
            meant = field_of(field)
            hint = f" Did you mean `{meant}`?" if meant else _nearest(field, fields)
            raise DataError(
                f"`columns` has `{field}: {name}`, but `{field}` is none of our columns.{hint} Ours stand before the "
                f"colon, the data's behind it; `{field}: {IGNORE}` leaves the data's column `{field}` out."
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
    if name in row:
        return (name,)
    column, *inside = name.split(".")
    value = row.get(column)
    for key in inside:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return (column, *inside) if inside else None


def _find_column(name: str, columns: list[str], schema: pa.Schema | None) -> Path | None:
    """Returns where a name stands in the rows of a table, or of csv, whose columns hold texts alone."""
    if name in columns:
        return (name,)
    column, *inside = name.split(".")
    if schema is None or column not in columns:
        return None
    kind = schema.field(column).type
    for key in inside:
        if not pa.types.is_struct(kind) or kind.get_field_index(key) < 0:
            return None
        kind = kind.field(key).type
    return (column, *inside)


def _passed_columns(source: Source, form: Form) -> tuple[str, ...]:
    """Returns the columns of a table that need not be looked at."""
    if source.kind != "table":
        return ()
    types = {field.name: field.type for field in source.table.data.schema}
    return tuple(
        name
        for name in form.unread
        if name in form.ignored or (name not in form.suspects and not any(map(_is_text, _leaves(types[name]))))
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
                losses[name] = form.suspicion(name) or "holds bytes, as of pictures"
    for row in sample.rows.values():
        for name, value in row.items():
            if (
                value
                and name not in form.settled
                and name not in losses
                and (reason := loss_reason(name, value, form))
            ):
                losses[name] = reason if "holds" in reason else f"{reason} ({shorten(repr(value))})"
    if losses:
        found = "; ".join(f"`{name}` {reason}" for name, reason in losses.items())
        remedies = [remedy for name, reason in losses.items() if (remedy := _remedy(name, reason, form, sample))]
        advice = f"Say what it is with {word_columns(remedies[0])}" if remedies else "Write it into the question"
        raise DataError(
            f"'{source.path or source.name}' has columns that are not read, but look as if they should be: {found}. "
            f"Read are {', '.join(f'`{name}`' for name in form.read)}. {advice}, or leave it out with "
            f"{word_columns(dict.fromkeys(losses, IGNORE))}."
        )


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


def _remedy(name: str, reason: str, form: Form, sample: Sample) -> dict[str, str] | None:
    """Returns an entry for `columns` that would read a column, if that is plain."""
    field = field_of(reason.split("`")[1]) if reason.startswith(("needs", "looks like")) else None
    if "holds" in reason or "pictures" in reason or field == "image_url":
        paired = name.endswith("_2") or any(column.endswith("_2") for column in (*form.read, *form.mapped))
        return {f"image_url{'_2' if paired else ''}": _place_of_picture(name, sample)}
    if reason.startswith("needs"):
        return {field: form.fields[field.removesuffix("_2")][0][0]}
    if field:
        return {field: name}
    return {"input": name} if "input" in form.fields and "('" in reason else None  # a text


def _place_of_picture(name: str, sample: Sample) -> str:
    """Returns the name of a column of pictures, with dots where it has them inside of objects."""
    value = next((row[name] for row in sample.rows.values() if find_picture(row.get(name))), None)
    while isinstance(value, dict) and not value.keys() & {"bytes", "path"}:
        key = next((key for key, part in value.items() if find_picture(part)), None)
        if key is None:
            break
        name, value = f"{name}.{key}", value[key]
    return name
