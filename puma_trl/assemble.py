"""`python -m puma_trl.assemble`: see [`puma_trl.checkpoints.assemble`]."""

from .entry import run_command  # before the libraries that it quietens


# isort: split
from .checkpoints.assemble import main


if __name__ == "__main__":
    run_command(main)
