"""Math-PUMA as a HuggingFace-native training recipe on TRL."""

from typing import TYPE_CHECKING, Any


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


def __getattr__(name: str) -> Any:
    # lazy, so that scoring an evaluation does not wait for torch
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
