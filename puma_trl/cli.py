"""
`puma-trl COMMAND`: every command of the package under one name.

Each command has a parser of its own, which gets what stands behind its name; only its modules are imported.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version

from .entry import guess, run_command  # before the libraries that it quietens
from .errors import ConfigError


# Command → where its `main` is, what comes before what the user gives it, and what it does
COMMANDS = {
    "pairs": ("pairs.__main__", [], "build, generate, answer, check, split and preview pairs"),
    "check": ("pairs.__main__", ["check"], "check data before training, as `pairs check`"),
    "init": ("start.asking", [], "write a recipe for your model, data and GPU"),
    "train": ("start.command", [], "run a recipe: puma-trl train recipe.yaml"),
    "eval": ("evaluation.__main__", [], "benchmarks, and the modality gap of a pair file"),
    "push": ("record.command", ["push"], "push what a run has saved to the Hub"),
    "merge": ("checkpoints.command", ["merge"], "merge adapters into their base model"),
    "convert": ("checkpoints.command", ["convert"], "convert an original Math-PUMA checkpoint"),
    "assemble": ("checkpoints.command", ["assemble"], "join a text model and a vision tower"),
    "mini": ("mini", [], "write the mini model and its data, to try all this on a CPU"),
}
PAGE = """\
usage: puma-trl COMMAND ...

Math-PUMA on TRL: multimodal models learn to read the picture of a problem as
well as its words.

{commands}

`puma-trl COMMAND --help` lists the options of a command. Recipes that come with
the package are found by name: puma-trl train recipes/{recipe}
"""


def describe() -> str:
    """Returns the page of `puma-trl --help`, of at most 24 lines of 80 characters."""
    commands = "\n".join(f"  {name:<10}{words}" for name, (_, _, words) in COMMANDS.items())
    return PAGE.format(commands=commands, recipe="mini/stage2.yaml")


def find_command(name: str) -> Callable[[list[str]], int | None]:
    """
    Returns the function that runs a command.

    Raises:
        ConfigError: if there is no such command; the nearest one is named.
    """
    if name not in COMMANDS:
        nearest = guess(name, COMMANDS, "puma-trl ")
        raise ConfigError(f"Unknown command `{name}`. {nearest}`puma-trl --help` lists all.")
    module, before, _ = COMMANDS[name]
    function = import_module(f".{module}", __package__).main
    return lambda argv: function([*before, *argv])


def main(argv: list[str]) -> int | None:
    """Runs the command that is named first, or prints the page or the version."""
    if argv[:1] == ["help"]:
        argv = [*argv[1:2], "--help"]
    if not argv or argv[0] in ("-h", "--help"):
        print(describe(), end="")
        return None
    if argv[0] in ("-v", "-V", "--version"):
        print(f"puma_trl {version(__package__)}")
        return None
    return find_command(argv[0])(argv[1:])


def run() -> None:
    """Runs the console script."""
    run_command(main, sys.argv[1:])


if __name__ == "__main__":
    run()
