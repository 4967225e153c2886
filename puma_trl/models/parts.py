"""The parts of a model: which parameters belong to each, which of them train, and at what learning rate."""

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

from .families import Family


PARTS = ("language_model", "aligner", "vision_tower_low", "vision_tower_high")


def part_of(name: str, family: Family, prefixes: Iterable[str] = ()) -> str | None:
    """
    Returns the part that a parameter belongs to: the one with the longest matching prefix, or `None`.

    Args:
        name (`str`):
            Name of the parameter in the unwrapped model, such as `"model.visual.merger.mlp.0.weight"`.
        family ([`Family`]):
            The model family, which maps parts to prefixes.
        prefixes (`Iterable[str]`, *optional*):
            Explicit prefixes, which are parts of their own and win over the family's.
    """
    for prefix in sorted(prefixes, key=len, reverse=True):
        if name.startswith(prefix):
            return prefix
    matches = [
        (len(prefix), part) for part in PARTS for prefix in family.parts.get(part, ()) if name.startswith(prefix)
    ]
    # the first of equals, so a model with one tower counts it as vision_tower_low
    return max(matches, key=lambda match: match[0])[1] if matches else None


def select_parts(model: PreTrainedModel, parts: list[str], family: Family) -> dict[str, list[str]]:
    """
    Resolves `trainable_parts` to names of parameters.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The unwrapped model.
        parts (`list[str]`):
            Parts of the family, `all`, or prefixes of parameter names that end with a dot.
        family ([`Family`]):
            The model family.

    Returns:
        Part → names of its parameters, every parameter under one part. In a family with one vision tower both tower
        names mean that tower, which stands under `vision_tower_low`.

    Raises:
        ValueError: if a part matches no parameter; the message lists the parts there are.
    """
    prefixes = [part for part in parts if part.endswith(".")]
    members: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        members.setdefault(part_of(name, family, prefixes) or "other", []).append(name)
    chosen: dict[str, list[str]] = {}
    for part in parts:
        if part == "all":
            return members
        # in a family with one tower, the high tower has the prefixes of the low one
        if part == "vision_tower_high" and family.parts.get(part) == family.parts.get("vision_tower_low"):
            part = "vision_tower_low"
        if part not in members or part == "other":
            raise ValueError(
                f"`trainable_parts` names '{part}', which matches no parameter of {type(model).__name__}. Its parts "
                f"are: {', '.join(sorted(set(members) - {'other', *prefixes})) or 'none that are known'}, or all, or "
                "a prefix of parameter names ending with a dot. The modules, to two levels:\n" + module_tree(model)
            )
        chosen[part] = members[part]
    return chosen


def set_trainable_parts(model: PreTrainedModel, parts: list[str], family: Family) -> dict[str, int]:
    """
    Makes exactly the named parts trainable.

    Returns:
        Part → number of its parameters that train.

    Raises:
        ValueError: if a part matches no parameter.
    """
    chosen = select_parts(model, parts, family)
    names = {name for part in chosen.values() for name in part}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    sizes = {name: _num_elements(parameter) for name, parameter in model.named_parameters()}
    return {part: sum(sizes[name] for name in members) for part, members in chosen.items()}


def _num_elements(parameter: torch.nn.Parameter) -> int:
    # DeepSpeed ZeRO-3 empties a sharded parameter and keeps its size beside it
    return parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel()


def count_parameters(model: PreTrainedModel, family: Family) -> dict[str, tuple[int, int]]:
    """Returns part → (trainable, all) numbers of parameters, adapters counted with the part that they adapt."""
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        name = name.replace("base_model.model.", "", 1) if name.startswith("base_model.model.") else name
        part = part_of(name, family) or "other"
        trainable, total = counts.get(part, (0, 0))
        size = _num_elements(parameter)
        counts[part] = (trainable + size * parameter.requires_grad, total + size)
    return counts


def module_tree(model: PreTrainedModel) -> str:
    """Returns the names of the modules down to two levels, indented, for messages."""
    names = [name for name, _ in model.named_modules() if name and name.count(".") < 2]
    return "\n".join("  " * name.count(".") + name for name in names)


def split_groups(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    family: Family,
    part_learning_rates: dict[str, float],
) -> None:
    """
    Splits the groups of an optimizer by part, each with its learning rate; everything else of a group is kept.

    Args:
        optimizer (`torch.optim.Optimizer`):
            Optimizer with the groups that Trainer builds (with and without weight decay).
        named_parameters (`Iterable[tuple[str, torch.nn.Parameter]]`):
            Parameters of the model, under the names that DDP and PEFT give them or their own.
        family ([`Family`]):
            The model family.
        part_learning_rates (`dict[str, float]`):
            Part → learning rate; `vision_tower` stands for both towers. Other parts keep the rate of their group.

    Raises:
        ValueError: if a part is named that the model does not have.
    """
    rates = dict(part_learning_rates)
    if "vision_tower" in rates:
        rate = rates.pop("vision_tower")
        rates = {"vision_tower_low": rate, "vision_tower_high": rate} | rates
    part_by_id = {
        id(parameter): part_of(name.removeprefix("module.").removeprefix("base_model.model."), family)
        for name, parameter in named_parameters
    }
    parts = {part for part in part_by_id.values() if part is not None}
    unknown = set(part_learning_rates) - parts - {"vision_tower", "vision_tower_high"}
    if unknown:
        raise ValueError(
            f"`part_learning_rates` names {sorted(unknown)}, but the parts of this model are {sorted(parts)}."
        )
    groups = []
    for group in optimizer.param_groups:
        members: dict[str, list[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            members.setdefault(part_by_id[id(parameter)], []).append(parameter)
        for part, parameters in members.items():
            groups.append({**group, "params": parameters, "lr": rates.get(part, group["lr"]), "part": part})
    optimizer.param_groups[:] = groups
