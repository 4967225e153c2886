"""
Math-PUMA as a HuggingFace-native training recipe on TRL.

After `import puma_trl`, before transformers or after it, the Auto classes load Math-PUMA's own model.
"""

from types import ModuleType
from typing import TYPE_CHECKING, Any

from wrapt import lazy_import, when_imported


if TYPE_CHECKING:
    from .config import PumaKLConfig
    from .data.collator import DataCollatorForPumaPairs
    from .train.trainer import PumaKLTrainer

__all__ = ["DataCollatorForPumaPairs", "PumaKLConfig", "PumaKLTrainer"]

_MODULES = {
    "DataCollatorForPumaPairs": "data.collator",
    "PumaKLConfig": "config",
    "PumaKLTrainer": "train.trainer",
}


@when_imported("transformers.models.auto.configuration_auto")
def _announce_family(auto: ModuleType) -> None:
    # A stand-in for the class, whose module registers the rest: it is imported, and torch with it, when a model of that
    # type is first loaded. Here it could not be: this runs in the middle of whatever imports the Auto classes.
    family = f"{__name__}.models.families.math_puma_qwen2"
    auto.CONFIG_MAPPING.register("math_puma_qwen2", lazy_import(family, "MathPumaQwen2Config"))


def __getattr__(name: str) -> Any:
    # lazy, so that scoring an evaluation does not wait for torch
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
