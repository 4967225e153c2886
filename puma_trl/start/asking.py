"""
`puma-trl init`: writes a recipe for a model, data and GPUs; what does not fit is told, and what fits is chosen.

On a terminal it asks for what is not given. It reads the model's configuration and the data, and plans the memory;
nothing is trained, and no weights are loaded.
"""

import argparse
import math
import os
import shlex
import sys
from pathlib import Path

from ..entry import USER_ERRORS, Parser, error_line
from ..errors import ConfigError
from ..files import check_file, whole_file
from .write import ADAPTERS, TITLES


QUESTIONS = {
    "model": "Model, a folder or an id of the Hub",
    "data": "Data, files or folders or datasets of the Hub",
    "stage": "Stage: 1 text, 2 pairs (PUMA), 3 instruction tuning (Enter: what fits)",
    "gpus": "GPUs (Enter: those that are seen)",
    "memory": "Memory of each in GB (Enter: what is seen)",
    "adapters": "Adapters: none, lora or qlora (Enter: what fits)",
}
NEEDED = ("model", "data")


def make_parser() -> Parser:
    """Returns the parser of the command."""
    parser = Parser(prog="puma-trl init", description=__doc__)
    parser.add_argument("--model", help="folder or Hub id of the model to start from")
    parser.add_argument("--data", nargs="+", help="files, folders or Hub datasets, of any form that training reads")
    parser.add_argument("--stage", type=int, choices=tuple(TITLES), help="default: 2 for pairs, else 3; 1 for text")
    parser.add_argument("--teacher", help="another model that teaches in stage 2 (default: the model itself)")
    parser.add_argument("--gpus", type=int, help="number of GPUs (default: those that are seen; 0 is a CPU)")
    parser.add_argument("--memory", type=float, help="GB of each GPU (default: of the first; of a CPU 3/4 of all)")
    parser.add_argument("--adapters", choices=ADAPTERS, help="default: what fits, none before lora before qlora")
    parser.add_argument(
        "--output", type=Path, default=Path("recipe.yaml"), help="YAML file to write (default: recipe.yaml)"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Writes the recipe that the command line, or the person at the terminal, describes."""
    parser, argv = make_parser(), sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    check_machine(args)
    output = name_recipe(args.output)
    if None in (args.model, args.data) and sys.stdin.isatty():
        args = parser.parse_args([*argv, *ask(parser, args)])
    missing = [f"`--{name}`" for name in NEEDED if getattr(args, name) is None]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} must be given. `puma-trl init --help` lists all options.")
    from .init import make_recipe  # takes seconds to import

    args.output = output
    text, size = make_recipe(args)
    with whole_file(output) as file:
        file.write(text)
    print(f"{output} is written: {size}.\nNext: puma-trl train {shlex.quote(str(output))} --dry_run true")


def name_recipe(path: Path) -> Path:
    """
    Returns the file of the recipe: a name without an ending gets `.yaml`, by which `puma-trl train` knows recipes.

    Raises:
        ConfigError: if it has another ending, or exists.
    """
    if path.is_dir() or path.suffix not in ("", ".yaml", ".yml"):
        raise ConfigError(f"`--output {path}` is not the name of a recipe. Give a name that ends with .yaml.")
    path = path if path.suffix else path.with_name(f"{path.name}.yaml")
    check_file(path)
    if path.exists():
        raise ConfigError(f"{path} exists already. Name another file with `--output`.")
    return path


def check_machine(args: argparse.Namespace) -> None:
    """
    Makes sure that GPUs and memory are numbers that a machine can have.

    Raises:
        ConfigError: if they are not.
    """
    if args.gpus is not None and args.gpus < 0:
        raise ConfigError(f"`--gpus` is {args.gpus}; it must be 0 (a CPU) or more.")
    if args.memory is not None and not 0 < args.memory < math.inf:
        raise ConfigError(f"`--memory` is {args.memory:g}; it must be a number of GB above 0.")


def ask(parser: Parser, args: argparse.Namespace) -> list[str]:
    """
    Asks for what is not given, and again after an answer that cannot be used.

    Returns:
        `list[str]`: the answers as options; none for what is left empty.
    """
    options: list[str] = []
    for name in (name for name in QUESTIONS if getattr(args, name) is None):
        answer = None
        while answer is None:
            try:
                answer = _read_answer(parser, name, input(f"{QUESTIONS[name]}: ").strip())
            except EOFError:  # Ctrl-D: no more answers
                print()
                return options
            except USER_ERRORS as error:
                print(error_line(error))
        options += answer
    return options


def _read_answer(parser: Parser, name: str, text: str) -> list[str]:
    """Returns an answer as an option, after looking at what it names."""
    if not text:
        if name in NEEDED:
            raise ConfigError(f"Name the {name}, or end with Ctrl-D.")
        return []
    values = text.replace(",", " ").split() if name == "data" and not os.path.exists(text) else [text]
    option = [f"--{name}", *values]
    args = parser.parse_args(option)
    check_machine(args)
    if name in NEEDED:
        from .init import check_data, read_config  # takes seconds to import

        read_config(args.model) if name == "model" else check_data(args.data)
    return option
