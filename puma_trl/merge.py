"""`python -m puma_trl.merge`: see [`puma_trl.checkpoints.merge`]."""

import sys

from .entry import run_command  # before the libraries that it quietens


# isort: split
from .checkpoints.command import main


if __name__ == "__main__":
    run_command(main, ["merge", *sys.argv[1:]])
