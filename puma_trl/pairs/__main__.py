"""The command line of the pair tools: `puma-trl pairs generate --help`."""

import argparse
import sys
from importlib import import_module

from ..entry import Parser, run_command
from ..errors import DataError


TOOLS = {
    "build": "build pairs from ordinary problems",
    "generate": "generate problems with drawings",
    "answer": "write a model's own answers, the right ones kept",
    "check": "check pairs before training",
    "split": "split into training and evaluation data without leaks",
    "preview": "write a page to look at pairs",
}


def main(argv: list[str] | None = None) -> None:
    """Runs the command that is named."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(prog="puma-trl pairs", description="Makes text-rich/vision-rich pairs.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, description in TOOLS.items():
        formatter = argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(name, help=description, formatter_class=formatter)
        if name in argv[:1]:  # some of the others take many seconds to import
            tool = import_module(f".{name}.command", __package__)
            command.description = tool.__doc__
            tool.add_arguments(command)
    args = parser.parse_args(argv)  # which ends here unless one of the tools is named
    try:
        tool.main(args)
    except DataError as error:
        from .mapping import as_option  # which takes long to import

        raise DataError(as_option(str(error))) from error


if __name__ == "__main__":
    run_command(main)
