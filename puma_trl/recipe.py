"""The one reader of recipes and command lines: `RECIPE.yaml [--key value …]` → typed, checked settings."""

import argparse
import dataclasses
import difflib
import math
import os
import types
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser
from trl import ModelConfig

from .config import PumaKLConfig, PumaScriptArguments
from .errors import ConfigError


# What other trainers, and other versions of transformers and TRL, call a field
OTHER_NAMES = {
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "evaluation_strategy": "eval_strategy",
    "group_by_length": "train_sampling_strategy",
    "lora_rank": "lora_r",
    "lr": "learning_rate",
    "max_seq_length": "max_length",
    "torch_dtype": "dtype",
    "warmup_ratio": "warmup_steps",
}
# What they have and we do not, with the reason
NOT_HERE = {
    "overwrite_output_dir": "A run never overwrites another: choose a new `output_dir`, or set `resume_from_checkpoint: "
    "true`."
}
TYPES = (PumaScriptArguments, PumaKLConfig, ModelConfig)
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


class _Parser(HfArgumentParser):
    """argparse over the fields of `TYPES` that gives what stands on the command line, and no defaults."""

    def __init__(self):
        super().__init__(TYPES, allow_abbrev=False)
        for action in self._actions:
            action.required = False
        for action in self._actions:
            if action.dest != "help":
                action.default = argparse.SUPPRESS

    def error(self, message: str):
        raise ConfigError(f"The command line cannot be read: {message}. `puma_trl/run.py --help` lists all keys.")


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice; the last one would win, unseen."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key `{twice}` stands twice; keep one", node.start_mark
            )
        return super().construct_mapping(node, deep)


def parse_recipe(argv: list[str]) -> tuple[PumaScriptArguments, PumaKLConfig, ModelConfig, dict[str, Any]]:
    """
    Parses `RECIPE.yaml [--key value …]`; the recipe may also be given as `--config RECIPE.yaml`.

    Dashes and underscores, `--no_key` and `--key false`, `--key=value` and `--key value` are the same. A key that is given
    again replaces what was given before, and the command line replaces the recipe. `env` in the recipe sets environment
    variables.

    Args:
        argv (`list[str]`):
            The command line without the program's name.

    Returns:
        The script arguments, the training arguments, the model arguments, and the values that were given, key → value: as
        a recipe, they give the same arguments again.

    Raises:
        ConfigError: if the recipe is missing or not a YAML mapping, a key is unknown (a similar one is named, if there is
            one) or a value is not of its key's type.
        ValueError: if a value is out of its range.
    """
    parser = _Parser()
    fields = {field.name: field for each in TYPES for field in dataclasses.fields(each) if field.init}
    hints = {name: hint for each in TYPES for name, hint in get_type_hints(each).items()}
    recipe, flags = _split(argv)
    values = {}
    if recipe is not None:
        values = _read_yaml(recipe)
        _check_keys(values, fields.keys() | {"env"}, f"in the recipe {recipe}")
        _set_environment(values.get("env"), recipe)
    options = {option.lstrip("-") for option in parser._option_string_actions}
    given = [flag.split("=", 1)[0].lstrip("-") for flag in flags if flag.startswith("--")]
    _check_keys(given, options, "on the command line")
    values |= vars(parser.parse_args(flags))
    for name in values.keys() - {"env"}:
        values[name] = _typed(name, values[name], hints[name], fields[name].metadata.get("choices"))
    arguments = []
    for each in TYPES:
        names = {field.name for field in dataclasses.fields(each)} & values.keys()
        arguments.append(each(**{name: values[name] for name in names}))
    if arguments[2].model_name_or_path is None:
        raise ConfigError("`model_name_or_path` is missing: name a model folder or a model of the Hub.")
    return *arguments, values


def _split(argv: list[str]) -> tuple[str | None, list[str]]:
    """Returns the recipe, if there is one, and the flags."""
    argv = [piece for arg in argv for piece in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    if argv and argv[0].endswith((".yaml", ".yml")):
        argv = ["--config", *argv]
    if "--config" not in argv:
        return None, argv
    if argv.count("--config") > 1:
        raise ConfigError("Several recipes are given. Name one, and give what differs as flags.")
    position = argv.index("--config")
    if position + 1 == len(argv):
        raise ConfigError("`--config` needs the path of a recipe after it.")
    return argv[position + 1], argv[:position] + argv[position + 2 :]


def _read_yaml(path: str) -> dict[str, Any]:
    if os.path.exists(path) and not os.path.isfile(path):
        raise ConfigError(f"The recipe {path} is not a regular file. Name a YAML file.")
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.load(file, _Loader)
    except FileNotFoundError:
        raise ConfigError(f"No such recipe: {path}. Check the path and the current folder.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"The recipe {path} is not UTF-8 text: {error}. Save it as UTF-8.") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"The recipe {path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"The recipe {path} must be a YAML mapping of keys to values.")
    return values


def _check_keys(keys: Any, known: set[str], where: str) -> None:
    for key in keys:
        if key not in known:
            key = str(key)
            if key in NOT_HERE:
                raise ConfigError(f"Unknown key `{key}` {where}. {NOT_HERE[key]}")
            nearest = [OTHER_NAMES[key]] if key in OTHER_NAMES else difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean `{nearest[0]}`?" if nearest else " `puma_trl/run.py --help` lists all."
            raise ConfigError(f"Unknown key `{key}` {where}.{hint}")


def _set_environment(values: Any, recipe: str) -> None:
    if values is None:
        return
    if not isinstance(values, dict) or any(isinstance(value, dict | list) for value in values.values()):
        raise ConfigError(f"`env` in the recipe {recipe} must map names of environment variables to values.")
    os.environ.update({str(name): str(value) for name, value in values.items()})


def _typed(name: str, value: Any, hint: Any, choices: list[Any] | None = None) -> Any:
    """Returns a value as its field's type has it; numbers may be written as text, as YAML reads `1e-5`."""
    kinds = [tuple(choices)] if choices else _kinds(hint)
    if value is None:
        if type(None) in kinds:
            return None
        raise ConfigError(f"`{name}` has no value. Give it {_words(kinds)}, or leave the key out.")
    if name == "resume_from_checkpoint" and isinstance(value, bool):
        return str(value).lower()  # TRL's type is text, for paths
    for kind in kinds:
        if _fits(value, kind):
            return value
    for kind in (each for each in kinds if each in (bool, int, float) and isinstance(value, str | int)):
        try:
            number = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (AttributeError, KeyError, ValueError, OverflowError):
            continue
        if _fits(number, kind) and not isinstance(value, bool):
            return number
    if list in kinds and isinstance(value, str):
        return [value]  # which is split at commas, where the field allows that
    raise ConfigError(f"`{name}` is {value!r}, but it must be {_words(kinds)}.")


def _kinds(hint: Any) -> list[Any]:
    """Returns the alternatives of a type: classes, and tuples of the values that a literal or an enumeration allows."""
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for each in get_args(hint) for kind in _kinds(each)]
        # text beside an enumeration is one of its values
        return [kind for kind in kinds if kind is not str or not any(isinstance(each, tuple) for each in kinds)]
    if get_origin(hint) is Literal:
        return [get_args(hint)]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return [tuple(each.value for each in hint)]
    return [get_origin(hint) or hint]


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, tuple):
        return any(type(value) is type(each) and value == each for each in kind)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


def _words(kinds: list[Any]) -> str:
    words = [
        f"one of {', '.join(map(str, kind))}" if isinstance(kind, tuple) else WORDS.get(kind, kind.__name__)
        for kind in kinds
        if kind is not type(None)
    ]
    return " or ".join(words)
