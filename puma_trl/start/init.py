"""
A recipe for a model, data and GPUs: what does not fit is told, and what fits is chosen.

It reads the model's configuration and the data, and plans the memory; nothing is trained, and no weights are loaded.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedConfig
from trl import ModelConfig

from ..config import PumaKLConfig
from ..data.files import find_chunks, find_sources
from ..data.forms import find_forms
from ..data.readers import read_chunk
from ..errors import ConfigError, ModelError
from ..models.attention import VARLEN, check_padding_free
from ..models.families import get_family, is_multimodal
from ..models.families.qwen import QWEN_VL
from ..models.load import load_config, load_processor
from .memory import FULL, count, count_teacher, empty_model, make_setting, patches_per_token, plan_setting
from .shipped import zero_stage
from .train import choose_engine
from .write import ADAPTERS, PARTS, TITLES, write_recipe


MAX_LENGTH = 2048
# Rows of a micro-batch and whether layers keep their input only, in the order of preference
BATCHES = ((4, False), (4, True), (2, True), (1, True))
# Rows of an optimizer step at most (the paper's) and at least; steps of an epoch that are aimed at in between
LARGEST_STEP, SMALLEST_STEP, STEPS = 128, 8, 64
FEW_ROWS = 20_000  # below which there are three epochs and not one
WAYS = {"none": "full", "lora": "LoRA", "qlora": "QLoRA"}


@dataclass
class Choice:
    """
    How a model trains.

    Args:
        adapters (`str`):
            One of `ADAPTERS`.
        engine (`str`):
            Name of the accelerate configuration.
        dtype (`str`):
            Type that the weights are loaded in.
        rows (`int`):
            Rows of a micro-batch.
        checkpointing (`bool`):
            Whether layers keep their input only.
        size (`float`):
            GB of each GPU that the plan says it takes.
    """

    adapters: str
    engine: str
    dtype: str
    rows: int
    checkpointing: bool
    size: float


def make_recipe(args: argparse.Namespace) -> tuple[str, str]:
    """
    Makes a recipe.

    Returns:
        `tuple[str, str]`: the recipe, and a sentence about what was chosen.

    Raises:
        ConfigError: if the stage does not go with the model or the data, or nothing fits the memory.
    """
    gpus = torch.cuda.device_count() if args.gpus is None else args.gpus
    memory = _memory(gpus) if args.memory is None else args.memory
    model_args = ModelConfig(model_name_or_path=args.model)
    config, processor = read_config(args.model), load_processor(model_args, _make_run())
    rows, has_pairs = read_data(args.data)
    stage = args.stage or (2 if has_pairs and is_multimodal(config) else 3 if is_multimodal(config) else 1)
    _check_stage(stage, args, config, has_pairs)
    teacher = read_config(args.teacher, "--teacher") if args.teacher else None
    run = _make_run(
        use_kl=stage == 2,
        **_teacher_keys(args),
        trainable_parts=PARTS[stage] if get_family(config).parts else "all",
        max_length=min(MAX_LENGTH, config.get_text_config().max_position_embeddings),
    )
    ways = [args.adapters] if args.adapters else ADAPTERS
    choice = choose(config, args.model, run, gpus, memory, ways, teacher)
    step = max(SMALLEST_STEP, min(LARGEST_STEP, rows // STEPS))
    processes = max(gpus, 1)
    accumulation = max(1, round(step / (choice.rows * processes)))
    hardware = f"{gpus} GPU{'s' if gpus > 1 else ''} of {memory:g} GB" if gpus else "CPU"
    total = processes * choice.rows * accumulation
    notes = [
        f"Stage {stage}, {TITLES[stage]}.",
        "Written by `puma-trl init`. The learning rate and the schedule are where to start from, not tuned.",
        f"Hardware: {hardware} with accelerate_configs/{choice.engine}.yaml. Global batch size: {processes} × "
        f"{choice.rows} × {accumulation} = {total}.",
        f"Memory plan: {choice.size:.1f} GB of {memory:g} GB, if every row has {run.max_length} tokens.",
    ]
    if choice.adapters != "none":
        notes.append(f"Afterwards: puma-trl merge {_output(args)} {_output(args)}-merged")
    sections = _sections(args, run, choice, accumulation, epochs=3 if rows < FEW_ROWS else 1)
    sections["Model"] |= _padding_keys([config, *([teacher] if teacher else [])])
    sections["Data"] |= _bound_pixels(config, processor, run.max_length // 2)
    words = f"stage {stage}, {'full fine-tuning' if choice.adapters == 'none' else choice.adapters}, {hardware}"
    return write_recipe(
        notes, sections
    ), f"{words}, {choice.size:.1f} GB of {memory:g} GB planned, {total} rows a step"


def _make_run(**changes: Any) -> PumaKLConfig:
    """Returns settings to plan with, on whatever machine this is."""
    return PumaKLConfig("outputs", use_cpu=True, bf16=False, **changes)


def _memory(gpus: int) -> float:
    if gpus and torch.cuda.is_available():
        return round(torch.cuda.get_device_properties(0).total_memory / 1e9)
    if gpus:
        raise ConfigError(f"`--gpus {gpus}`: no GPU is seen here. Give the GB of each with `--memory`.")
    return round(0.75 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def read_config(name: str, option: str = "--model") -> PreTrainedConfig:
    """
    Reads the configuration of a model, which an option of this command names.

    Raises:
        ModelError: if it cannot be read, in words of this command and not of a recipe.
    """
    try:
        return load_config(ModelConfig(model_name_or_path=name), _make_run())
    except ModelError as error:
        message = str(error).split(" Recipes start from")[0]
        message = message.replace(f"`model_name_or_path: {name}`", f"`{option} {name}`")
        raise ModelError(message) from error


def check_data(names: list[str]) -> None:
    """
    Makes sure that there is data of a form that training reads.

    Raises:
        DataError: if there is not.
    """
    find_forms(find_sources(names, None, None, "train"))


def read_data(names: list[str]) -> tuple[int, bool]:
    """
    Returns the number of rows of data, and whether any source holds pairs.

    Raises:
        DataError: if it cannot be read.
    """
    sources = find_forms(find_sources(names, None, None, "train"))
    rows = sum(1 for chunk in find_chunks(sources) for _ in read_chunk(sources[chunk.source], chunk))
    return rows, any({path[0] for path in source.form.second} & {*source.form.seen} for source in sources)


def _check_stage(stage: int, args: argparse.Namespace, config: PreTrainedConfig, has_pairs: bool) -> None:
    if stage > 1 and not is_multimodal(config):
        raise ConfigError(
            f"`--stage {stage}` needs a model that reads pictures, and {args.model} is a text model. Give it a vision "
            "tower with `puma-trl assemble`, or choose `--stage 1`."
        )
    if stage == 2 and not has_pairs:
        raise ConfigError(
            f"`--stage 2` trains on pairs, but {', '.join(args.data)} has one side only. Make pairs with `puma-trl "
            "pairs build`, or choose `--stage 1` or `--stage 3`."
        )
    if args.teacher and stage != 2:
        raise ConfigError(
            f"`--teacher {args.teacher}` teaches in stage 2, and this recipe is of stage {stage}. Leave it out, or "
            "give pairs and choose `--stage 2`."
        )


def choose(
    config: PreTrainedConfig,
    model: str,
    run: PumaKLConfig,
    gpus: int,
    memory: float,
    adapters: Sequence[str],
    teacher: PreTrainedConfig | None = None,
) -> Choice:
    """
    Returns the first way to train that fits.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of the model.
        model (`str`):
            Its name.
        run ([`PumaKLConfig`]):
            What trains, and the length of rows.
        gpus (`int`), memory (`float`):
            The machine: GPUs, or 0 for a CPU, and GB of each.
        adapters (`Sequence[str]`):
            The ways to try, in this order.
        teacher ([`~transformers.PreTrainedConfig`], *optional*):
            Configuration of another model that teaches, which is in 4 bits where the model is.

    Raises:
        ConfigError: if none fits.
    """
    smallest = None
    for kind in adapters:
        if kind == "qlora" and not gpus:
            continue  # what unpacks nf4 on a CPU takes longer than training
        values = {"trainable_parts": run.trainable_parts, "use_cpu": not gpus, "use_peft": kind != "none"}
        engine, _ = choose_engine(values, gpus)
        zero = zero_stage(engine)
        # where no engine keeps fp32 copies, the weights themselves must be fp32
        dtype = "float32" if not gpus or (kind == "none" and not zero) else "bfloat16"
        counts = count(empty_model(config), ModelConfig(model, **_adapter_keys(kind)), run.trainable_parts)
        for name, value in _teacher_precision(teacher is not None, kind, engine).items():
            setattr(run, name, value)
        setting = make_setting(
            config,
            run,
            zero=zero,
            processes=max(gpus, 1),
            width=2 if gpus else 4,
            stored=4 if dtype == "float32" else 2,
            teacher=count_teacher(run, counts, kind != "none", teacher),
        )
        setting.optimizer = 2 if kind == "qlora" else 8
        for rows, checkpointing in BATCHES:
            setting = replace(setting, rows=rows, checkpointing=checkpointing)
            size = plan_setting(config, counts, setting, kind != "none").total / 1e9
            if size <= FULL * memory:
                return Choice(kind, engine, dtype, rows, checkpointing, size)
            smallest = min(size, smallest or size)
    if smallest is None:
        raise ConfigError("`--adapters qlora` needs a GPU. Leave it out, or choose `lora`.")
    names = [WAYS[kind] for kind in adapters if gpus or kind != "qlora"]
    ways = f", whether {', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else f" with {names[0]} training"
    others = "" if len(adapters) > 1 else " or leave `--adapters` out,"
    raise ConfigError(
        f"{model} needs at least {smallest:.1f} GB{ways}; {'each GPU' if gpus else 'this machine'} has {memory:g} GB, "
        f"of which {FULL:.0%} may be filled. Choose a smaller model,{others} or more GPUs."
    )


def _adapter_keys(kind: str) -> dict[str, Any]:
    if kind == "none":
        return {}
    keys = {"use_peft": True, "lora_r": 64, "lora_alpha": 128, "lora_dropout": 0.05}
    return keys | ({"load_in_4bit": True, "use_bnb_nested_quant": True} if kind == "qlora" else {})


def _teacher_keys(args: argparse.Namespace) -> dict[str, Any]:
    return {"teacher": "model", "teacher_model_name_or_path": args.teacher} if args.teacher else {"teacher": "live"}


def _teacher_precision(is_other: bool, kind: str, engine: str) -> dict[str, Any]:
    """Of another model, which does not train: half precision, whatever that of what trains, or 4 bits as that."""
    if not is_other or engine == "cpu":
        return {}
    half = {"teacher_model_init_kwargs": {"dtype": "bfloat16"}}
    return half | ({"teacher_load_in_4bit": True} if kind == "qlora" else {})


def _loss_keys(args: argparse.Namespace, choice: Choice) -> dict[str, Any]:
    precision = _teacher_precision(bool(args.teacher), choice.adapters, choice.engine)
    return {"alpha_kl": 0.5, "lambda_kl": 0.1, "temp_kl": 1.0} | _teacher_keys(args) | precision


def _padding_keys(configs: list[PreTrainedConfig]) -> dict[str, Any]:
    """Rows one behind the other, where all models can read them so."""
    try:
        for config in configs:
            check_padding_free(config, VARLEN)
    except ModelError:
        return {}
    return {"attn_implementation": VARLEN, "padding_free": True}


def _bound_pixels(config: PreTrainedConfig, processor: Any, tokens: int) -> dict[str, int]:
    """Qwen-VL's pictures are as large as they come, unless they are bounded; those of others have their size."""
    if config.model_type not in QWEN_VL.model_types:
        return {}
    pixels = tokens * patches_per_token(config) * config.vision_config.patch_size**2
    return {"max_pixels": pixels} if processor.image_processor.size["longest_edge"] > pixels else {}


def _output(args: argparse.Namespace) -> str:
    return f"outputs/{args.output.stem}"


def _sections(
    args: argparse.Namespace, run: PumaKLConfig, choice: Choice, accumulation: int, epochs: int
) -> dict[str, dict[str, Any]]:
    on_cpu = choice.engine == "cpu"
    return {
        "Model": {
            "dtype": choice.dtype,
            "model_name_or_path": args.model,
            "trainable_parts": ", ".join(run.trainable_parts),
            "use_kl": run.use_kl,
        },
        "Adapters": _adapter_keys(choice.adapters),
        "Loss": _loss_keys(args, choice) if run.use_kl else {},
        "Data": {
            "answer_mismatch": "error",
            "bad_rows": "error",
            "dataset_name": args.data[0] if len(args.data) == 1 else args.data,
            "max_length": run.max_length,
        },
        "Trainer": {
            "bf16": not on_cpu,
            "gradient_accumulation_steps": accumulation,
            "gradient_checkpointing": choice.checkpointing,
            "learning_rate": 3e-5 if choice.adapters == "none" else 1e-4,
            "logging_steps": 1,
            "lr_scheduler_type": "cosine",
            "num_train_epochs": epochs,
            "output_dir": _output(args),
            "per_device_train_batch_size": choice.rows,
            "report_to": "none",
            "save_strategy": "epoch",
            "save_total_limit": 1,
            "seed": 3407,
            "train_sampling_strategy": "group_by_length",
            "warmup_steps": 0.03,
            "weight_decay": 0.1 if choice.adapters == "none" else 0.0,
            **({"use_cpu": True} if on_cpu else {"tf32": True}),
            **({"optim": "paged_adamw_8bit"} if choice.adapters == "qlora" else {}),
        },
    }
