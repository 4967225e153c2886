"""
Math-PUMA as a HuggingFace-native training recipe on TRL.

After `import puma_trl`, before transformers or after it, the Auto classes load Math-PUMA's own model.
"""

from types import ModuleType
from typing import TYPE_CHECKING, Any

from wrapt import lazy_import, when_imported


if TYPE_CHECKING:
    from .config import PumaKLConfig, PumaScriptArguments
    from .data.collator import DataCollatorForPumaPairs
    from .data.load import load_data
    from .models.parts import set_trainable_parts
    from .step.losses import fused_puma_loss
    from .step.reference import puma_loss
    from .train.trainer import PumaKLTrainer

__all__ = [
    "DataCollatorForPumaPairs",
    "PumaKLConfig",
    "PumaKLTrainer",
    "PumaScriptArguments",
    "__version__",
    "fused_puma_loss",
    "load_data",
    "puma_loss",
    "set_trainable_parts",
]

_MODULES = {
    "DataCollatorForPumaPairs": "data.collator",
    "PumaKLConfig": "config",
    "PumaKLTrainer": "train.trainer",
    "PumaScriptArguments": "config",
    "fused_puma_loss": "step.losses",
    "load_data": "data.load",
    "puma_loss": "step.reference",
    "set_trainable_parts": "models.parts",
}


@when_imported("transformers.models.auto.configuration_auto")
def _announce_family(auto: ModuleType) -> None:
    # A stand-in for the class, whose module registers the rest: it is imported, and torch with it, when a model of
    # that type is first loaded. Here it could not be: this runs in the middle of whatever imports the Auto classes.
    family = f"{__name__}.models.families.math_puma_qwen2"
    auto.CONFIG_MAPPING.register("math_puma_qwen2", lazy_import(family, "MathPumaQwen2Config"))


def __getattr__(name: str) -> Any:
    # lazy, so that scoring an evaluation does not wait for torch
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
