"""`python -m puma_trl.convert`: see [`puma_trl.checkpoints.convert`]."""

from .entry import run_command  # before the libraries that it quietens


# isort: split
from .checkpoints.convert import main


if __name__ == "__main__":
    run_command(main)
