"""The forms of rows that are read, found out by the names of their columns."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import yaml

from ..errors import DataError
from .lookalikes import BESIDE, CHOICE, QUESTION, REPLY, find_series, is_about, names_answer, suspicion
from .marks import is_mark


# The published format: the text-rich side, and with `_2` the vision-rich one
SIDE_COLUMNS = ("image_url", "instruction", "output")
PAIR_COLUMNS = tuple(f"{name}_2" for name in SIDE_COLUMNS)
COLUMNS = SIDE_COLUMNS + PAIR_COLUMNS
SUFFIXES = ("", "_2")

# Where a value stands in a row: a column and, if that holds objects, names inside of it
Path = tuple[str, ...]

# Columns that a message lists
MOST_SHOWN = 30


@dataclass(frozen=True)
class SideForm:
    """
    One way to write a side of a row.

    Args:
        name (`str`):
            What messages call it.
        content (`dict[str, tuple[str, ...]]`):
            Field → columns that may hold it, one of which a side has.
        more (`dict[str, tuple[str, ...]]`):
            The same for fields that a side may go without.
    """

    name: str
    content: dict[str, tuple[str, ...]]
    more: dict[str, tuple[str, ...]]


PICTURES = ("image_url", "images", "image")
SYSTEM = ("system", "system_prompt")
# The columns of the text-rich or only side; those of the vision-rich side have `_2` behind them.
SIDE_FORMS = (
    SideForm(  # the published format, and Alpaca's
        "instruction + output",
        {"instruction": ("instruction",), "output": ("output",)},
        {"image_url": ("image_url",), "input": ("input",), "system": SYSTEM, "history": ("history",)},
    ),
    SideForm(  # of TRL, of LLaVA and of ShareGPT
        "messages or conversations",
        {"messages": ("messages", "conversations", "conversation")},
        {"image_url": PICTURES, "system": SYSTEM},
    ),
    SideForm(  # of TRL
        "prompt + completion",
        {"prompt": ("prompt",), "completion": ("completion",)},
        {"image_url": PICTURES, "system": SYSTEM},
    ),
    SideForm(  # of problem sets
        "question + answer",
        {"instruction": ("question", "problem", "query"), "output": ("answer", "solution", "response")},
        {"image_url": PICTURES, "input": (), "system": SYSTEM},  # an input if one is mapped
    ),
)
FIELDS = tuple(dict.fromkeys(name for form in SIDE_FORMS for name in (*form.content, *form.more)))
# Who maps one of these has said where the question is, or the answer.
QUESTION_FIELDS = ("instruction", "messages", "prompt")
ANSWER_FIELDS = ("output", "messages", "completion")
# What comes before the question: the same for both sides, or the teacher reads another conversation than the student.
SHARED_FIELDS = ("system", "history")


def fits_form(columns: Iterable[str]) -> bool:
    """Whether rows with these columns can be read without a mapping."""
    columns = set(columns)
    return any(all(columns & set(names) for names in form.content.values()) for form in SIDE_FORMS)


def word_columns(entries: dict[str, str | list[str]]) -> str:
    """Words a setting of `columns` for messages, with the quotes that YAML needs."""
    written = yaml.safe_dump(entries, default_flow_style=True, allow_unicode=True, sort_keys=False, width=float("inf"))
    return f"`columns: {written.strip()}`"


def field_of(column: str) -> str | None:
    """Returns the field that a column of some form holds, with the suffix of its side."""
    suffix = _suffix(column)
    for form in SIDE_FORMS:
        for name, columns in (form.content | form.more).items():
            if column.removesuffix(suffix) in (name, *columns):
                return f"{name}{suffix}"
    return None


def _suffix(name: str) -> str:
    return "_2" if name.endswith("_2") else ""


@dataclass(frozen=True)
class Form:
    """
    How the rows of a source are read.

    Args:
        fields (`dict[str, tuple[Path, ...]]`):
            Field, with `_2` for the vision-rich side → where it stands. Of several places a row may use one, unless
            they were given: pictures are taken from all of them, in their order.
        seen (`tuple[str, ...]`, *optional*):
            Columns that the source has. Rows of JSON may have more.
        suspects (`dict[str, str]`, *optional*):
            Column that is seen, is not read, and must not hold anything → why.
        ignored (`tuple[str, ...]`, *optional*):
            Columns that are left out on purpose.
        mapped (`tuple[str, ...]`, *optional*):
            Fields whose place was given.
        passed (`tuple[str, ...]`, *optional*):
            Columns of a table that are not looked at: neither read, nor able to hold what is.
        marks (`tuple[str, ...]`, *optional*):
            Columns that are seen, are not read, and mark rows as right or wrong.
        needs_answer (`bool`, *optional*, defaults to `True`):
            Whether a row without an answer cannot be read.
    """

    fields: dict[str, tuple[Path, ...]]
    seen: tuple[str, ...] = ()
    suspects: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    mapped: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    needs_answer: bool = True

    @cached_property
    def sides(self) -> dict[str, dict[str, tuple[Path, ...]]]:
        """Suffix of a side → its fields, without the suffix."""
        return {
            suffix: {name.removesuffix("_2"): paths for name, paths in self.fields.items() if _suffix(name) == suffix}
            for suffix in SUFFIXES
        }

    @cached_property
    def second(self) -> tuple[Path, ...]:
        """Places that hold something in rows with a second side: its own ones, unless it shares all with the first."""
        first, second = ({path for paths in fields.values() for path in paths} for fields in self.sides.values())
        return tuple(sorted(second - first or second))

    @cached_property
    def settled(self) -> frozenset[str]:
        """Columns that are read, or left out on purpose."""
        return frozenset(path[0] for paths in self.fields.values() for path in paths) | frozenset(self.ignored)

    @cached_property
    def partly(self) -> dict[str, list[Path]]:
        """Column of which parts are read → the places of these inside of it."""
        parts: dict[str, list[Path]] = {}
        for paths in self.fields.values():
            for path in paths:
                parts.setdefault(path[0], []).append(path[1:])
        return {name: inside for name, inside in parts.items() if () not in inside}

    @property
    def read(self) -> list[str]:
        """Columns that are seen and read."""
        return [name for name in self.seen if name in self.settled and name not in self.ignored]

    @property
    def unread(self) -> list[str]:
        """Columns that are seen and not read."""
        return [name for name in self.seen if name not in self.settled or name in self.ignored]

    def suspicion(self, name: str) -> str | None:
        """Says why a column that is not read must not hold anything, if so; also of one that no row had so far."""
        if name in self.suspects or name in self.seen:
            return self.suspects.get(name)
        if name not in self._late:
            last = name.rpartition(".")[2] if name.partition(".")[0] in self.partly else name
            self._late[name] = suspicion(last, _known(self.fields, self.mapped), _given(self.mapped))
        return self._late[name]

    def is_mark(self, name: str) -> bool:
        """Whether a column that is not read marks rows as right or wrong; also one that no row had so far."""
        return name in self.marks or (name not in self.seen and is_mark(name))

    @cached_property
    def _late(self) -> dict[str, str | None]:
        return {}


def find_form(
    seen: Collection[str],
    mapping: dict[str, tuple[Path, ...]] | None = None,
    ignored: Collection[str] = (),
    source: str = "The data",
    needs_answer: bool = True,
) -> Form:
    """
    Finds out the form of rows by their columns.

    Args:
        seen (`Collection[str]`):
            The columns.
        mapping (`dict[str, tuple[Path, ...]]`, *optional*):
            Fields whose place is given; several are for pictures alone.
        ignored (`Collection[str]`, *optional*):
            Columns to leave out.
        source (`str`, *optional*):
            What messages call the data.
        needs_answer (`bool`, *optional*, defaults to `True`):
            Whether a side must have a column of answers.

    Raises:
        DataError: if the columns fit no form, or several.
    """
    mapping = mapping or {}
    taken = {path[0] for paths in mapping.values() for path in paths} | set(ignored)
    free = [name for name in seen if name not in taken]
    side_form, fields = _find_side("", free, taken, mapping, source, needs_answer) or (None, None)
    if side_form is None:
        message = _word_no_form([name for name in seen if name not in ignored], free, source)
        raise DataError(message + _advise_on_answers(free, taken, mapping, needs_answer))
    suspects: dict[str, str] = {}
    _, second = _find_side("_2", free, taken, mapping, source, needs_answer) or (None, None)
    if second is None:
        strict = needs_answer or bool(_find_answers("_2", free))
        second, lacking = _fill(side_form, "_2", free, taken, mapping, fields, strict)
        possible = {f"{name}_2" for names in (side_form.content | side_form.more).values() for name in names}
        needed = f"needs {' and '.join(f'`{name}`' for name in lacking)} beside it"
        half = [name for name in free if name in possible]
        # beside `image_1`, `image_2` is no side's, but the second picture
        suspects = dict.fromkeys([name for name in half if f"{name[:-1]}1" not in free], needed)
        given = [name for name in mapping if _suffix(name) == "_2"]
        if given:
            raise DataError(f"{source} has `{given[0]}` by `columns`, but that {needed}. Name that column as well.")
        if half:
            second = {}
    fields = fields | second
    mapped = tuple(sorted(mapping))
    known, given = _known(fields, mapped), _given(mapped)
    settled = {path[0] for paths in fields.values() for path in paths}
    unread = [name for name in free if name not in settled]
    for name in unread:
        if name not in suspects and (reason := suspicion(name, known, given)):
            suspects[name] = reason
    suspects |= {name: CHOICE for name in find_series(unread) if suspects.get(name, BESIDE) == BESIDE}
    return Form(fields, tuple(seen), suspects, tuple(sorted(ignored)), mapped, needs_answer=needs_answer)


def _known(fields: dict[str, tuple[Path, ...]], mapped: Collection[str]) -> list[str]:
    """Returns the names that a column may have been meant for: those of fields whose place was not given."""
    given = {name.removesuffix("_2") for name in mapped}
    if QUESTION in _given(mapped):
        given |= set(QUESTION_FIELDS)
    read = [path[0] for name, paths in fields.items() if name.removesuffix("_2") not in given for path in paths]
    return list(dict.fromkeys([*read, *(name for name in FIELDS if name not in given)]))


def _given(mapped: Collection[str]) -> set[str]:
    """Returns what a mapping has named the column of: the question, the answer."""
    fields = {name.removesuffix("_2") for name in mapped}
    meant = {QUESTION: QUESTION_FIELDS, REPLY: ANSWER_FIELDS}
    return {what for what, names in meant.items() if fields & set(names)}


def _find_answers(suffix: str, free: list[str]) -> list[str]:
    """Returns the columns of a side that may hold its answers, by their names."""
    return [name for name in free if _suffix(name) == suffix and names_answer(name) and not is_about(name)]


def _find_side(
    suffix: str,
    free: list[str],
    taken: set[str],
    mapping: dict[str, tuple[Path, ...]],
    source: str,
    needs_answer: bool,
) -> tuple[SideForm, dict[str, tuple[Path, ...]]] | None:
    """Returns the form of a side and its fields, if all are there that it needs."""
    fits = _find_fits(suffix, free, taken, mapping, needs_answer=True)
    if not fits and not needs_answer and not _find_answers(suffix, free):
        fits = _find_fits(suffix, free, taken, mapping, needs_answer=False)
    if not fits:
        return None
    side_form, fields = fits[0]
    here = {*free, *taken}  # without the answers that only later rows may have
    content = [
        {name: tuple(path for path in fields[f"{name}{suffix}"] if path[0] in here) for name in side_form.content}
        for side_form, fields in fits
    ]
    if any(other != content[0] for other in content):
        names = [path[0] for fields in content for paths in fields.values() for path in paths]
        raise DataError(
            f"{source} can be read in several ways: its columns fit {'; '.join(form.name for form, _ in fits)}. Leave "
            f"columns out with {word_columns({names[-1]: 'ignore'})}, or name those to read: "
            f"{word_columns({f'{next(iter(content[0]))}{suffix}': names[0]})}."
        )
    for name, paths in content[0].items():
        if len(paths) > 1:
            found = ", ".join(f"`{path[0]}`" for path in paths)
            raise DataError(
                f"{source} has several columns that may be `{name}{suffix}`: {found}. Name the one to read with "
                f"{word_columns({f'{name}{suffix}': paths[0][0]})}."
            )
    # with question and answer given, what else a side may have is that of all forms
    for _, others in fits[1:]:
        for name, paths in others.items():
            fields[name] = tuple(dict.fromkeys(fields.get(name, ()) + paths))
    return side_form, fields


def _find_fits(
    suffix: str, free: list[str], taken: set[str], mapping: dict[str, tuple[Path, ...]], needs_answer: bool
) -> list[tuple[SideForm, dict[str, tuple[Path, ...]]]]:
    """Returns the forms that a side may have, each with its fields."""
    given = {name.removesuffix("_2") for name in mapping if _suffix(name) == suffix}
    fits = []
    for side_form in SIDE_FORMS:
        fields, lacking = _fill(side_form, suffix, free, taken, mapping, needs_answer=needs_answer)
        if not lacking and given <= (side_form.content | side_form.more).keys():
            fits.append((side_form, fields))
    # what is mapped says which form is meant
    return [fit for fit in fits if given & fit[0].content.keys()] or fits


def _fill(
    side_form: SideForm,
    suffix: str,
    free: list[str],
    taken: set[str],
    mapping: dict[str, tuple[Path, ...]],
    first: dict[str, tuple[Path, ...]] | None = None,
    needs_answer: bool = True,
) -> tuple[dict[str, tuple[Path, ...]], list[str]]:
    """
    Returns the places of a side's fields, and the columns that it lacks.

    With the fields of the first side, which has the same form, columns get their names from there, whether they are
    seen or not. So do columns of answers where none is needed, which only later rows may have.
    """
    fields, lacking = {}, []
    for name, columns in side_form.content.items():
        if f"{name}{suffix}" in mapping:
            fields[f"{name}{suffix}"] = mapping[f"{name}{suffix}"]
            continue
        # both sides may have one question or answer
        shared = [path[0] for path in mapping.get(f"{name}{'' if suffix else '_2'}", ())]
        here = [f"{column}{suffix}" for column in columns if f"{column}{suffix}" in (*free, *shared)]
        if not here and name in ("output", "completion") and not needs_answer:
            here = [f"{column}{suffix}" for column in columns if f"{column}{suffix}" not in taken]
        elif not here:
            lacking.append(f"{columns[0]}{suffix}")
            if first is not None:
                used = first[name][0][0]
                lacking[-1] = f"{used if used in columns else columns[0]}{suffix}"
                here = [lacking[-1]]
        fields[f"{name}{suffix}"] = tuple((column,) for column in here)
    for name, columns in side_form.more.items():
        shared = mapping.get(f"{name}{'' if suffix else '_2'}", ()) if name in SHARED_FIELDS else ()
        here = [f"{column}{suffix}" for column in columns]
        places = tuple((column,) for column in here if column not in taken or (column,) in shared)
        fields[f"{name}{suffix}"] = mapping.get(f"{name}{suffix}", places)
    return fields, lacking


def _word_no_form(seen: list[str], free: list[str], source: str) -> str:
    shown = ", ".join(f"`{name}`" for name in seen[:MOST_SHOWN]) + (", …" if len(seen) > MOST_SHOWN else "")
    names = [column for form in SIDE_FORMS for columns in form.content.values() for column in columns]
    near = {name: suspicion(name, names, (QUESTION, REPLY)) or "" for name in free if not field_of(name)}
    meant = {field_of(reason.split("`")[1]): name for name, reason in near.items() if reason.startswith("looks like")}
    lacking = [
        [name for name, columns in form.content.items() if not {*columns} & {*seen}]
        for form in SIDE_FORMS
        if any({*columns} & {*seen} for columns in form.content.values())
    ]
    entries = meant or dict.fromkeys(min(lacking, key=len, default=["instruction", "output"]), "…")
    return (
        f"{source} fits no form of rows. Its columns are: {shown}. Needed are "
        f"{', or '.join(form.name for form in SIDE_FORMS)}. Name the columns of the question and the answer with "
        f"{word_columns(entries)}."
    )


def _advise_on_answers(
    free: list[str], taken: set[str], mapping: dict[str, tuple[Path, ...]], needs_answer: bool
) -> str:
    """Says what to do with data that fits a form but for its answers."""
    if not all(_find_fits(suffix, free, taken, mapping, needs_answer=False) for suffix in SUFFIXES):
        return ""
    answers = [name for suffix in SUFFIXES for name in _find_answers(suffix, free)]
    if needs_answer:
        return "" if answers else " With `use_kl: true`, `on_policy_share: 1` trains on pairs without answers."
    return f" To train without answers: {word_columns(dict.fromkeys(answers, 'ignore'))}."


PUBLISHED = find_form(COLUMNS)
