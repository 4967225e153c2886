"""`python -m puma_trl.convert`: see [`puma_trl.checkpoints.convert`]."""

from .checkpoints.convert import main


if __name__ == "__main__":
    main()
