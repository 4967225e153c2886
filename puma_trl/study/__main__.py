"""`python -m puma_trl.study`: see [`puma_trl.study.run`]."""

from .run import main


main()
