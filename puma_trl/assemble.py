"""`python -m puma_trl.assemble`: see [`puma_trl.checkpoints.assemble`]."""

from .checkpoints.assemble import main


if __name__ == "__main__":
    main()
