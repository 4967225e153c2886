"""The error that the command line reports without a traceback."""


class EvaluationError(ValueError):
    """Bad input of the evaluation: the message says what, where and what to do about it."""
