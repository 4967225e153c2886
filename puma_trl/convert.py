"""`python -m puma_trl.convert`: see [`puma_trl.checkpoints.convert`]."""

import sys

from .entry import run_command  # before the libraries that it quietens


# isort: split
from .checkpoints.command import main


if __name__ == "__main__":
    run_command(main, ["convert", *sys.argv[1:]])
