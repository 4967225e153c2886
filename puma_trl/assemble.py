"""`python -m puma_trl.assemble`: see [`puma_trl.checkpoints.assemble`]."""

import sys

from .entry import run_command  # before the libraries that it quietens


# isort: split
from .checkpoints.command import main


if __name__ == "__main__":
    run_command(main, ["assemble", *sys.argv[1:]])
