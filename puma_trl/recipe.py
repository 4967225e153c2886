"""The one reader of recipes and command lines: `RECIPE.yaml [--key value …]` → typed, checked settings."""

import argparse
import contextlib
import ctypes
import dataclasses
import difflib
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.utils import is_liger_kernel_available
from trl import ModelConfig

from .config import PumaKLConfig, PumaScriptArguments, as_list
from .errors import ConfigError
from .fields import NOT_HERE, NOT_IN_RECIPES, OTHER_NAMES, check_values, list_fields, make_schema
from .redact import HIDDEN, REMEDY, is_secret_name, refuse_hidden, refuse_secrets, remember_secrets


MERGE = "tag:yaml.org,2002:merge"  # `<<`
# Tracker → package of another name
PACKAGES = {"azure_ml": "azureml-mlflow", "flyte": "flytekit"}
TYPES = (PumaScriptArguments, PumaKLConfig, ModelConfig)
# Where Linux tells the version of NVIDIA's driver
DRIVER = Path("/proc/driver/nvidia/version")


class _Help(argparse.Action):
    """`--help` shows the method's own fields, `--help all` those of TRL too."""

    def __call__(
        self, parser: "_Parser", namespace: argparse.Namespace, values: str, option_string: str | None = None
    ):
        print(describe_keys(values == "all"))
        parser.exit()


class _Parser(HfArgumentParser):
    """argparse over the fields of `TYPES` that gives what stands on the command line, and no defaults."""

    def __init__(self):
        super().__init__(TYPES, prog="puma-trl train", allow_abbrev=False, add_help=False)
        for action in self._actions:
            action.required = False
            action.default = argparse.SUPPRESS
        self.add_argument(
            "-h", "--help", action=_Help, nargs="?", const="own", choices=("own", "all"), default=argparse.SUPPRESS
        )

    def error(self, message: str):
        raise ConfigError(f"The command line cannot be read: {message}. `puma-trl train --help all` lists all keys.")


def describe_keys(with_others: bool) -> str:
    """Returns the page of `--help`: the keys of this package, and behind them if wanted those of TRL."""
    page = (
        "usage: puma-trl train RECIPE.yaml [--accelerate_config NAME|FILE] [--key value ...]\n\n"
        "Every key of a recipe is also a flag, which replaces what stands in the recipe.\n\n"
        f"Math-PUMA:\n{list_fields(PumaKLConfig, own=True)}\n\nData:\n{list_fields(PumaScriptArguments, own=True)}\n\n"
    )
    if not with_others:
        return page + "`--help all` lists the keys of TRL's SFTConfig and ModelConfig too."
    return (
        page
        + f"SFTConfig:\n{list_fields(PumaKLConfig, own=False)}\n\nModelConfig:\n{list_fields(ModelConfig, own=False)}"
    )


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice, since the last one would win unseen, and numbers are what they look like."""

    # `010` would be 8, `1:30` would be 90, and `2024-01-01` a date
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float", ":timestamp"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    # what no field takes: sets, pairs, bytes and dates
    yaml_constructors = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or not tag.endswith((":set", ":omap", ":pairs", ":binary", ":timestamp"))
    }

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != MERGE]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key `{twice}` stands twice; keep one", node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"), list("-+0123456789")
)


def parse_recipe(argv: list[str]) -> tuple[PumaScriptArguments, PumaKLConfig, ModelConfig, dict[str, Any]]:
    """
    Parses `RECIPE.yaml [--key value …]`; the recipe may also be given as `--config RECIPE.yaml`.

    Dashes and underscores, `--no_key` and `--key false`, `--key=value` and `--key value` are the same. A key that is
    given again replaces what was given before, and the command line replaces the recipe. `env` in the recipe sets
    environment variables.

    Returns:
        The script arguments, the training arguments, the model arguments, and the values that were given, key → value:
        as a recipe, they give the same arguments again.

    Raises:
        ConfigError: if the recipe is missing or not a YAML mapping, a key is unknown (a similar one is named, if there
            is one), a secret stands where it would be kept, or values are of another type, out of range, or do not go
            together: all of them at once.
    """
    values, problems = read_values(*split_recipe(argv))
    problems += find_contradictions(values)
    arguments = []
    for each in TYPES:
        names = {field.name for field in dataclasses.fields(each)} & values.keys()
        try:
            arguments.append(None if problems else each(**{name: values[name] for name in names}))
        except (ValueError, TypeError, KeyError, ImportError, OSError) as error:  # what transformers and TRL refuse
            problems.append(str(error))
    if problems:
        raise ConfigError(problems[0] if len(problems) == 1 else f"{len(problems)} problems. {' '.join(problems)}")
    return *arguments, values


def read_values(recipe: str | None, flags: list[str]) -> tuple[dict[str, Any], list[str]]:
    """
    Reads a recipe and flags, which replace what stands in it, and sets the environment variables of its `env`.

    Returns:
        `tuple[dict[str, Any], list[str]]`: the values that are given, key → value, and a sentence for each that is
        wrong by itself.

    Raises:
        ConfigError: if the recipe cannot be read, a key is unknown, or a secret stands where it would be kept.
    """
    parser = _Parser()
    known = {field.name for each in TYPES for field in dataclasses.fields(each) if field.init}
    values = {}
    if recipe is not None:
        values = _read_yaml(recipe)
        remember_secrets(values)
        _check_keys(values, known | {"env"}, f"in the recipe {recipe}")
        _refuse_token(values, recipe)
        _set_environment(values.get("env"), recipe)
    options = {option.lstrip("-") for option in parser._option_string_actions}
    given = [flag.split("=", 1)[0].lstrip("-") for flag in flags if flag.startswith("--")]
    _check_keys(given, options, "on the command line")
    values |= vars(parser.parse_args(flags))
    refuse_hidden({name: value for name, value in values.items() if name != "env"})
    typed, problems = check_values({name: value for name, value in values.items() if name != "env"}, TYPES)
    return values | typed, problems


def find_contradictions(values: dict[str, Any]) -> list[str]:
    """Returns a sentence for each setting that is missing or does not go with another one, or with this machine."""
    problems = [
        f"`{name}` is missing: name {what}."
        for name, what in (
            ("model_name_or_path", "a model folder or a model of the Hub"),
            ("dataset_name", "the files, folders or datasets of the Hub to train on"),
        )
        if not values.get(name)
    ]
    if values.get("output_dir") is not None and not values["output_dir"].strip():
        problems.append("`output_dir` is empty: name a folder for what the run leaves.")
    problems += [
        f"`{name}: {values[name]}` has no effect in a recipe. {reason}: leave it out."
        for name, (plain, reason) in NOT_IN_RECIPES.items()
        if name in values and values[name] != plain
    ]
    has_data = any(values.get(name) is not None for name in ("eval_dataset_name", "eval_split_size"))
    if values.get("eval_strategy", "no") != "no" and not has_data:
        problems.append(
            f"`eval_strategy: {values['eval_strategy']}` needs data to evaluate on. Set `eval_dataset_name` or "
            "`eval_split_size`, or leave it out."
        )
    problems += [*_find_deepspeed_file(), *_find_trackers(as_list(values.get("report_to")))]
    if values.get("use_liger_kernel") and not is_liger_kernel_available():
        problems.append("`use_liger_kernel: true` needs its package. Run `pip install liger-kernel`, or leave it out.")
    if not values.get("use_cpu") and not torch.cuda.is_available():
        wanted = [name for name in ("bf16", "fp16", "tf32") if values.get(name, name == "bf16")]
        problems.append(
            f"No GPU is seen: {_explain_no_gpu(*_find_driver())}. To run on a CPU, set `use_cpu: true`"
            + "".join(f", `{name}: false`" for name in wanted)
            + "."
        )
    elif values.get("use_cpu"):
        wanted = [name for name in ("fp16", "tf32") if values.get(name)]
        if wanted:
            problems.append(
                f"`use_cpu: true` does not go with {' and '.join(f'`{name}: true`' for name in wanted)}: a CPU has no "
                "such mode. Set it to false."
            )
    return problems


def _find_deepspeed_file() -> list[str]:
    """Returns a sentence about DeepSpeed's own file, where the launcher names one that is not there."""
    name = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
    if not name.endswith(".json") or os.path.exists(name):
        return []
    return [
        f"The accelerate configuration names DeepSpeed's file {name}, which is not there, seen from {os.getcwd()}. "
        "Launch with `puma-trl train`, which finds the files of the package, or from the folder that "
        "`accelerate_configs` is in, or give the path with `--deepspeed_config_file`."
    ]


def _find_trackers(names: list[str]) -> list[str]:
    """Returns a sentence about trackers that nobody knows, and one about those that are not installed."""
    unknown = [name for name in names if name not in ("none", "all", *INTEGRATION_TO_CALLBACK)]
    problems = [f"Unknown tracker `report_to: {name}`. {_guess_tracker(name)}" for name in unknown]
    usable = ("none", "all", *get_available_reporting_integrations())
    missing = [name for name in names if name not in (*usable, *unknown)]
    if missing:
        packages = " ".join(PACKAGES.get(name, name) for name in missing)
        problems.append(
            f"`report_to: {', '.join(missing)}`: no such tracker is installed. Run `pip install {packages}`, or set "
            "`report_to: none`."
        )
    return problems


def _guess_tracker(name: str) -> str:
    near = difflib.get_close_matches(name, INTEGRATION_TO_CALLBACK, n=1)
    return f"Did you mean `{near[0]}`?" if near else f"Known are none, all, {', '.join(INTEGRATION_TO_CALLBACK)}."


def _find_driver() -> tuple[str | None, int, str | None]:
    """Returns the version of the NVIDIA driver, the CUDA version that it goes up to, and that of this PyTorch."""
    text = DRIVER.read_text(encoding="utf-8", errors="replace") if DRIVER.is_file() else ""
    driver = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", text)
    newest = ctypes.c_int(0)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(newest))
    return driver and driver[0], newest.value, torch.version.cuda


def _explain_no_gpu(driver: str | None, newest: int, build: str | None) -> str:
    """Returns why PyTorch sees no GPU, and what to do; `newest` is as CUDA counts: 12040 for 12.4."""
    if build is None:
        return "this PyTorch is built without CUDA: install one that is (pytorch.org)"
    if newest and newest // 1000 < int(build.split(".")[0]):
        return (
            f"the NVIDIA driver {driver or 'here'} goes up to CUDA {newest // 1000}.{newest % 1000 // 10}, and "
            f"PyTorch {torch.__version__} is built for CUDA {build}. Install a newer driver, or a PyTorch that is "
            f"built for CUDA {newest // 1000} (pytorch.org)"
        )
    if driver is None and not newest:
        return "there is no NVIDIA driver; `nvidia-smi` tells once there is one"
    return f"the NVIDIA driver {driver or 'here'} shows none; see `nvidia-smi` and CUDA_VISIBLE_DEVICES"


def split_recipe(argv: list[str]) -> tuple[str | None, list[str]]:
    """
    Returns the recipe, if there is one, and the flags.

    Raises:
        ConfigError: if several recipes or a secret stand on the command line.
    """
    refuse_secrets(argv)
    if argv and not argv[0].startswith("-"):
        argv = ["--config", *argv]
    recipe, flags = take_flag(argv, "--config", "the path of a recipe after it")
    if "--config" in (recipe, *flags):
        raise ConfigError("Several recipes are given. Name one, and give what differs as flags.")
    return recipe, flags


def take_flag(argv: list[str], flag: str, needs: str) -> tuple[str | None, list[str]]:
    """
    Takes `FLAG VALUE` or `FLAG=VALUE` out of a command line.

    Args:
        argv (`list[str]`):
            The command line.
        flag (`str`):
            The flag, with its dashes.
        needs (`str`):
            What stands behind it, for the error.

    Returns:
        `tuple[str | None, list[str]]`: the value, `None` where there is no such flag, and what is left.

    Raises:
        ConfigError: if nothing stands behind the flag.
    """
    pieces = [piece for arg in argv for piece in (arg.split("=", 1) if arg.startswith(f"{flag}=") else [arg])]
    if flag not in pieces:
        return None, argv
    position = pieces.index(flag)
    if position + 1 == len(pieces):
        raise ConfigError(f"`{flag}` needs {needs}.")
    return pieces[position + 1], pieces[:position] + pieces[position + 2 :]


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
    unknown = [str(key) for key in keys if key not in known]
    if len(unknown) == 1:
        raise ConfigError(f"Unknown key `{unknown[0]}` {where}. {_advise(unknown[0], known)}")
    if unknown:
        advice = " ".join(f"`{key}`: {_advise(key, known)}" for key in unknown)
        raise ConfigError(f"{len(unknown)} unknown keys {where}. {advice}")


def _advise(key: str, known: set[str]) -> str:
    if key in NOT_HERE:
        return NOT_HERE[key]
    nearest = [OTHER_NAMES[key]] if key in OTHER_NAMES else difflib.get_close_matches(key, known, n=1)
    return f"Did you mean `{nearest[0]}`?" if nearest else "`puma-trl train --help all` lists all."


def _refuse_token(values: dict[str, Any], recipe: str) -> None:
    name = next((name for name, value in values.items() if is_secret_name(name) and value is not None), None)
    if name is not None:
        raise ConfigError(
            f"`{name}` stands in the recipe {recipe}, and recipes are kept and passed on. Take it out, and {REMEDY}."
        )


def _set_environment(values: Any, recipe: str) -> None:
    if values is None:
        return
    if not isinstance(values, dict) or any(isinstance(value, dict | list) for value in values.values()):
        raise ConfigError(f"`env` in the recipe {recipe} must map names of environment variables to values.")
    # what a saved recipe does not tell may stand in the environment already
    refuse_hidden({name: value for name, value in values.items() if value != HIDDEN or str(name) not in os.environ})
    try:
        os.environ.update({str(name): str(value) for name, value in values.items() if value != HIDDEN})
    except ValueError as error:  # such as a name with `=`
        raise ConfigError(f"`env` in the recipe {recipe} cannot be set: {error}.") from None


if __name__ == "__main__":  # python -m puma_trl.recipe > recipes/schema.json
    print(json.dumps(make_schema(TYPES), indent=1, ensure_ascii=False))
