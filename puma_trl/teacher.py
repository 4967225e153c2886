"""Who reads the text-rich side: the model itself, its weights at the start of the stage, or their moving average."""

import copy
from contextlib import contextmanager, nullcontext

import torch
from accelerate.utils import is_peft_model
from peft import PeftModel
from transformers import PreTrainedModel, TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import SFTTrainer
from trl.models import prepare_deepspeed, prepare_fsdp

from .forward import SelfTeacher, SeparateTeacher


TEACHER_ADAPTER = "teacher"


class AdapterEMACallback(TrainerCallback):
    """
    Moves the teacher's adapter towards the student's: `teacher = (1 - rate) * teacher + rate * student`.

    The average lives in the adapter itself, so checkpoints hold it and a resumed run continues it, but not under
    DeepSpeed and FSDP, whose checkpoints leave frozen parameters out; the trainer refuses to resume there.
    """

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step % args.teacher_sync_steps != 0:
            return
        # looked up at each step: FSDP puts other parameters in the place of those that it wraps
        pairs = pair_adapters(model)
        with torch.no_grad(), _gathered([parameter for pair in pairs for parameter in pair]):
            for teacher, student in pairs:
                teacher.lerp_(student.to(teacher.dtype), args.teacher_update_rate)


def pair_adapters(model: PeftModel) -> list[tuple[torch.nn.Parameter, torch.nn.Parameter]]:
    """Returns the pairs of (teacher, student) parameters of the two adapters."""
    parameters = dict(model.named_parameters())
    return [
        (teacher, parameters[name.replace(f".{TEACHER_ADAPTER}.", ".default.")])
        for name, teacher in parameters.items()
        if f".{TEACHER_ADAPTER}." in name
    ]


def _gathered(parameters: list[torch.nn.Parameter]):
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)


def make_teacher(trainer: SFTTrainer) -> SelfTeacher | SeparateTeacher:
    """
    Makes the teacher that `trainer.args.teacher` asks for, wrapped by the engine where it is a second model.

    Args:
        trainer ([`PumaKLTrainer`]):
            The trainer, its model not yet wrapped.

    Raises:
        ValueError: if a moving average of all weights is asked for where they are sharded.
    """
    args = trainer.args
    if args.teacher == "live":
        return SelfTeacher()
    if is_peft_model(trainer.model):
        if args.teacher == "frozen":
            return SelfTeacher(weights=trainer.model.disable_adapter)
        return _make_adapter_teacher(trainer)
    if args.teacher == "ema" and (is_deepspeed_zero3_enabled() or trainer.is_fsdp_enabled):
        raise ValueError(
            "`teacher: ema` without adapters keeps a second full model, whose shards checkpoints under ZeRO-3 and FSDP do "
            "not hold, so a resumed run would not continue it. Use `teacher: live` or `frozen`, adapters (`use_peft: "
            "true`), or DDP or ZeRO-2."
        )
    model = _copy_model(trainer.model)
    teacher = SeparateTeacher(model)
    if trainer.is_deepspeed_enabled:
        teacher.wrapped = prepare_deepspeed(model, trainer.accelerator)
    elif trainer.is_fsdp_enabled:
        teacher.wrapped = prepare_fsdp(model, trainer.accelerator)
    else:
        teacher.wrapped = trainer.accelerator.prepare_model(model, evaluation_mode=True)
    if args.teacher == "ema":
        # imported here because TRL warns that it is experimental, which concerns this teacher only
        from trl.experimental.sdft.teacher_sync import SyncTeacherModelCallback

        trainer.add_callback(SyncTeacherModelCallback(model, trainer.accelerator))
    return teacher


def _copy_model(model: PreTrainedModel) -> PreTrainedModel:
    if is_deepspeed_zero3_enabled():
        # sharded parameters cannot be copied; the source still holds the weights at the start of the stage
        return type(model).from_pretrained(model.config._name_or_path, dtype=model.dtype)
    copied = copy.deepcopy(model)
    del copied.forward  # TRL's patch, which would still run the original
    return copied


def _make_adapter_teacher(trainer: SFTTrainer) -> SelfTeacher:
    model = trainer.model
    if TEACHER_ADAPTER not in model.peft_config:
        model.add_adapter(TEACHER_ADAPTER, model.peft_config["default"])
    for teacher, student in pair_adapters(model):
        teacher.data = student.data.clone()  # its dtype too
        teacher.requires_grad_(False)
    trainer.add_callback(AdapterEMACallback())

    @contextmanager
    def teacher_adapter():
        model.set_adapter(TEACHER_ADAPTER, inference_mode=True)
        try:
            yield
        finally:
            model.set_adapter("default")

    return SelfTeacher(weights=teacher_adapter)
