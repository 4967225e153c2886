"""Load the model and its processor, and choose what trains: parts of the full model, or adapters on those parts."""

import dataclasses
import os
from collections.abc import Iterable

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from trl import ModelConfig, get_peft_config, get_quantization_config

from .config import PumaKLConfig, as_list
from .families import Family


PARTS = ("language_model", "aligner", "vision_tower_low", "vision_tower_high")


def load_config(model_args: ModelConfig, training_args: PumaKLConfig) -> PreTrainedConfig:
    """
    Reads the configuration of the model.

    Raises:
        ValueError: if `model_name_or_path` is neither a model folder nor a model of the Hub, a folder with adapters, or a
            model of an unknown type.
    """
    folder = model_args.model_name_or_path
    if os.path.isfile(os.path.join(folder, "adapter_config.json")):
        raise ValueError(
            f"`model_name_or_path: {folder}` holds adapters and no model. Merge them into their base model first: "
            f"`python -m puma_trl.merge {folder} {folder.rstrip('/')}-merged`."
        )
    try:
        return AutoConfig.from_pretrained(
            model_args.model_name_or_path,
            revision=model_args.model_revision,
            trust_remote_code=training_args.trust_remote_code,
        )
    except OSError as error:
        raise ValueError(
            f"No model configuration was found for `model_name_or_path: {model_args.model_name_or_path}`. It must be a "
            "model folder with a config.json, or the id of a model on the Hub."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"`model_name_or_path: {model_args.model_name_or_path}` is no model that transformers knows: {error} Original "
            "Math-PUMA checkpoints are converted with `python -m puma_trl.convert`; code that comes with a model runs "
            "only with `trust_remote_code: true`."
        ) from error


def load_processor(model_args: ModelConfig, training_args: PumaKLConfig) -> ProcessorMixin | PreTrainedTokenizerBase:
    """
    Loads the processor of a vision-language model, or the tokenizer of a text model, and makes sure that it can pad.

    Raises:
        ValueError: if the folder has no processor, or the processor no chat template.
    """
    try:
        processor = AutoProcessor.from_pretrained(
            model_args.model_name_or_path,
            revision=model_args.model_revision,
            trust_remote_code=training_args.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"No processor or tokenizer could be loaded from `{model_args.model_name_or_path}`: {error}. Copy the base "
            "model's processor and tokenizer files into the folder."
        ) from error
    tokenizer = processor.tokenizer if isinstance(processor, ProcessorMixin) else processor
    if tokenizer.eos_token is None:
        raise ValueError(
            f"The tokenizer of `{model_args.model_name_or_path}` has no end token (`eos_token`), so answers could not "
            "end. Set it in tokenizer_config.json."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if training_args.chat_template_path is None and processor.chat_template is None:
        raise ValueError(
            f"The processor of `{model_args.model_name_or_path}` has no chat template. Give one with "
            "`chat_template_path`."
        )
    return processor


def load_model(
    model_args: ModelConfig, training_args: PumaKLConfig, config: PreTrainedConfig, family: Family
) -> PreTrainedModel:
    """
    Loads the model with its native class: image-text-to-text where there is one, else a causal language model.

    With `load_in_4bit` or `load_in_8bit` only the language model is quantised; aligner, vision towers and head are not.

    Raises:
        ValueError: if the folder holds no weights, or weights that do not fit the configuration, or quantisation is asked
            for without adapters or of a model whose language model is not known.
    """
    auto_class = (
        AutoModelForImageTextToText if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else AutoModelForCausalLM
    )
    dtype = model_args.dtype if model_args.dtype in ("auto", None) else getattr(torch, model_args.dtype)
    quantization_config = _build_quantization_config(model_args, config, family, auto_class)
    try:
        model, loading = auto_class.from_pretrained(
            model_args.model_name_or_path,
            config=config,
            revision=model_args.model_revision,
            trust_remote_code=training_args.trust_remote_code,
            attn_implementation=model_args.attn_implementation,
            dtype=dtype,
            quantization_config=quantization_config,
            output_loading_info=True,
        )
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"No usable weights were found in `{model_args.model_name_or_path}`: {error}. A checkpoint folder needs "
            "model.safetensors, or its shards and their index, all of them whole."
        ) from error
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ValueError(
            f"The checkpoint `{model_args.model_name_or_path}` lacks {len(missing)} tensors of "
            f"{type(model).__name__}, the first being {missing[:3]}. They would train from random values. Check that "
            "the folder holds this model; original Math-PUMA checkpoints are converted with `puma_trl.convert`."
        )
    return model


def _build_quantization_config(
    model_args: ModelConfig, config: PreTrainedConfig, family: Family, auto_class: type
) -> BitsAndBytesConfig | None:
    """Returns what quantises the linear layers of the language model and no others, or `None`."""
    if not (model_args.load_in_4bit or model_args.load_in_8bit):
        return None
    if not model_args.use_peft:
        raise ValueError(
            "`load_in_4bit` and `load_in_8bit` need `use_peft: true`: quantised weights cannot be trained, only adapters "
            "on them."
        )
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "`load_in_4bit` and `load_in_8bit` do not go with ZeRO-3: transformers loads quantised weights whole on every "
            "process, so nothing would be sharded. Use DDP or ZeRO-2, or LoRA without quantisation."
        )
    if "language_model" not in family.parts:
        raise ValueError(
            f"`load_in_4bit` and `load_in_8bit` quantise the language model only, but which modules that is is not "
            f"known for models of type '{config.model_type}'. Use LoRA without quantisation, or register the family in "
            "puma_trl/families."
        )
    if model_args.dtype in ("auto", None):  # the dtype that the quantised layers compute in
        model_args = dataclasses.replace(model_args, dtype=str(config.dtype or torch.float32).removeprefix("torch."))
    quantization_config = get_quantization_config(model_args)
    with torch.device("meta"):
        model = auto_class.from_config(config)
    head = model.get_output_embeddings()
    # by name and not by prefix: transformers matches whole modules, and `model.high_res_vision_` is none
    quantization_config.llm_int8_skip_modules = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and (module is head or part_of(f"{name}.weight", family) != "language_model")
    ]
    return quantization_config


def _module_tree(model: PreTrainedModel) -> str:
    names = [name for name, _ in model.named_modules() if name and name.count(".") < 2]
    return "\n".join("  " * name.count(".") + name for name in names)


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
                "a prefix of parameter names ending with a dot. The modules, to two levels:\n" + _module_tree(model)
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


def build_peft_config(
    model: PreTrainedModel, model_args: ModelConfig, parts: list[str], family: Family
) -> PeftConfig | None:
    """
    Returns the adapter configuration of the recipe, or `None` without `use_peft`.

    Adapters go on linear layers of the trainable parts: those that `lora_target_modules` matches, or all without it (and
    with `all-linear`). The language-model head and what `lora_modules_to_save` trains whole are left out.
    `lora_modules_to_save` also takes the names of parts.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model without adapters.
        model_args ([`~trl.ModelConfig`]):
            The LoRA fields are used.
        parts (`list[str]`):
            `trainable_parts`.
        family ([`Family`]):
            The model family.

    Raises:
        ValueError: if `lm_head` is a target, nothing is left to adapt, or a part cannot be trained whole.
    """
    peft_config = get_peft_config(model_args)
    if peft_config is None:
        return None
    if model_args.model_revision != "main":
        peft_config.revision = model_args.model_revision
    saved = as_list(model_args.lora_modules_to_save)
    peft_config.modules_to_save = [path for name in saved for path in _whole_modules(model, name, family)] or None
    targets = peft_config.target_modules
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
        raise ValueError(
            f"`use_peft: true` finds no linear layer to adapt: `lora_target_modules` is {targets}, `trainable_parts` is "
            f"{parts} and `lora_modules_to_save` is {saved or None}. Name layers of the trainable parts, or set "
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
        raise ValueError(
            f"`lora_target_modules` matches `{name}`. The loss reads the head's weight directly and never builds the "
            "logits, so an adapter on it would never train. Leave it out, or train it whole with "
            f"`lora_modules_to_save: [{name}]`."
        )


def _whole_modules(model: PreTrainedModel, name: str, family: Family) -> list[str]:
    """Resolves an entry of `lora_modules_to_save`: the name of a part, or of modules as PEFT matches them."""
    if name not in family.parts:
        if not any(path.endswith(name) for path, _ in model.named_modules()):
            raise ValueError(
                f"`lora_modules_to_save` names '{name}', which is neither a part ({', '.join(family.parts) or 'none'}) nor "
                "a module of the model:\n" + _module_tree(model)
            )
        quantised = [
            path
            for path, parameter in model.named_parameters()
            if not parameter.is_floating_point() and f".{name}." in f".{path}"
        ]
        if quantised:
            raise ValueError(
                f"`lora_modules_to_save` names '{name}', but {quantised[0]} is quantised and cannot be trained whole. Give "
                "it adapters with `lora_target_modules`, or load the model without quantisation."
            )
        return [name]
    (members,) = (set(names) for names in select_parts(model, [name], family).values())
    paths: list[str] = []
    for path, module in model.named_modules():
        parameters = {f"{path}.{parameter}" for parameter, _ in module.named_parameters()}
        # the largest modules that lie in the part; PEFT cannot wrap a list of modules
        if parameters and parameters <= members and not isinstance(module, torch.nn.ModuleList):
            paths.append(path)
            members -= parameters
    if members:
        raise ValueError(
            f"`lora_modules_to_save` names the part '{name}', but {sorted(members)} belong to no module of it alone, and "
            f"PEFT trains whole modules. Name the modules instead: {', '.join(paths)}."
        )
    return paths


def prepare_adapters(model: PeftModel, autocast: bool, fresh: bool) -> None:
    """
    Gives what trains of a model with adapters the dtype that it learns best in; the frozen weights stay as they are.

    Adapters become fp32, which is PEFT's rule: TRL casts them to bf16 where the base is quantised, and in bf16 the steps
    of a small learning rate are rounded away. For the same reason modules trained whole become fp32 under autocast;
    without it they need the dtype of the base, as their neighbours' outputs have it.

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
