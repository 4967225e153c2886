"""
Who reads the text-rich side: the model itself, its weights at the start of the stage, their moving average, or another
model.
"""

import copy
import functools
from contextlib import contextmanager, nullcontext

import torch
from accelerate.utils import is_peft_model
from peft import PeftModel
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel, TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import SFTTrainer
from trl.models import prepare_deepspeed, prepare_fsdp

from ..errors import ConfigError
from ..models.adapters import below_adapters
from ..models.teacher_model import load_teacher, loading_another
from .forward import SelfTeacher, SeparateTeacher


TEACHER_ADAPTER = "teacher"


class AdapterEMACallback(TrainerCallback):
    """
    Moves the teacher's adapter towards the student's: `teacher = (1 - rate) * teacher + rate * student`.

    Where the adapters are in half precision, the average is kept in fp32 beside them: rounded at each step, it would
    not move. Checkpoints of one process and of DDP hold the teacher's adapter as one of the model's; those of
    DeepSpeed and FSDP leave out what does not train, so the trainer saves and restores the average there (`state`,
    `restore`).

    Args:
        model ([`~peft.PeftModel`]):
            The model with both adapters, not yet wrapped.
    """

    def __init__(self, model: PeftModel):
        self.model = model
        # Name of a parameter → its average, of those in half precision
        self.averages: dict[str, torch.Tensor] = {}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % args.teacher_sync_steps != 0:
            return
        with self._gathered_pairs() as pairs:
            for name, teacher, student in pairs:
                average = self._average(name, teacher)
                average.lerp_(student.to(average.dtype), args.teacher_update_rate)
                teacher.copy_(average)

    def state(self) -> dict[str, torch.Tensor]:
        """Returns the whole average on the CPU, name → tensor; all ranks must call it."""
        state = {}
        with self._gathered_pairs() as pairs:
            for name, teacher, _ in pairs:
                average = self._average(name, teacher)
                whole = average.full_tensor() if isinstance(average, DTensor) else average
                state[name] = whole.detach().cpu().clone()
        return state

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Takes over an average that `state` gave; all ranks must call it."""
        with self._gathered_pairs() as pairs:
            for name, teacher, _ in pairs:
                average = self._average(name, teacher)
                value = state[name].to(average.device)
                if isinstance(average, DTensor):
                    value = distribute_tensor(value, average.device_mesh, average.placements)
                average.copy_(value)
                teacher.copy_(average)

    @contextmanager
    def _gathered_pairs(self):
        # looked up at each step: FSDP puts other parameters in the place of those that it wraps
        pairs = pair_adapters(self.model)
        with torch.no_grad(), _gathered([parameter for _, *pair in pairs for parameter in pair]):
            yield pairs

    def _average(self, name: str, teacher: torch.nn.Parameter) -> torch.Tensor:
        if teacher.dtype == torch.float32:
            return teacher
        return self.averages.setdefault(name, teacher.float())


def pair_adapters(model: PeftModel) -> list[tuple[str, torch.nn.Parameter, torch.nn.Parameter]]:
    """Returns the teacher's name, the teacher's and the student's parameter of each pair of the two adapters."""
    parameters = dict(model.named_parameters())
    return [
        (name, teacher, parameters[name.replace(f".{TEACHER_ADAPTER}.", ".default.")])
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
            The trainer, its model not yet wrapped, with `teacher_side` where another model teaches.

    Raises:
        ModelError: if another model has no usable weights.
        ConfigError: if a moving average of all weights is asked for where they are sharded or in half precision.
    """
    args = trainer.args
    if args.teacher == "live":
        return SelfTeacher()
    if args.teacher == "model":
        return _wrap(trainer, load_teacher(args, trainer.teacher_side, below_adapters(trainer.model)))
    if is_peft_model(trainer.model):
        if args.teacher == "frozen":
            return SelfTeacher(weights=trainer.model.disable_adapter)
        return _make_adapter_teacher(trainer)
    if args.teacher == "ema" and (is_deepspeed_zero3_enabled() or trainer.is_fsdp_enabled):
        raise ConfigError(
            "`teacher: ema` without adapters keeps a second full model, whose shards checkpoints under ZeRO-3 and "
            "FSDP do not hold, so a resumed run would not continue it. Use `teacher: live` or `frozen`, adapters "
            "(`use_peft: true`), or DDP or ZeRO-2."
        )
    half = trainer.is_deepspeed_enabled and (args.bf16 or args.fp16) or trainer.model.dtype != torch.float32
    if args.teacher == "ema" and half:
        raise ConfigError(
            "`teacher: ema` without adapters averages the weights in their own dtype, and in half precision its steps "
            "would be rounded away, so that it never moved. Set `dtype: float32` (beside `bf16: true`) under DDP, or "
            "use adapters (`use_peft: true`), or `teacher: live` or `frozen`."
        )
    teacher = _wrap(trainer, _copy_model(trainer.model))
    if args.teacher == "ema":
        # imported here because TRL warns that it is experimental, which concerns this teacher only
        from trl.experimental.sdft.teacher_sync import SyncTeacherModelCallback

        trainer.add_callback(SyncTeacherModelCallback(teacher.model, trainer.accelerator))
    return teacher


def _wrap(trainer: SFTTrainer, model: PreTrainedModel) -> SeparateTeacher:
    teacher = SeparateTeacher(model)
    if trainer.args.teacher_load_in_4bit:
        return teacher  # which is where it was loaded, whole on every process
    if trainer.is_deepspeed_enabled:
        teacher.wrapped = prepare_deepspeed(model, trainer.accelerator)
    elif trainer.is_fsdp_enabled:
        # one unit is made of what is given; with the layers first, they are gathered one at a time
        for layer in find_layers(model):
            prepare_fsdp(layer, trainer.accelerator)
        teacher.wrapped = prepare_fsdp(model, trainer.accelerator)
    else:
        teacher.wrapped = trainer.accelerator.prepare_model(model, evaluation_mode=True)
    return teacher


def find_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Returns the layers of a model that engines do not split, inner ones first."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names][::-1]


def _copy_model(model: PreTrainedModel) -> PreTrainedModel:
    if is_deepspeed_zero3_enabled():
        # sharded parameters cannot be copied; the source still holds the weights at the start of the stage
        with loading_another():
            return type(model).from_pretrained(
                model.config._name_or_path,
                attn_implementation=model.config._attn_implementation,
                dtype=model.dtype,
                revision=getattr(model.config, "_commit_hash", None) or "main",  # only set where it came from the Hub
            )
    copied = copy.deepcopy(model)
    # Workaround (TRL 1.16, no upstream issue found): its patch would still run the original
    del copied.forward
    return copied


def _make_adapter_teacher(trainer: SFTTrainer) -> SelfTeacher:
    model = trainer.model
    if TEACHER_ADAPTER not in model.peft_config:
        model.add_adapter(TEACHER_ADAPTER, model.peft_config["default"])
    for _, teacher, student in pair_adapters(model):
        teacher.data = student.data.clone()  # its dtype too
        teacher.requires_grad_(False)
    average = AdapterEMACallback(model)
    trainer.add_callback(average)
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        # Workaround (PEFT 0.21, huggingface/peft#2946): what they gather for saving lacks frozen parameters, and PEFT
        # looks for those of all adapters
        model.save_pretrained = functools.partial(model.save_pretrained, selected_adapters=["default"])

    @contextmanager
    def teacher_adapter():
        model.set_adapter(TEACHER_ADAPTER, inference_mode=True)
        try:
            yield
        finally:
            model.set_adapter("default")

    return SelfTeacher(weights=teacher_adapter, average=average)
