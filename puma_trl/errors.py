"""Errors of the user's, not of the program: each message gives the value, the reason and the remedy."""


class PumaError(ValueError):
    """Input that cannot be used as it is given."""


class ConfigError(PumaError):
    """A recipe or command line that cannot be read."""


class DataError(PumaError):
    """Data that cannot be trained on."""


class ModelError(PumaError):
    """A model that cannot be trained as it is given, or a setting that does not fit it."""


class CheckpointError(PumaError):
    """A checkpoint that cannot be read or converted."""


class MergeError(PumaError):
    """Adapters that cannot be merged into their base model."""


class HubError(PumaError):
    """A push to the Hub that cannot be done."""


class EvaluationError(PumaError):
    """Input of the evaluation that cannot be used."""
