"""Adapters on the trainable parts: where they go, what trains whole beside them, and in which dtype."""

import os

import torch
from accelerate.utils import is_peft_model
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import ModulesToSaveWrapper
from transformers import PreTrainedModel
from trl import ModelConfig, get_peft_config

from ..config import as_list
from ..errors import ModelError
from .families import Family
from .parts import ALIASES, module_tree, resolve_part, select_parts


def below_adapters(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Returns the model that adapters are on, or the model itself where there are none."""
    return model.get_base_model() if is_peft_model(model) else model


def build_peft_config(
    model: PreTrainedModel, model_args: ModelConfig, parts: list[str], family: Family
) -> PeftConfig | None:
    """
    Returns the adapter configuration of the recipe, or `None` without `use_peft`.

    Adapters go on linear layers of the trainable parts: those that `lora_target_modules` matches, or all without it
    (and with `all-linear`). The language-model head and what `lora_modules_to_save` trains whole are left out.
    `lora_modules_to_save` also takes the names of parts.

    Raises:
        ModelError: if `lm_head` is a target, nothing is left to adapt, or a part cannot be trained whole.
    """
    peft_config = get_peft_config(model_args)
    if peft_config is None:
        return None
    if os.path.isdir(model.name_or_path):
        # PEFT writes it into adapter_config.json, and a relative path would be right in one folder only
        model.name_or_path = os.path.abspath(model.name_or_path)
    if model_args.model_revision != "main":
        peft_config.revision = model_args.model_revision
    saved = as_list(model_args.lora_modules_to_save)
    whole = [path for name in saved for path in _whole_modules(model, name, family)]
    peft_config.modules_to_save = list(dict.fromkeys(whole)) or None
    targets = peft_config.target_modules
    if isinstance(targets, str) and any(name.split(".")[-1] == targets for name, _ in model.named_modules()):
        # of a list of one name TRL makes a text, which PEFT takes for a pattern of whole names
        targets = peft_config.target_modules = {targets}
    if targets is None or targets == "all-linear" or set(targets) == {"all-linear"}:
        peft_config.target_modules = r".*"  # of the layers below
    else:
        _refuse_adapter_on_head(model, peft_config)
    head = model.get_output_embeddings()
    names = {name for members in select_parts(model, parts, family).values() for name in members}
    peft_config.target_modules = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module is not head
        and f"{name}.weight" in names
        and check_target_module_exists(peft_config, name)
    ]
    if not peft_config.target_modules:
        raise ModelError(
            f"`use_peft: true` finds no linear layer to adapt: `lora_target_modules` is {targets}, `trainable_parts` "
            f"is {parts} and `lora_modules_to_save` is {saved or None}. Name layers of the trainable parts, or set "
            "`use_peft: false` to train the parts themselves."
        )
    return peft_config


def _refuse_adapter_on_head(model: PreTrainedModel, peft_config: PeftConfig) -> None:
    head = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head)
    parameters = peft_config.target_parameters or ()
    if check_target_module_exists(peft_config, name) or any(
        target.endswith(f"{name}.weight") for target in parameters
    ):
        raise ModelError(
            f"`lora_target_modules` matches `{name}`. The loss reads the head's weight directly and never builds the "
            "logits, so an adapter on it would never train. Leave it out, or train it whole with "
            f"`lora_modules_to_save: [{name}]`."
        )


def _whole_modules(model: PreTrainedModel, name: str, family: Family) -> list[str]:
    """Resolves an entry of `lora_modules_to_save`: the name of a part, or of modules as PEFT matches them."""
    is_part = name in family.parts or (name in ALIASES and "vision_tower_low" in family.parts)
    if is_part:
        parts = resolve_part(name, family, "lora_modules_to_save")
        members = {member for names in select_parts(model, parts, family).values() for member in names}
    else:
        if not any(path.endswith(name) for path, _ in model.named_modules()):
            try:
                resolve_part(name, family, "lora_modules_to_save")
            except ModelError as error:
                raise ModelError(f"{error} The modules, to two levels:\n{module_tree(model)}") from None
        members = {path for path, _ in model.named_parameters() if f".{name}." in f".{path}"}
    quantised = [path for path in sorted(members) if not model.get_parameter(path).is_floating_point()]
    if quantised:
        raise ModelError(
            f"`lora_modules_to_save` names '{name}', but {quantised[0]} is quantised and cannot be trained whole. "
            "Give it adapters with `lora_target_modules`, or load the model without quantisation."
        )
    return _largest_modules(model, name, members) if is_part else [name]


def _largest_modules(model: PreTrainedModel, part: str, members: set[str]) -> list[str]:
    """Returns the largest modules that lie in a part of these parameters; PEFT cannot wrap a list of modules."""
    members, paths = set(members), []
    for path, module in model.named_modules():
        parameters = {f"{path}.{parameter}" for parameter, _ in module.named_parameters()}
        if parameters and parameters <= members and not isinstance(module, torch.nn.ModuleList):
            paths.append(path)
            members -= parameters
    if members:
        raise ModelError(
            f"`lora_modules_to_save` names the part '{part}', but {sorted(members)} belong to no module of it alone, "
            f"and PEFT trains whole modules. Name the modules instead: {', '.join(paths)}."
        )
    return paths


def prepare_adapters(model: PeftModel, autocast: bool, fresh: bool) -> None:
    """
    Gives what trains of a model with adapters the dtype that it learns best in; the frozen weights stay as they are.

    Adapters become fp32, which is PEFT's rule. Workaround (TRL 1.16, huggingface/trl#1644): it casts them to bf16
    where the base is quantised, and in bf16 the steps of a small learning rate are rounded away. For the same reason
    modules trained whole become fp32 under autocast; without it they need the dtype of the base, as their neighbours'
    outputs have it.

    Args:
        model ([`~peft.PeftModel`]):
            The model.
        autocast (`bool`):
            Whether the model runs under autocast (`bf16` or `fp16`).
        fresh (`bool`):
            Whether nothing has trained yet: modules trained whole start from the exact weights of the base then.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for trained in module.modules_to_save.values():
                pairs = zip(trained.parameters(), module.original_module.parameters(), strict=True)
                for parameter, original in pairs:
                    source = original if fresh else parameter
                    dtype = torch.float32 if autocast else original.dtype
                    parameter.data = source.data.to(dtype, copy=True)
