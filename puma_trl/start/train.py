"""
`puma-trl train RECIPE.yaml [--key value ...]`: accelerate's launcher, with the configuration that fits.

It runs `accelerate launch --config_file CONFIGURATION puma_trl/run.py RECIPE.yaml [--key value ...]`.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from ..config import as_list
from ..errors import ConfigError
from ..recipe import read_values, split_recipe, take_flag
from .shipped import PACKAGE, find_engine, find_recipe


FLAG = "--accelerate_config"


def main(argv: list[str]) -> int | None:
    """Launches the run; of one process it becomes that process, of several it returns their exit code."""
    named, argv = take_engine(argv)
    recipe, flags = split_recipe(argv)
    recipe = recipe and find_recipe(recipe)
    values, _ = read_values(recipe, flags)  # what is wrong with them is told by the run, all at once
    name, options = (named, []) if named else choose_engine(values, torch.cuda.device_count())
    return launch(find_engine(name), options, [*([recipe] if recipe else []), *flags])


def take_engine(argv: list[str]) -> tuple[str | None, list[str]]:
    """
    Takes `--accelerate_config NAME` out of a command line, which accelerate and not the run is given.

    Raises:
        ConfigError: if nothing stands behind it.
    """
    return take_flag(argv, FLAG, "the name or file of an accelerate configuration after it, such as `ddp`")


def choose_engine(values: dict[str, Any], gpus: int) -> tuple[str, list[str]]:
    """
    Returns the accelerate configuration for a recipe on this machine, and what of it depends on the machine.

    Returns:
        `tuple[str, list[str]]`: its name, and options of accelerate's launcher.
    """
    if values.get("use_cpu") or gpus == 0:
        return "cpu", []
    if gpus == 1:
        return "single_gpu", ["--gpu_ids", "all"]  # the one that is seen, which need not be the first
    processes = ["--num_processes", str(gpus)]
    if values.get("use_peft"):
        return "ddp", processes
    parts = as_list(values.get("trainable_parts")) or ["all"]
    trains_most = {"all", "language_model"} & set(parts)
    return "zero3_8xa100" if trains_most else "zero2_8xa100", processes


def launch(engine: Path, options: list[str], script_argv: list[str]) -> int | None:
    """
    Launches `run.py`.

    Args:
        engine (`Path`):
            File of the accelerate configuration.
        options (`list[str]`):
            Options of the launcher that replace what stands in it.
        script_argv (`list[str]`):
            Command line of the run.

    Returns:
        `int`, *optional*: exit code of the first process that failed. A run of one process replaces this one.

    Raises:
        ConfigError: if accelerate cannot use the configuration.
    """
    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)  # what it chooses by itself
    try:
        config = load_config_from_file(str(engine))
        options = [*options, *_find_deepspeed_file(engine, config)]
        argv = ["--config_file", str(engine), *options, str(PACKAGE / "run.py"), *script_argv]
        args = launch_command_parser().parse_args(argv)
        processes = args.num_processes or config.num_processes
        name = engine.name if engine.is_relative_to(PACKAGE) else engine
        print(f"Launched with {name}, {processes} process{'es' if processes > 1 else ''}; `{FLAG}` names another one.")
        sys.stdout.flush()
        if config.distributed_type == DistributedType.NO:
            _validate_launch_command(args)
            command, environment = prepare_simple_launcher_cmd_env(args)
            os.execvpe(command[0], command, environment)  # so that signals and exit codes are its own
        launch_command(args)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except subprocess.CalledProcessError as error:  # of a launcher with other means, such as mpirun
        return error.returncode
    except SignalException as error:
        return 128 + error.sigval
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:  # of its reader
        raise ConfigError(f"accelerate cannot use the configuration {engine}: {error}") from error
    return None


def _find_deepspeed_file(engine: Path, config: Any) -> list[str]:
    """DeepSpeed's own file is named from the folder above the configurations, which need not be the current one."""
    name = getattr(config, "deepspeed_config", {}).get("deepspeed_config_file")
    if name is None or os.path.exists(name):
        return []
    return ["--deepspeed_config_file", str(engine.resolve().parents[1] / name)]
