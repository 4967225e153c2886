"""The parts of a model: their names, which parameters belong to each, which of them train, and at what rate."""

import difflib
from collections.abc import Iterable

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ..config import PumaKLConfig, as_list
from ..errors import ModelError
from .families import Family


PARTS = ("language_model", "aligner", "vision_tower_low", "vision_tower_high")
# Other names in a recipe → the parts that they stand for
ALIASES = {"vision_tower": ("vision_tower_low", "vision_tower_high")}
# Setting → what else it takes, and the names of that
ALSO = {
    "trainable_parts": ("`all`, or a prefix of parameter names that ends with a dot", ("all",)),
    "part_learning_rates": ("a prefix of parameter names that ends with a dot", ()),
    "lora_modules_to_save": ("the name of a module", ()),
}


def resolve_part(name: str, family: Family, setting: str) -> list[str]:
    """
    Returns the parts that a name in a recipe stands for: the one vocabulary of `trainable_parts`,
    `part_learning_rates` and `lora_modules_to_save`.

    Names are those of `PARTS`, and `vision_tower` for both towers. In a family with one vision tower all three tower
    names mean that one, `vision_tower_low`. `setting` is where the name stands, for the message.

    Raises:
        ModelError: if the family has no such part; the message gives the nearest one, and all.
    """
    low, high = (family.parts.get(tower) for tower in ALIASES["vision_tower"])
    names = ALIASES.get(name, (name,))
    parts = ["vision_tower_low" if part == "vision_tower_high" and high == low else part for part in names]
    if any(part not in family.parts for part in parts):
        raise ModelError(
            f"`{setting}` names '{name}', which is not a part of this model.{_advice(name, family, setting)}"
        )
    return list(dict.fromkeys(parts))


def _advice(name: str, family: Family, setting: str) -> str:
    """Returns the nearest name, if there is one, and all names."""
    aliases = [*ALIASES] if "vision_tower_low" in family.parts else []
    also, names = ALSO[setting]
    nearest = difflib.get_close_matches(name, [*family.parts, *aliases, *names], n=1, cutoff=0.5)
    hint = f" Did you mean `{nearest[0]}`?" if nearest else ""
    return f"{hint} Its parts are: {', '.join([*family.parts, *aliases]) or 'none that are known'}, or {also}."


def check_parts(args: PumaKLConfig, family: Family) -> None:
    """
    Makes sure, before data and model are loaded, that the parts of `trainable_parts` and `part_learning_rates` are
    known.

    Prefixes of parameter names, and any name for a family without named parts, are looked up in the model later.

    Raises:
        ModelError: if a name is not known, or two names give one part two learning rates.
    """
    if not family.parts:
        return
    for name in args.trainable_parts or ():
        if name != "all" and not name.endswith("."):
            resolve_part(name, family, "trainable_parts")
    _resolve_rates(args.part_learning_rates or {}, family)


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
            Parts of the family (see [`resolve_part`]), `all`, or prefixes of parameter names that end with a dot.
        family ([`Family`]):
            The model family.

    Returns:
        Part → names of its parameters, every parameter under one part.

    Raises:
        ModelError: if a part matches no parameter; the message lists the parts there are.
    """
    prefixes = [part for part in parts if part.endswith(".")]
    members: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        members.setdefault(part_of(name, family, prefixes) or "other", []).append(name)
    if "all" in parts:
        return members
    chosen: dict[str, list[str]] = {}
    for name in parts:
        try:
            resolved = [name] if name in prefixes else resolve_part(name, family, "trainable_parts")
        except ModelError as error:
            if any(member.startswith(f"{name}.") for names in members.values() for member in names):
                raise ModelError(
                    f"`trainable_parts` names '{name}', which is a beginning of parameter names. End it "
                    f"with a dot: `{name}.`"
                ) from None
            raise ModelError(f"{error} The modules, to two levels:\n{module_tree(model)}") from None
        for part in resolved:
            if part not in members:
                raise ModelError(
                    f"`trainable_parts` names '{name}', which matches no parameter of {type(model).__name__}."
                    f"{_advice(name, family, 'trainable_parts')} The modules, to two levels:\n{module_tree(model)}"
                )
            chosen[part] = members[part]
    return chosen


def set_trainable_parts(model: PreTrainedModel, parts: list[str] | str, family: Family) -> dict[str, int]:
    """
    Makes exactly the named parts trainable.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The unwrapped model.
        parts (`list[str]` or `str`):
            As [`select_parts`] takes them, or separated by commas.
        family ([`Family`]):
            The model family.

    Returns:
        Part → number of its parameters that train.

    Raises:
        ModelError: if no part is named, or one matches no parameter.
    """
    if not (wanted := as_list(parts)):
        raise ModelError(f"`parts` is {parts!r}, so nothing would train. Name the parts, or `all`.")
    chosen = select_parts(model, wanted, family)
    names = {name for part in chosen.values() for name in part}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    sizes = {name: _num_elements(parameter) for name, parameter in model.named_parameters()}
    return {part: sum(sizes[name] for name in members) for part, members in chosen.items()}


def _num_elements(parameter: torch.nn.Parameter) -> int:
    # weights in 4 bits are packed, two to a byte or more to a wider number
    if getattr(parameter, "quant_state", None) is not None:
        return parameter.quant_state.shape.numel()
    # DeepSpeed ZeRO-3 empties a sharded parameter and keeps its size beside it
    return parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel()


def count_parameters(model: PreTrainedModel | PeftModel, family: Family) -> dict[str, tuple[int, int]]:
    """
    Returns part → (trainable, all) numbers of parameters.

    Quantised weights count as many as they stand for, the student's adapters with the part that they adapt. What
    `lora_modules_to_save` trains whole counts once, without its frozen original, and a teacher's adapters do not
    count.
    """
    copies = ["original_module"]
    if isinstance(model, PeftModel):
        copies += model.peft_config.keys() - {model.active_adapter}
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        if any(f".{copy}." in name for copy in copies):
            continue
        part = part_of(name.removeprefix("base_model.model."), family) or "other"
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
            Part (see [`resolve_part`]), or prefix of parameter names that ends with a dot → learning rate. A tower's
            own name wins over `vision_tower`. What is not named keeps the rate of its group.

    Raises:
        ModelError: if the model has no such part, none of it trains, or two names give it two rates.
    """
    rates = _resolve_rates(part_learning_rates, family)
    prefixes = [name for name in rates if name.endswith(".")]
    part_by_id = {
        id(parameter): part_of(name.removeprefix("module.").removeprefix("base_model.model."), family, prefixes)
        for name, parameter in named_parameters
    }
    groups = []
    for group in optimizer.param_groups:
        members: dict[str, list[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            members.setdefault(part_by_id[id(parameter)], []).append(parameter)
        for part, parameters in members.items():
            groups.append({**group, "params": parameters, "lr": rates.get(part, group["lr"]), "part": part})
    _refuse_idle(rates, {group["part"] for group in groups})
    optimizer.param_groups[:] = groups


def check_rates(model: PreTrainedModel | PeftModel, part_learning_rates: dict[str, float], family: Family) -> None:
    """
    Makes sure that something trains of each part that `part_learning_rates` names.

    Raises:
        ModelError: if nothing does.
    """
    rates = _resolve_rates(part_learning_rates, family)
    prefixes = [name for name in rates if name.endswith(".")]
    trained = {
        part_of(name.removeprefix("base_model.model."), family, prefixes)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    _refuse_idle(rates, trained)


def check_rates_by_name(args: PumaKLConfig, whole: list[str], family: Family) -> None:
    """The same, before data and model are loaded, as far as names tell: neither `all` nor a prefix trains."""
    names = [*(args.trainable_parts or ["all"]), *whole]
    if not all(name in family.parts or name in ALIASES for name in names):
        return
    trained = {part for name in names for part in resolve_part(name, family, "trainable_parts")}
    rates = _resolve_rates(args.part_learning_rates or {}, family)
    _refuse_idle([name for name in rates if not name.endswith(".")], trained)


def _refuse_idle(rates: Iterable[str], trained: set[str | None]) -> None:
    if idle := sorted(set(rates) - trained):
        raise ModelError(
            f"`part_learning_rates` names {', '.join(idle)}, of which no parameter trains; what trains is of: "
            f"{', '.join(sorted(filter(None, trained)))}. Leave it out, or add it to `trainable_parts`."
        )


def _resolve_rates(part_learning_rates: dict[str, float], family: Family) -> dict[str, float]:
    """Returns part or prefix → learning rate."""
    names: dict[str, str] = {}  # part → its name in the recipe; what stands for several is read first
    for name in sorted(part_learning_rates, key=lambda name: name not in ALIASES):
        resolved = [name] if name.endswith(".") else resolve_part(name, family, "part_learning_rates")
        for part in resolved:
            other = names.get(part, name)
            if other not in ALIASES and part_learning_rates[other] != part_learning_rates[name]:
                raise ModelError(
                    f"`part_learning_rates` gives {other} {part_learning_rates[other]} and {name} "
                    f"{part_learning_rates[name]}, but this model has one vision tower. Keep one of them."
                )
            names[part] = name
    return {part: part_learning_rates[name] for part, name in names.items()}
