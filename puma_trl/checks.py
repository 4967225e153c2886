"""Checks of settings that are more than a type and a range: columns, learning rates of parts, another teacher."""

from typing import Any

from .errors import ConfigError
from .fields import check_value


# What is for `teacher: model` alone
OF_TEACHER_MODEL = (
    "teacher_model_name_or_path",
    "teacher_model_revision",
    "teacher_model_init_kwargs",
    "teacher_load_in_4bit",
)
# Arguments of `from_pretrained` that are decided elsewhere
NOT_OF_INIT_KWARGS = "config device_map load_in_4bit quantization_config revision trust_remote_code".split()


def are_columns(value: Any) -> bool:
    """Whether a value maps our columns to those of the data: each to a name, or to a list of names for pictures."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and name
        for ours, theirs in value.items()
        for name in (ours, *(theirs if isinstance(theirs, list) and theirs else [theirs]))
    )


def check_columns(value: Any) -> None:
    """
    Raises:
        ConfigError: if a value does not map our columns to those of the data.
    """
    if not are_columns(value):
        raise ConfigError(
            f"`columns` is {value!r}, but it must map our columns to those of the data: `{{image_url_2: picture}}` in "
            """a recipe, '{"image_url_2": "picture"}' on the command line."""
        )


def _read_rate(part: str, rate: Any) -> float:
    name = f"part_learning_rates` of `{part}"
    rate = float(check_value(name, rate, float))
    if rate < 0:
        raise ConfigError(f"`{name}` is {rate}, but it must be at least 0.")
    return rate


def read_rates(rates: Any) -> dict[str, float]:
    """
    Returns the learning rates of parts as numbers.

    Raises:
        ConfigError: if they are no mapping of parts to numbers that are at least 0.
    """
    try:
        return {part: _read_rate(part, rate) for part, rate in rates.items()}
    except AttributeError:
        raise ConfigError(
            f"`part_learning_rates` is {rates!r}, but it must map parts to numbers: `{{aligner: 1e-4}}` in a recipe, "
            """'{"aligner": 1e-4}' on the command line."""
        ) from None


def check_teacher(args: Any) -> None:
    """
    Makes sure that a teacher of another model is described, and nothing but such a one.

    Raises:
        ConfigError: if settings do not go together.
    """
    given = [name for name in OF_TEACHER_MODEL if getattr(args, name)]
    if args.teacher != "model" and given:
        raise ConfigError(
            f"`{given[0]}: {getattr(args, given[0])}` is for another model as teacher, but `teacher` is "
            f"'{args.teacher}'. Set `teacher: model`, or leave it out."
        )
    if args.teacher == "model" and not args.use_kl:
        raise ConfigError(
            "`teacher: model` does not go with `use_kl: false`: that step has no teacher. Leave out one of them."
        )
    if args.teacher == "model" and not args.teacher_model_name_or_path:
        raise ConfigError(
            "`teacher: model` needs `teacher_model_name_or_path`: name the folder or the id on the Hub of that model."
        )
    init = args.teacher_model_init_kwargs or {}
    if not isinstance(init, dict) or not init.keys().isdisjoint(NOT_OF_INIT_KWARGS):
        raise ConfigError(
            f"`teacher_model_init_kwargs` is {init!r}, but it must map arguments to values: `{{dtype: bfloat16}}`. "
            "Revision, quantisation and `trust_remote_code` have fields of their own, and the engine places the "
            "weights."
        )
