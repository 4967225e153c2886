"""Recipes and accelerate configurations that come with the package."""

import difflib
import os
from pathlib import Path

from ..errors import ConfigError


PACKAGE = Path(__file__).parents[1]
RECIPES, ENGINES = PACKAGE / "recipes", PACKAGE / "accelerate_configs"


def find_recipe(name: str) -> str:
    """Returns the path of a recipe: the file of that name, or else the one that comes with the package."""
    shipped = RECIPES / name.removeprefix("recipes/")
    if os.path.exists(name) or not shipped.is_file():
        return name
    print(f"There is no {name} here; this one comes with puma_trl: {shipped}")
    return str(shipped)


def find_engine(name: str) -> Path:
    """
    Returns the file of an accelerate configuration.

    Args:
        name (`str`):
            A file, or the name of one that comes with the package, such as `ddp`.

    Raises:
        ConfigError: if there is none.
    """
    shipped = ENGINES / f"{name.removeprefix('accelerate_configs/').removesuffix('.yaml')}.yaml"
    if os.path.isfile(name) or shipped.is_file():
        return Path(name) if os.path.isfile(name) else shipped
    known = sorted(path.stem for path in ENGINES.glob("*.yaml"))
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean `{near[0]}`?" if near else f"Name a file, or one of {', '.join(known)}."
    raise ConfigError(f"No such accelerate configuration: {name}. {hint}")


def zero_stage(name: str) -> int:
    """Returns the stage of ZeRO that an accelerate configuration is called after, such as `zero2_8xa100`, or 0."""
    return int(name[4]) if name.startswith("zero") else 0
