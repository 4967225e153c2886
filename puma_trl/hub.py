"""`python -m puma_trl.hub`: see [`puma_trl.record.hub`]."""

from .record.hub import main


if __name__ == "__main__":
    main()
