"""Settings that would have no effect: refused by name before anything is loaded, or named where another decides."""

import os
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from accelerate.logging import get_logger
from accelerate.utils import is_peft_model, parse_flag_from_env
from peft import PeftModel
from transformers import PreTrainedModel
from trl import ModelConfig

from ..best import IS_GREATER_BETTER, find_metric
from ..config import FOLLOWING, PumaKLConfig, PumaScriptArguments
from ..errors import ConfigError
from ..fields import given_fields
from ..step.teacher import TEACHER_ADAPTER
from ..vllm_config import OF_COLOCATE, OF_SERVER


logger = get_logger(__name__)

# Each table: field → (values that say nothing, remedy).
# With pictures, what the pair collator and its checked rows leave without effect
UNUSED_WITH_PICTURES = {
    "assistant_only_loss": ((False,), "only answers have labels anyway"),
    "completion_only_loss": ((None, True), "only answers have labels"),
    "dataset_kwargs": ((None, {"skip_prepare_dataset": True}), "rows with pictures become tensors in the collator"),
    "dataset_text_field": (("text",), "`columns` names the columns"),
    "eos_token": ((None,), "an answer ends as the chat template closes it: set `chat_template_path`"),
    "eval_packing": ((None, False), "rows with pictures are not packed"),
    "length_column_name": (("length",), "the check before training counts tokens into `length`"),
    "packing": ((False,), "rows with pictures are not packed; set `padding_free: true`"),
    "packing_strategy": (("bfd",), "rows with pictures are not packed"),
    "pad_to_multiple_of": ((None,), "batches are as long as their longest row"),
    "parallelism_config": ((None,), "sequences with pictures are not divided among processes"),
    "shuffle_dataset": ((False,), "`train_sampling_strategy: random` draws rows in another order in every epoch"),
    "truncation_mode": (("keep_start",), "rows longer than `max_length` are found before training, and none is cut"),
}
# With pairs besides
UNUSED_WITH_PAIRS = {
    "eval_do_concat_batches": ((True,), "there are no predictions"),
    "router_aux_loss_coef": ((None, 0.0), "it belongs to TRL's own loss, which `use_kl: true` replaces"),
}
# With text models
UNUSED_WITH_TEXT = {
    name: (plain, "it is for pictures, which a text model does not read")
    for name, plain in {
        "allow_text_only": (False,),
        "decode_images": (False,),
        "image_root": (None,),
        "max_pixels": (None,),
        "min_pixels": (None,),
    }.items()
} | {"stop_on_collapse": ((False,), "a text model has neither a text-rich side nor sampled answers to watch")}
# With both
UNUSED = {
    "label_names": ((None, ["labels"]), "labels are called `labels`"),
}
# With a text model whose rows TRL reads, and with one whose rows we read
UNUSED_BY_TRL = {
    "bad_rows": (("error",), "it is for rows that are checked before training"),
    "columns": ((None,), "it is for rows that are checked before training"),
    "special_tokens": (("error",), "it is for rows that are checked before training"),
}
UNUSED_BY_US = {
    "length_column_name": (("length",), "the rows that are made of it have no such column"),
    "truncation_mode": (("keep_start",), "rows longer than `max_length` are found before training, and none is cut"),
}
UNUSED_WITHOUT_METRICS = {
    name: ((plain,), "it is for `compute_metrics`, which is not given")
    for name, plain in (("batch_eval_metrics", False), ("include_for_metrics", []))
}
# Beginnings of names of optimizers that look at a weight as a whole: its rows and columns, or the size of its steps
OF_WHOLE_WEIGHTS = ("adafactor", "apollo", "galore", "stable_adamw")


def refuse_unused(args: PumaKLConfig, takes_images: bool, functions: Mapping[str, Any] = MappingProxyType({})) -> None:
    """
    Refuses what would have no effect, before data and model are read.

    Args:
        args ([`PumaKLConfig`]):
            The settings.
        takes_images (`bool`):
            Whether the model takes pictures.
        functions (`Mapping[str, Any]`, *optional*):
            Arguments of the trainer besides, by name.

    Raises:
        ConfigError: if a setting or function has no effect on such a model, or with pairs.
    """
    if args.use_kl and not takes_images:
        raise ConfigError(
            "`use_kl: true` needs the processor of a vision-language model as `processing_class`, but there is a "
            "tokenizer. For stage 1 on a text model set `use_kl: false`."
        )
    _refuse(args, UNUSED, "")
    _refuse_batches(args, takes_images)
    _refuse_optimizer(args)
    if takes_images:
        _refuse(args, UNUSED_WITH_PICTURES, " on a vision-language model")
    else:
        _refuse(args, UNUSED_WITH_TEXT, " on a text model")
        _refuse_keys(args)
    if args.use_kl:
        _refuse(args, UNUSED_WITH_PAIRS, " with pairs")
    refused = {}
    if takes_images:
        reason = "rows are rendered by the chat template: give them as one of the forms of docs/data.md"
        refused["formatting_func"] = reason
    if args.use_kl:
        reason = "the pair step makes its own loss and metrics, without logits. Set `use_kl: false`, or leave it out"
        refused |= dict.fromkeys(("compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"), reason)
    for name, reason in refused.items():
        if functions.get(name) is not None:
            raise ConfigError(f"`{name}` cannot be used here: {reason}.")
    if functions.get("compute_metrics") is None:
        _refuse(args, UNUSED_WITHOUT_METRICS, "")
        _refuse_metric(args)


def _refuse(args: PumaKLConfig, table: Mapping[str, tuple[tuple, str]], where: str) -> None:
    for name, (plain, reason) in table.items():
        if (value := getattr(args, name)) not in plain:
            raise ConfigError(f"`{name}: {value}` has no effect{where}: {reason}. Leave it out.")


def _refuse_metric(args: PumaKLConfig) -> None:
    """A name that no evaluation gives would end the run at the first one; `SET_loss` is that of one set of several."""
    wanted = args.metric_for_best_model
    if wanted is not None and find_metric(wanted) is None:
        raise ConfigError(
            f"`metric_for_best_model: {wanted}` is not measured. Name one of {', '.join(IS_GREATER_BETTER)}, or give "
            "`compute_metrics` in Python."
        )


def _refuse_keys(args: PumaKLConfig) -> None:
    unknown = sorted((args.dataset_kwargs or {}).keys() - {"skip_prepare_dataset"})
    if unknown:
        raise ConfigError(
            f"`dataset_kwargs` has the keys {', '.join(unknown)}, but TRL knows `skip_prepare_dataset` alone. Leave "
            "them out."
        )


def _refuse_batches(args: PumaKLConfig, takes_images: bool) -> None:
    if args.train_sampling_strategy == "batch_rebalance":
        # as of transformers 5.23 and accelerate 1.15, which hides the sampler from `set_epoch`
        raise ConfigError(
            "`train_sampling_strategy: batch_rebalance` makes an order in which `seed` has no part, on several "
            "processes the same in every epoch, and fills the last batches with rows that then count twice. Set "
            "`train_sampling_strategy: group_by_length`."
        )
    config = args.accelerator_config
    if config.split_batches:
        raise ConfigError(
            "`accelerator_config: {split_batches: true}` divides `per_device_train_batch_size` among the processes, "
            "so that a step has fewer rows than Trainer counts. Leave it out, and set the size for one process."
        )
    if not config.even_batches:
        raise ConfigError(
            "`accelerator_config: {even_batches: false}` gives processes different numbers of batches, so that one "
            "waits for another for ever. Leave it out: rows that are repeated to fill a batch do not count."
        )
    if config.dispatch_batches and takes_images:
        raise ConfigError(
            "`accelerator_config: {dispatch_batches: true}` sends batches from the main process, which those with "
            "names of rows do not allow. Leave it out: every process reads its own rows."
        )


def _refuse_optimizer(args: PumaKLConfig) -> None:
    engine = "DeepSpeed" if args.deepspeed_plugin is not None else "FSDP"
    is_engine = args.deepspeed_plugin is not None or parse_flag_from_env("ACCELERATE_USE_FSDP")
    if is_engine and args.optim.value.startswith(OF_WHOLE_WEIGHTS):
        raise ConfigError(
            f"`optim: {args.optim.value}` looks at each weight as a whole, but {engine} gives it slices, with which "
            "it fails or takes other steps on each number of processes. Set `optim: adamw_torch`, or launch with "
            "accelerate_configs/ddp.yaml."
        )


def refuse_for_rows(args: PumaKLConfig, left: list[str], ours: list[str]) -> None:
    """
    Refuses what has no effect on the rows of a text model.

    Args:
        args ([`PumaKLConfig`]):
            The settings.
        left (`list[str]`), ours (`list[str]`):
            Names of the datasets that TRL reads, and of those that are checked before training.

    Raises:
        ConfigError: if there is such a setting.
    """
    if left:
        _refuse(args, UNUSED_BY_TRL, f" on the {left[0]} dataset, which TRL reads")
    if ours:
        _refuse(args, UNUSED_BY_US, "")


def refuse_with_model(args: PumaKLConfig, quantization_config: Any, model: PreTrainedModel | PeftModel) -> None:
    """
    Raises:
        ConfigError: if what is for loading a model is given beside one that is loaded, or that has adapters by other
            names than the ones that train and are saved.
    """
    for name, value in (("model_init_kwargs", args.model_init_kwargs), ("quantization_config", quantization_config)):
        if value is not None:
            raise ConfigError(
                f"`{name}` has no effect on a model that is loaded already. Load the model with it, or give its id or "
                "folder as `model`."
            )
    if is_peft_model(model):
        others = sorted(model.peft_config.keys() - {"default", TEACHER_ADAPTER})
        if others or model.active_adapters != ["default"]:
            raise ConfigError(
                f"`model` has the adapters {', '.join(map(repr, others or model.active_adapters))}, but adapters "
                "train and are saved by the name `default` alone. Load or make them without `adapter_name`, and no "
                "others beside them."
            )


def check_collator(args: PumaKLConfig, collator: Callable | None, takes_images: bool) -> None:
    """
    Makes sure that a collator makes batches of the kind that the settings say.

    Raises:
        ConfigError: if it makes others.
    """
    if collator is None or not takes_images:
        return
    if args.padding_free != getattr(collator, "padding_free", False):
        raise ConfigError(
            f"`padding_free` is {args.padding_free}, but `data_collator` makes other batches. Give it the same "
            "`padding_free`, or leave it out."
        )
    if args.on_policy_share and not getattr(collator, "on_policy", False):
        raise ConfigError(
            f"`on_policy_share` is {args.on_policy_share}, but `data_collator` keeps no prompts to write answers to. "
            "Give it `on_policy=True`, or leave it out."
        )
    if args.use_vllm and not getattr(collator, "keep_images", False):
        raise ConfigError(
            "`use_vllm` is true, but `data_collator` keeps no pictures for vLLM. Give it `keep_images=True`, or leave "
            "it out."
        )


Settings = PumaKLConfig | PumaScriptArguments | ModelConfig


def find_idle(settings: Settings) -> list[str]:
    """
    Returns each setting that differs from its default though another setting leaves it without effect, with that
    other one.
    """
    return [
        f"`{name}: {getattr(value := getattr(settings, name), 'value', value)}` (`{why}`)"
        for names, why in next(find for kind, find in _IDLE.items() if isinstance(settings, kind))(settings)
        for name in given_fields(settings, names)
    ]


def _idle(args: PumaKLConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yields fields without effect and the setting that is why."""
    teacher = ("teacher_update_rate", "teacher_sync_steps")
    if not args.use_kl:
        yield ("alpha_kl", "lambda_kl", "temp_kl", "standardize_logits", "teacher", *teacher), "use_kl: false"
    elif args.teacher != "ema":
        yield teacher, f"teacher: {args.teacher}"
    if args.on_policy_share == 1 and args.eval_strategy == "no":
        yield ("lambda_kl",), "on_policy_share: 1"
    if args.use_vllm:
        yield OF_SERVER if args.vllm_mode == "colocate" else OF_COLOCATE, f"vllm_mode: {args.vllm_mode}"
    if args.vllm_server_base_url:
        yield ("vllm_server_host", "vllm_server_port"), f"vllm_server_base_url: {args.vllm_server_base_url}"
    if not args.log_completions:
        yield ("num_completions_to_print",), "log_completions: false"
    if os.path.isdir(args.teacher_model_name_or_path or ""):
        yield ("teacher_model_revision",), f"teacher_model_name_or_path: {args.teacher_model_name_or_path}"
    if not args.packing:
        yield ("packing_strategy", "eval_packing"), "packing: false"
    if args.max_steps > 0:
        yield ("num_train_epochs",), f"max_steps: {args.max_steps}"
    for strategy, name in (("save_strategy", "save_steps"), ("logging_strategy", "logging_steps")):
        if getattr(args, strategy) != "steps":
            yield (name,), f"{strategy}: {getattr(args, strategy).value}"
    if args.save_strategy == "no":
        yield ("save_total_limit", "save_only_model", "load_best_model_at_end"), "save_strategy: no"
    if args.eval_strategy == "no":
        yield ("metric_for_best_model",), "eval_strategy: no"
    elif args.save_strategy == "no" and args.lr_scheduler_type not in FOLLOWING:
        yield ("metric_for_best_model",), "save_strategy: no, without EarlyStoppingCallback"
    if not args.push_to_hub:  # the others are for a push by hand too
        yield ("hub_strategy", "hub_always_push"), "push_to_hub: false"
    if args.eval_strategy != "steps":
        yield ("eval_steps",), f"eval_strategy: {args.eval_strategy.value}"
    if not args.gradient_checkpointing:
        yield ("gradient_checkpointing_kwargs",), "gradient_checkpointing: false"
    if not args.dataloader_num_workers:
        yield ("dataloader_persistent_workers", "dataloader_multiprocessing_context"), "dataloader_num_workers: 0"
    if not args.optim.value.startswith(("galore", "apollo")):
        yield ("optim_target_modules",), f"optim: {args.optim.value}"
    if not args.use_liger_kernel:
        yield ("liger_kernel_config",), "use_liger_kernel: false"
    if "trackio" not in args.report_to:
        names = ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")
        yield names, f"report_to: {', '.join(args.report_to) or 'none'}"


def _idle_of_script(args: PumaScriptArguments) -> Iterator[tuple[tuple[str, ...], str]]:
    evaluated = [*(args.eval_dataset_name or []), *(args.gap_dataset_name or [])]
    if all(map(os.path.exists, [*args.dataset_name, *evaluated])):
        yield ("dataset_config",), "dataset_name: files"
    if all(map(os.path.exists, args.dataset_name)):
        yield ("dataset_train_split",), "dataset_name: files"
    if all(map(os.path.exists, evaluated)):
        why = "eval_dataset_name: files" if evaluated else "no eval_dataset_name or gap_dataset_name"
        yield ("dataset_test_split",), why


def _idle_of_model(args: ModelConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    if not args.use_peft:
        names = tuple(name for name in vars(args) if name.startswith(("lora_", "use_dora", "use_rslora")))
        yield names, "use_peft: false"
    if os.path.isdir(args.model_name_or_path or ""):
        yield ("model_revision",), f"model_name_or_path: {args.model_name_or_path}"
    if not args.load_in_4bit:
        names = ("bnb_4bit_quant_type", "bnb_4bit_quant_storage", "use_bnb_nested_quant")
        yield names, "load_in_4bit: false"


_IDLE = {PumaKLConfig: _idle, PumaScriptArguments: _idle_of_script, ModelConfig: _idle_of_model}


def name_idle(settings: Settings) -> None:
    """Names the settings that [`find_idle`] returns, in one line of the log."""
    if found := find_idle(settings):
        logger.warning(f"Without effect: {', '.join(found)}.")
