"""`python -m puma_trl.hub`: see [`puma_trl.record.hub`]."""

from .entry import run_command  # before the libraries that it quietens


# isort: split
from .record.command import main


if __name__ == "__main__":
    run_command(main)
