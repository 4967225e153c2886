"""What `puma-trl train` says about its recipe at once, before the libraries that a launch needs are read."""

import difflib
import os
from pathlib import Path

from ..errors import ConfigError
from .shipped import RECIPES


ENDINGS = (".yaml", ".yml")


def main(argv: list[str]) -> int | None:
    """Looks at the recipe, and launches the run."""
    if not {"-h", "--help"} & {*argv}:
        check_recipe(argv)
    from .train import main as launch  # takes seconds to import

    return launch(argv)


def check_recipe(argv: list[str]) -> None:
    """
    Makes sure that a recipe is named, and is there.

    Raises:
        ConfigError: if it is not; recipes of similar names are named.
    """
    names = {arg.split("=", 1)[0] for arg in argv}
    if not argv or (argv[0].startswith("-") and not names & {"--config", "--model_name_or_path"}):
        raise ConfigError("Name a recipe: `puma-trl train recipe.yaml`. `puma-trl init` writes one.")
    name = argv[0]
    if name.startswith("-"):
        return
    if not name.endswith(ENDINGS):
        raise ConfigError(f"`{name}` is not a recipe (.yaml). {_guess(name)}")
    if not os.path.exists(name) and not (RECIPES / name.removeprefix("recipes/")).is_file():
        raise ConfigError(f"No such recipe: {name}. {_guess(name)}")


def _guess(name: str) -> str:
    """Names the recipes that may be meant: those in a folder of the name, or those of similar names."""
    shipped = {f"recipes/{path.relative_to(RECIPES)}" for path in RECIPES.rglob("*.yaml")}
    local = {str(path) for ending in ENDINGS for path in [*Path().glob(f"*{ending}"), *Path().glob(f"*/*{ending}")]}
    known = sorted(shipped | local)
    folder = os.path.normpath(name) if name else ""
    near = [each for each in known if os.path.dirname(each) in (folder, f"recipes/{folder}")] if folder != "." else []
    near = near or [each for each in known if os.path.splitext(each)[0] in (folder, f"recipes/{folder}")]
    for wanted in (name, f"recipes/{name}", f"{name}.yaml"):
        near = near or difflib.get_close_matches(wanted, known, n=3, cutoff=0.7)
    if not near:
        return "Check the path and the current folder; `puma-trl init` writes a recipe."
    return f"Did you mean {' or '.join(f'`{each}`' for each in near[:3])}?"
