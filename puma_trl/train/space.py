"""How much room checkpoints take, and whether the disk has it: about, and before training."""

import math
import shutil
from pathlib import Path

import torch
from accelerate.utils import is_peft_model
from transformers import Trainer
from transformers.trainer_utils import SaveStrategy

from ..config import PumaKLConfig
from ..errors import ConfigError
from ..step.forward import SeparateTeacher
from .resume import list_checkpoints


# How many numbers an optimizer keeps for each one that trains, by a part of its name; others keep two
NUM_STATES = {"sgd": 0, "adafactor": 0, "lomo": 0, "lion": 1, "rmsprop": 1, "adagrad": 1}
# The processor, the states of schedulers and of random number generators, JSON
REST = 20 * 2**20


def estimate_space(trainer: Trainer) -> tuple[int, int]:
    """
    Returns about how many bytes a checkpoint of a run takes, and how many a model that it saves.

    Counted are the weights that are saved (of a model with adapters only these), once more where an engine saves its
    own copy, the fp32 copies of DeepSpeed, the optimizer's states of what trains, and a moving average of all weights.
    """
    args, is_peft = trainer.args, is_peft_model(trainer.model)
    is_engine = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    in_half = any(each.requires_grad and each.dtype != torch.float32 for each in trainer.model.parameters())
    # FSDP trains in fp32 what it computes with in half precision; DeepSpeed keeps copies in fp32 beside it
    is_upcast = trainer.is_fsdp_enabled and (args.bf16 or args.fp16)
    weights = numbers = 0
    for parameter in trainer.model.parameters():
        count = getattr(parameter, "ds_numel", None) or parameter.numel()  # of all ranks, under ZeRO-3
        numbers += count * parameter.requires_grad
        if parameter.requires_grad or not is_peft:
            weights += count * (4 if is_upcast and parameter.requires_grad else parameter.element_size())
    if args.save_only_model:
        return weights + REST, weights + REST
    name = str(getattr(args.optim, "value", args.optim))
    width = 1 if "8bit" in name else 2 if in_half and not is_engine else 4
    states = width * numbers * next((count for part, count in NUM_STATES.items() if part in name), 2)
    if trainer.is_deepspeed_enabled and in_half:
        states += 4 * numbers
    copies = 2 if is_engine else 1
    averages = weights if args.teacher == "ema" and isinstance(trainer.teacher, SeparateTeacher) else 0
    return copies * weights + states + averages + REST, weights + REST


def free_space(folder: str | Path) -> int:
    """Returns the bytes that are free where a folder is or will be."""
    folder = Path(folder).absolute()
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def describe_space(trainer: Trainer) -> str:
    """Returns what a checkpoint of a run takes, or its model alone, and what the disk has left, in words."""
    checkpoint, model = estimate_space(trainer)
    saves = trainer.args.save_strategy != SaveStrategy.NO
    what = f"about {word_bytes(checkpoint)} per checkpoint" if saves else f"about {word_bytes(model)} for the model"
    return f"{what}, {word_bytes(free_space(trainer.args.output_dir))} free"


def count_kept(args: PumaKLConfig, num_steps: int) -> int:
    """
    Returns how many checkpoints there will be at once, at most: a new one is written before the oldest is deleted.

    Args:
        args ([`PumaKLConfig`]):
            The settings of saving and the number of epochs are used.
        num_steps (`int`):
            Number of optimizer steps of the run.
    """
    if args.save_strategy == SaveStrategy.NO:
        return 0
    in_steps = args.save_strategy == SaveStrategy.STEPS
    interval = args.save_steps if in_steps else num_steps / args.num_train_epochs
    if in_steps and interval < 1:  # a share of the steps
        interval = math.ceil(interval * num_steps)
    planned = 1 if args.save_strategy == SaveStrategy.BEST else math.ceil(num_steps / max(interval, 1))
    if args.save_total_limit is None:
        return planned
    return min(planned, max(args.save_total_limit, 1 + args.load_best_model_at_end) + 1)


def require_space(trainer: Trainer, num_steps: int) -> str | None:
    """
    Makes sure that the disk of `output_dir` has room for the checkpoints and the model of a run.

    Returns:
        `str`, *optional*: a warning, where the room is enough for one checkpoint, but not for all of a run that keeps
        them all.

    Raises:
        ConfigError: if there is too little for `save_total_limit + 1` checkpoints, or for one where there is no limit.
    """
    args = trainer.args
    checkpoint, model = estimate_space(trainer)
    free, here = free_space(args.output_dir), len(list_checkpoints(args.output_dir))
    kept = count_kept(args, num_steps)
    one, wanted = min(kept, 1), max(kept - here, min(kept, 1))
    needed = one if args.save_total_limit is None else wanted
    if free < (total := needed * checkpoint + model):
        raise ConfigError(
            f"`output_dir: {args.output_dir}` has {word_bytes(free)} left, but the run needs about "
            f"{word_bytes(total)}: {needed} × {word_bytes(checkpoint)} for checkpoints and {word_bytes(model)} for "
            "the model. Free some, choose another folder, set a smaller `save_total_limit`, or `save_only_model: "
            "true`, with which a run cannot be resumed."
        )
    if free < wanted * checkpoint + model:
        return (
            f"The run will write {wanted} checkpoints of about {word_bytes(checkpoint)}, and the disk of "
            f"{args.output_dir} has {word_bytes(free)} left. Set `save_total_limit` to keep the last ones only."
        )
    return None


def word_bytes(count: float) -> str:
    """Returns a number of bytes in words, such as 3.2 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
