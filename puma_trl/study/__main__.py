"""`python -m puma_trl.study`: see [`puma_trl.study.run`]."""

from ..entry import run_command  # before the libraries that it quietens


# isort: split
from .run import main


if __name__ == "__main__":
    run_command(main)
