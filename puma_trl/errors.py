"""Errors of the user's, not of the program: each message gives the value, the reason and the remedy."""

import unicodedata


class PumaError(ValueError):
    """Input that cannot be used as it is given."""


class ConfigError(PumaError):
    """A recipe or command line that cannot be read."""


class DataError(PumaError):
    """Data that cannot be trained on."""


class UnreadError(DataError):
    """
    Columns that are not read, and look as if they should be.

    Args:
        message (`str`):
            What is told.
        reasons (`dict[str, str]`):
            Column → why it looks so.
    """

    def __init__(self, message: str, reasons: dict[str, str]):
        super().__init__(message, reasons)
        self.reasons = reasons

    def __str__(self) -> str:
        return self.args[0]


class ModelError(PumaError):
    """A model that cannot be trained as it is given, or a setting that does not fit it."""


class CheckpointError(PumaError):
    """A checkpoint that cannot be read or converted."""


class CollapseError(PumaError):
    """A training that a sign of collapse has stopped."""


class MergeError(PumaError):
    """Adapters that cannot be merged into their base model."""


class HubError(PumaError):
    """A push to the Hub that cannot be done."""


class EvaluationError(PumaError):
    """Input of the evaluation that cannot be used."""


class StudyError(PumaError):
    """A run of the mini study that has failed."""


def first_line(error: Exception) -> str:
    """Returns the first line of what an error of a library says, or its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def printable(text: str) -> str:
    """
    Returns a text of the user's, such as a key or what a row holds, as it may be printed: control characters, which
    steer terminals, and invisible ones are written as escapes (`\\x1b`). Spaces and ends of lines stay.
    """
    return "".join(
        each
        if each.isprintable() or each == "\n" or unicodedata.category(each) == "Zs"
        else each.encode("unicode_escape").decode()
        for each in text
    )
