"""`python -m puma_trl.merge`: see [`puma_trl.checkpoints.merge`]."""

from .entry import run_command  # before the libraries that it quietens


# isort: split
from .checkpoints.merge import main


if __name__ == "__main__":
    run_command(main)
