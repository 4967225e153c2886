"""In which precision the weights train."""

import warnings

import torch
from accelerate.utils import is_peft_model
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ..config import PumaKLConfig
from ..models.adapters import prepare_adapters


def prepare_precision(
    model: PreTrainedModel | PeftModel, args: PumaKLConfig, is_engine: bool, is_fsdp: bool, fresh: bool
) -> None:
    """
    Sees to it that what trains is kept in fp32, by us or by the engine, and warns where neither does.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model, not yet wrapped.
        args ([`PumaKLConfig`]):
            `bf16` and `fp16` are used.
        is_engine (`bool`):
            Whether DeepSpeed or FSDP trains.
        is_fsdp (`bool`):
            Whether it is FSDP.
        fresh (`bool`):
            Whether the adapters were made just now.
    """
    mixed = args.bf16 or args.fp16
    if is_peft_model(model):
        # In half precision DeepSpeed keeps its own fp32 copies, and accelerate makes them for FSDP; ZeRO-3 has sharded
        # the parameters already. Workaround (accelerate 1.15, no upstream issue found): not beside weights in 4 bits.
        is_4bit = getattr(model, "is_loaded_in_4bit", False)
        has_copies = mixed and is_engine and not (is_fsdp and is_4bit)
        if not has_copies and not is_deepspeed_zero3_enabled():
            prepare_adapters(model, autocast=mixed, fresh=fresh)
    elif not is_engine and (half := {p.dtype for p in model.parameters() if p.requires_grad} - {torch.float32}):
        warnings.warn(
            f"The weights train in {', '.join(map(str, half))} without fp32 copies, so that small updates are rounded "
            "away. Set `dtype: float32` beside `bf16: true`, or use DeepSpeed, FSDP2 or adapters."
        )
