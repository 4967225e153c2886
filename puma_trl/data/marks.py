"""Columns that mark rows as wrong or not to be trained on."""

from collections.abc import Iterable
from typing import Any

from .lookalikes import split_name


# Words of names that say that a row is right, or that it is wrong, and those that may stand beside them
RIGHT = set(
    "correct correctness right valid validity accepted acceptable pass passed solved success chosen preferred "
    "positive good ok keep train trainable include included use used enabled active verdict judgment judgement "
    "grading outcome verified verification judge judged approved status".split()
)
WRONG = set(
    "wrong incorrect invalid rejected failed negative bad flagged corrupted hallucinated exclude excluded skip "
    "skipped ignore ignored deleted removed disabled".split()
)
BESIDE = set("is was are flag answer response solution output example row sample".split())
# Names of measures, all of which are low where a row is bad
MEASURES = set("label weight reward score rating quality".split())
# What such columns hold of a row, as text; yes and no may be labels of what is asked
FALSE = set(
    "false 0 0.0 -1 -1.0 no n f incorrect wrong rejected bad fail failed failure error invalid unverified refuted "
    "declined discarded".split()
)
TRUE = set(
    "true 1 1.0 yes y t correct right accepted good pass passed success ok valid verified approved confirmed kept "
    "pending".split()
)
ANSWERS = {"yes", "no"}


def is_mark(name: str, values: Iterable[Any] = ()) -> bool:
    """
    Whether a column marks rows as right or wrong.

    Args:
        name (`str`):
            The column.
        values (`Iterable[Any]`, *optional*):
            What it holds in some rows. Labels of several classes and texts are no marks.
    """
    meaning = _meaning(name)
    if meaning is None:
        return False
    texts = {_as_text(part) for value in values for part in _parts(value) if part is not None}
    if meaning == "measure":
        is_label = "label" in split_name(name)
        return all(
            text not in ANSWERS and (text in FALSE | TRUE or (not is_label and _is_number(text))) for text in texts
        )
    return texts <= FALSE | TRUE


def marks_wrong(name: str, value: Any) -> bool:
    """Whether the value of a column that is a mark says that its row is wrong, or of no weight; a list, all of it."""
    meaning = _meaning(name)
    wrong, parts = TRUE if meaning == "wrong" else FALSE, _parts(value)
    return meaning is not None and bool(parts) and all(_as_text(part) in wrong for part in parts)


def _meaning(name: str) -> str | None:
    words = set(split_name(name))
    rest = words - BESIDE or words
    if rest and rest <= MEASURES:
        return "measure"
    # `correct_answer` holds an answer, `is_answer_correct` a mark
    if len(rest) != 1 or ("answer" in words and "is" not in words):
        return None
    return "right" if rest <= RIGHT else "wrong" if rest <= WRONG else None


def _parts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _as_text(value: Any) -> str | None:
    return str(value).strip().lower() if isinstance(value, bool | int | float | str) else None


def _is_number(text: str | None) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True
