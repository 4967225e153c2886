"""Where both sides of a pair show the same picture, frozen vision towers compute its features once."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..models.families import Family
from ..models.parts import part_of


TOWERS = {"vision_tower_low", "vision_tower_high"}


def frozen_vision_modules(model: PreTrainedModel, family: Family) -> list[nn.Module]:
    """
    Returns the largest modules of the vision towers, or none if anything of a tower trains.

    Even then some modules may be frozen, but what they compute depends on those that train before them, adapters too.
    """
    parts, trains = {}, set()
    for name, parameter in model.named_parameters():
        parts[name] = part_of(name, family)
        if parameter.requires_grad:
            trains.add(parts[name])
    if trains & TOWERS:
        return []

    def collect(module: nn.Module, prefix: str) -> Iterator[nn.Module]:
        inside = {part for name, part in parts.items() if name.startswith(prefix)}
        # a list of modules is never called itself
        if inside and inside <= TOWERS and not isinstance(module, nn.ModuleList):
            yield module
        elif inside:
            for name, child in module.named_children():
                yield from collect(child, f"{prefix}{name}.")

    return list(collect(model, ""))


class TowerMemo:
    """
    Lets the student's pass reuse what frozen vision towers computed in the teacher's.

    Exact, because the towers get the same pixels and have the same weights and no gradient in both passes. Not for
    engines that shard parameters: a rank that skips a module skips its collectives too.
    """

    def __init__(self, model: PreTrainedModel, family: Family):
        self._outputs: dict[nn.Module, deque] = defaultdict(deque)
        self._replaying = False
        self._recording = False
        for module in frozen_vision_modules(model, family):
            module.forward = self._wrap(module, module.forward)

    def _wrap(self, module: nn.Module, forward: Callable) -> Callable:
        def memo_forward(*args: Any, **kwargs: Any) -> Any:
            if self._replaying:
                return self._outputs[module].popleft()
            output = forward(*args, **kwargs)
            if self._recording:
                self._outputs[module].append(output)
            return output

        return memo_forward

    @contextmanager
    def record(self) -> Iterator[None]:
        """Keeps the outputs of the frozen modules; for the teacher's pass."""
        self._outputs.clear()  # what a step has left that an error ended
        self._recording = True
        try:
            yield
        finally:
            self._recording = False

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Returns the kept outputs instead of computing them; for the student's pass."""
        self._replaying = True
        try:
            yield
        finally:
            self._replaying = False
