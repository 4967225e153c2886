"""Types and ranges of settings: one check for recipes, command lines and configs made in Python."""

import math
import os
import textwrap
import types
from collections.abc import Iterable
from dataclasses import MISSING, fields
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import ConfigError


WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}
# What the types do not say. Bounds are (test, words).
_AT_LEAST = {number: (lambda value, number=number: value >= number, f"at least {number}") for number in (0, 1)}
_POSITIVE = (lambda value: value > 0, "above 0")
_SHARE = (lambda value: 0 <= value <= 1, "between 0 and 1")
_SHARE_OR_COUNT = (
    lambda value: 0 < value < 1 or value >= 1 and value == int(value),
    "a share below 1 or a whole number",
)
_SEED = (lambda value: 0 <= value < 2**32, "between 0 and 4294967295")
_BELOW_ONE = (lambda value: 0 <= value < 1, "at least 0 and below 1")
_UP_TO_ONE = (lambda value: 0 < value <= 1, "above 0 and at most 1")
_PORT = (lambda value: 0 < value < 2**16, "between 1 and 65535")
RANGES = {
    "adam_beta1": _BELOW_ONE,
    "adam_beta2": _BELOW_ONE,
    "adam_epsilon": _AT_LEAST[0],
    "alpha_kl": _SHARE,
    "data_seed": _SEED,
    "dataloader_num_workers": _AT_LEAST[0],
    "dataloader_prefetch_factor": _AT_LEAST[1],
    "dataset_num_proc": _AT_LEAST[1],
    "ddp_bucket_cap_mb": _AT_LEAST[1],
    "ddp_timeout": _AT_LEAST[1],
    "eval_accumulation_steps": _AT_LEAST[1],
    "eval_delay": _AT_LEAST[0],
    "eval_split_size": _SHARE_OR_COUNT,
    "eval_steps": _SHARE_OR_COUNT,
    "gap_eval_steps": _AT_LEAST[1],
    "gradient_accumulation_steps": _AT_LEAST[1],
    "label_smoothing_factor": _BELOW_ONE,
    "lambda_kl": _SHARE,
    "learning_rate": _AT_LEAST[0],
    "logging_steps": _SHARE_OR_COUNT,
    "lora_alpha": _AT_LEAST[1],
    "lora_dropout": _BELOW_ONE,
    "lora_r": _AT_LEAST[1],
    "max_completion_length": _AT_LEAST[1],
    "max_grad_norm": _AT_LEAST[0],
    "max_length": _AT_LEAST[1],
    "max_pixels": _AT_LEAST[1],
    "max_steps": (lambda value: value == -1 or value >= 1, "at least 1, or -1 for `num_train_epochs`"),
    "min_p": _SHARE,
    "min_pixels": _AT_LEAST[1],
    "neftune_noise_alpha": _POSITIVE,
    "num_completions_to_print": _AT_LEAST[1],
    "num_train_epochs": _POSITIVE,
    "on_policy_share": _SHARE,
    "pad_to_multiple_of": _AT_LEAST[1],
    "per_device_eval_batch_size": _AT_LEAST[1],
    "per_device_train_batch_size": _AT_LEAST[1],
    "repetition_penalty": _POSITIVE,
    "router_aux_loss_coef": _AT_LEAST[0],
    "save_steps": _SHARE_OR_COUNT,
    "save_total_limit": _AT_LEAST[1],
    "seed": _SEED,
    "teacher_sync_steps": _AT_LEAST[1],
    "teacher_update_rate": (_UP_TO_ONE[0], f"{_UP_TO_ONE[1]}; `teacher: frozen` never changes"),
    "temp_kl": _POSITIVE,
    "temperature": _POSITIVE,
    "top_k": _AT_LEAST[0],
    "top_p": _UP_TO_ONE,
    "vllm_gpu_memory_utilization": _UP_TO_ONE,
    "vllm_group_port": _PORT,
    "vllm_max_model_length": _AT_LEAST[1],
    "vllm_server_port": _PORT,
    "vllm_server_timeout": _AT_LEAST[0],
    "vllm_tensor_parallel_size": _AT_LEAST[1],
    "warmup_steps": (lambda value: value == 0 or _SHARE_OR_COUNT[0](value), f"0, {_SHARE_OR_COUNT[1]}"),
    "weight_decay": _AT_LEAST[0],
}
# Columns of a list of fields, and those of them for names and defaults
HELP_WIDTH, HELP_INDENT = 100, 34
# Field → its names in other trainers (LLaMA-Factory, Axolotl, ms-swift, Unsloth, LLaVA) and other versions of
# transformers and TRL
_ELSEWHERE = {
    "attn_implementation": "attn_impl flash_attention flash_attn use_flash_attention_2",
    "chat_template_path": "chat_template template",
    "completion_only_loss": "train_on_inputs train_on_prompt",
    "dataset_name": "data data_files data_path dataset dataset_dir dataset_path datasets train_dataset train_file",
    "dataset_num_proc": "dataset_processes preprocessing_num_workers",
    "dtype": "torch_dtype",
    "eval_dataset_name": "eval_data eval_dataset eval_file test_datasets val_dataset validation_file",
    "eval_split_size": "split_dataset_ratio val_set_size val_size",
    "eval_steps": "evals_per_epoch",
    "eval_strategy": "evaluation_strategy",
    "gradient_accumulation_steps": "grad_accum gradient_accumulation",
    "gradient_checkpointing": "use_gradient_checkpointing",
    "hub_model_id": "push_to_hub_model_id",
    "image_root": "image_dir image_folder media_dir",
    "learning_rate": "lr",
    "load_in_4bit": "bits quant_bits quantization_bit",
    "lora_modules_to_save": "additional_target modules_to_save",
    "lora_r": "lora_rank r rank",
    "lora_target_modules": "lora_target target_modules",
    "lr_scheduler_type": "lr_scheduler scheduler",
    "max_grad_norm": "clip_grad gradient_clipping",
    "max_length": "cutoff_len max_seq_len max_seq_length model_max_length seq_length sequence_len",
    "max_pixels": "image_max_pixels",
    "min_pixels": "image_min_pixels",
    "model_name_or_path": "base_model model model_id model_id_or_path model_name",
    "num_train_epochs": "epochs num_epochs",
    "optim": "adafactor optimizer",
    "output_dir": "output output_path save_dir",
    "packing": "sample_packing",
    "part_learning_rates": "aligner_lr mm_projector_lr vision_tower_lr vit_lr",
    "per_device_eval_batch_size": "eval_batch_size per_gpu_eval_batch_size",
    "per_device_train_batch_size": "batch_size micro_batch_size per_gpu_train_batch_size train_batch_size",
    "project": "wandb_project",
    "report_to": "use_swanlab use_wandb",
    "resume_from_checkpoint": "auto_resume_from_checkpoints resume",
    "run_name": "experiment_name wandb_name wandb_run_id",
    "save_steps": "saves_per_epoch",
    "teacher_model_name_or_path": "teacher_model",
    "train_sampling_strategy": "group_by_length",
    "trainable_parts": "finetune_language_layers finetune_vision_layers freeze_aligner freeze_backbone "
    "freeze_language_model freeze_llm freeze_mm_mlp_adapter freeze_multi_modal_projector freeze_parameters "
    "freeze_vision_tower freeze_vit trainable_parameters tune_mm_mlp_adapter unfrozen_parameters",
    "use_cpu": "no_cuda",
    "use_peft": "adapter finetuning_type lora_enable train_type tuner_type use_lora",
    "warmup_steps": "warmup warmup_ratio",
}
OTHER_NAMES = {other: name for name, others in _ELSEWHERE.items() for other in others.split()}
_STAGE = "The stage is what `use_kl`, `trainable_parts` and the data say: `use_kl: true` is stage 2."
# What they have and we do not, with what to do
NOT_HERE = {
    "adapter_name_or_path": "Merge the adapters into their base model first: `puma-trl merge`.",
    "beta": "The weight of the KL term is `lambda_kl`.",
    "deepspeed_config": "The engine is in the file of `accelerate launch --config_file`.",
    "kl_weight": "The weight of the KL term is `lambda_kl`.",
    "logging_dir": "Set TENSORBOARD_LOGGING_DIR in `env`.",
    "overwrite_cache": "Data that has changed is checked again without it.",
    "overwrite_output_dir": "A run never overwrites another: choose a new `output_dir`, or set "
    "`resume_from_checkpoint: true`.",
    "plot_loss": "`curves.png` is drawn at each save without it.",
    "rlhf_type": _STAGE,
    "save_safetensors": "Weights are always saved as safetensors.",
    "stage": _STAGE,
    "system": "Write system prompts into the data, as docs/data.md says.",
    "task": _STAGE,
    "wandb_entity": "Set WANDB_ENTITY in `env`.",
}
# Fields that have no effect in a recipe: value that says nothing (`...`: none), what to do
_GIVEN_UP = "It is for scripts of your own. A stage always trains, and evaluates where there is evaluation data"
_FULL_EVAL = "It would leave the model in half precision. `bf16: true` evaluates in it too"
NOT_IN_RECIPES = {
    "assistant_only_loss": (False, "Only answers have labels anyway"),
    "batch_eval_metrics": (False, "It is for `compute_metrics`, in Python"),
    "bf16_full_eval": (False, _FULL_EVAL),
    "dataset_kwargs": (None, "Rows are prepared by `load_data`"),
    "dataset_text_field": ("text", "`columns` says where texts are"),
    "do_eval": (..., _GIVEN_UP),
    "do_predict": (..., _GIVEN_UP),
    "do_train": (..., _GIVEN_UP),
    "enable_jit_checkpoint": (False, "SIGTERM and Ctrl-C save a checkpoint anyway"),
    "eval_do_concat_batches": (True, "It is for `predict`, in Python"),
    "fp16_full_eval": (False, _FULL_EVAL),
    "include_for_metrics": ([], "It is for `compute_metrics`, in Python"),
    "length_column_name": ("length", "The check before training counts tokens into `length`"),
    "local_rank": (-1, "The launcher tells each process its own"),
    "lora_task_type": ("CAUSAL_LM", "Adapters train a model that writes answers"),
    "model_init_kwargs": (
        None,
        "The keys of a recipe for it are `dtype`, `attn_implementation`, `model_revision`, `trust_remote_code` and "
        "`load_in_4bit`",
    ),
    "truncation_mode": ("keep_start", "Rows longer than `max_length` are found before training, and none is cut"),
}
# Fields whose type is text, for paths, that take true and false besides
TEXT_OR_SWITCH = ("resume_from_checkpoint",)
# Fields for one path; `dataset_name` and the like are of several, and `find_sources` reads them
PATHS = ("chat_template_path", "image_root", "output_dir", *TEXT_OR_SWITCH)
PATHS += ("model_name_or_path", "teacher_model_name_or_path")


def check_values(values: dict[str, Any], classes: Iterable[type]) -> tuple[dict[str, Any], list[str]]:
    """
    Checks values by the types, choices and ranges of their fields.

    Numbers may be written as text, as YAML reads `1e-5`. What is not of a type that YAML has, such as an object that
    Python code hands over, is left to the class.

    Args:
        values (`dict[str, Any]`):
            Field → value.
        classes (`Iterable[type]`):
            Dataclasses with these fields.

    Returns:
        `tuple[dict[str, Any], list[str]]`: the values as their types have them, and a sentence for each that is wrong.
    """
    hints = {name: hint for each in classes for name, hint in get_type_hints(each).items()}
    choices = {field.name: field.metadata.get("choices") for each in classes for field in fields(each)}
    typed, problems = {}, []
    for name, value in values.items():
        try:
            typed[name] = check_value(name, value, hints[name], choices[name])
        except ConfigError as error:
            problems.append(str(error))
    return typed, problems


def check_value(name: str, value: Any, hint: Any, choices: list[Any] | None = None) -> Any:
    """
    Returns a value as its type has it; the arguments are those of a field.

    Raises:
        ConfigError: if it is of another type, not a choice, or out of the range of the field of this name.
    """
    kinds = [tuple(choices)] if choices else list_kinds(hint)
    value = value.value if isinstance(value, Enum) else value
    if value is not None and not isinstance(value, bool | int | float | str | list | dict):
        return value
    if value is None:
        if type(None) in kinds:
            return None
        raise ConfigError(f"`{name}` has no value. Give it {_words(kinds)}, or leave it out.")
    if name in TEXT_OR_SWITCH and isinstance(value, bool):
        return str(value).lower()
    value = _convert(name, value, kinds)
    if (
        isinstance(value, list)
        and _item_kind(hint) is str
        and not all(isinstance(item, str) and item for item in value)
    ):
        raise ConfigError(f"`{name}` is {value}, but each item must be text. Put it in quotes, or take it out.")
    if isinstance(value, str) and "\0" in value:
        raise ConfigError(f"`{name}` holds a null character, which no name or path has. Take it out.")
    if isinstance(value, str) and name in PATHS:
        if "://" in value:
            raise ConfigError(
                f"`{name}: {value}` is an address, and nothing is read or written there. Name a file or folder, or "
                "what is on the Hub as `owner/name`."
            )
        value = os.path.expanduser(value)
    if name in RANGES and not isinstance(value, str):
        is_right, words = RANGES[name]
        if not is_right(value):
            raise ConfigError(f"`{name}` is {value}, but it must be {words}.")
    return value


def _convert(name: str, value: Any, kinds: list[Any]) -> Any:
    if value is False and any(isinstance(kind, tuple) and "no" in kind for kind in kinds):
        return "no"  # as YAML reads it without quotes
    if any(_fits(value, kind) for kind in kinds):
        return value
    if isinstance(value, str):
        for kind in (each for each in kinds if each in (bool, int, float)):
            try:
                number = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
            except (KeyError, ValueError):
                continue
            if _fits(number, kind):
                return number
        if list in kinds:
            return [value]  # which is split at commas, where the field allows that
    shown = repr(value) if len(repr(value)) < 100 else f"{repr(value)[:100]}…"
    raise ConfigError(f"`{name}` is {shown}, but it must be {_words(kinds)}.")


def list_kinds(hint: Any) -> list[Any]:
    """Returns the alternatives of a type: classes, and tuples of what a literal or an enumeration allows."""
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for each in get_args(hint) for kind in list_kinds(each)]
        # text beside an enumeration is one of its values
        return [kind for kind in kinds if kind is not str or not any(isinstance(each, tuple) for each in kinds)]
    if get_origin(hint) is Literal:
        return [get_args(hint)]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return [tuple(each.value for each in hint)]
    return [get_origin(hint) or hint]


def _item_kind(hint: Any) -> Any:
    """Returns the type of the items of a list."""
    return next((get_args(each)[0] for each in (hint, *get_args(hint)) if get_origin(each) is list), None)


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, tuple):
        return any(type(value) is type(each) and value == each for each in kind)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


def _words(kinds: list[Any]) -> str:
    words = [
        f"one of {', '.join(map(str, kind))}" if isinstance(kind, tuple) else WORDS.get(kind, kind.__name__)
        for kind in kinds
        if kind is not type(None)
    ]
    return " or ".join(words)


def given_fields(settings: Any, names: Iterable[str]) -> list[str]:
    """Returns those of the named fields of a dataclass whose values differ from the defaults."""
    defaults = {field.name: field.default for field in fields(settings)}
    return [name for name in names if getattr(settings, name) != defaults[name]]


def own_fields(each: type) -> list[str]:
    """Returns the fields of a dataclass that it, or one of this package that it inherits from, defines."""
    ours = [base for base in each.__mro__ if base.__module__.startswith(__package__)]
    return [name for base in ours for name in vars(base).get("__annotations__", {})]


def list_fields(each: type, own: bool) -> str:
    """Returns name, default and use of each field that a dataclass defines itself, or of the others."""
    known = {field.name: field for field in fields(each) if field.init}
    mine = [name for name in own_fields(each) if name in known]
    paragraphs = []
    for name in mine if own else [name for name in known if name not in mine]:
        default, metadata = known[name].default, known[name].metadata
        choices = f" One of {', '.join(map(str, metadata['choices']))}." if metadata.get("choices") else ""
        first = f"  --{name}" + ("" if default in (None, MISSING) else f" {default}")
        paragraphs.append(
            textwrap.fill(
                metadata.get("help", "") + choices,
                HELP_WIDTH,
                initial_indent=first.ljust(HELP_INDENT - 1) + " ",
                subsequent_indent=" " * HELP_INDENT,
            )
        )
    return "\n".join(paragraphs)


def make_schema(classes: Iterable[type]) -> dict[str, Any]:
    """Returns a JSON schema of recipes with the fields of these dataclasses, for editors that complete keys."""
    properties: dict[str, Any] = {"env": {"type": "object", "description": "Environment variables of the run."}}
    for each in classes:
        hints, own = get_type_hints(each), own_fields(each)
        for field in fields(each):
            if field.init:
                # the others are documented where they are defined
                properties[field.name] = _describe(field, hints[field.name], field.name in own)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of puma_trl",
        "type": "object",
        "additionalProperties": False,
        "properties": dict(sorted(properties.items())),
    }


def _describe(field: Any, hint: Any, with_help: bool) -> dict[str, Any]:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    kinds = [tuple(field.metadata["choices"])] if field.metadata.get("choices") else list_kinds(hint)
    options: list[dict[str, Any]] = []
    for kind in kinds:
        if isinstance(kind, tuple):
            options.append({"enum": list(kind)})
        elif kind is type(None):
            options.append({"type": "null"})
        elif kind in names:
            options.append({"type": names[kind]})
    if float in kinds and str not in kinds:
        options.append({"type": "string", "pattern": r"^[-+]?[0-9.]+[eE][-+]?[0-9]+$"})  # as YAML reads 1e-5
    if list in kinds and str not in kinds:
        options.append({"type": "string"})
    if field.name in TEXT_OR_SWITCH:
        options.append({"type": "boolean"})
    schema = options[0] if len(options) == 1 else {"anyOf": options} if options else {}
    return {"description": field.metadata["help"]} | schema if with_help else schema
