"""`python -m puma_trl.merge`: see [`puma_trl.checkpoints.merge`]."""

from .checkpoints.merge import main


if __name__ == "__main__":
    main()
