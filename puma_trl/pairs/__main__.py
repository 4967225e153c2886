"""The command line of the pair tools: `python -m puma_trl.pairs generate --help`."""

import argparse

from . import build, check, generate, preview


def main() -> None:
    """Runs the command that is named."""
    parser = argparse.ArgumentParser(prog="python -m puma_trl.pairs", description="Makes text-rich/vision-rich pairs.")
    commands = parser.add_subparsers(dest="command", required=True)
    tools = {
        "build": (build, "build pairs from ordinary problems"),
        "generate": (generate, "generate problems with drawings"),
        "check": (check, "check pairs before training"),
        "preview": (preview, "write a page to look at pairs"),
    }
    for name, (module, description) in tools.items():
        module.add_arguments(commands.add_parser(name, help=description, description=module.__doc__))
    args = parser.parse_args()
    tools[args.command][0].main(args)


if __name__ == "__main__":
    main()
