"""
The pair step inside one wrapped forward: the teacher reads the text-rich side without gradient, the student the
vision-rich side, and the loss is taken from hidden states at the answer positions.

Both passes run inside the model's own `forward`, so that autocast and the hooks of DDP, DeepSpeed and FSDP see them.
"""

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import patch_environment
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial
from transformers import PreTrainedConfig, PreTrainedModel, TrainerCallback
from transformers.utils import ModelOutput
from trl.trainer.utils import FusedCausalLMOutput, maybe_gather_lm_head_ctx

from ..config import PumaKLConfig
from ..data.padding_free import OnHost, find_answers
from ..models.attention import VARLEN, attention_of, no_mask, prepare_towers
from .loss_chunk import METRICS
from .losses import fused_puma_loss
from .tower_memo import TowerMemo


# Sums over answer tokens that the pair step returns, in the order of `PairOutput.sums`; the loss goes its own way.
SUMS = (*(name for name in METRICS if name != "loss"), "num_tokens")

Head = tuple[torch.Tensor, torch.Tensor | None]


@dataclass
class PairOutput(ModelOutput):
    """
    Output of a model given the pair step with [`add_pair_forward`] and called with `teacher_inputs`.

    Args:
        loss (`torch.Tensor` of shape `()`):
            The PUMA loss of this micro-batch divided by `num_items_in_batch`.
        sums (`torch.Tensor` of shape `(len(SUMS),)`):
            Detached sums over the answer tokens of this micro-batch, in the order of `SUMS`.
    """

    loss: torch.Tensor | None = None
    sums: torch.Tensor | None = None


def to_model_inputs(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """Returns the inputs of a model, of which those of padding-free batches are told apart by `cu_seq_lens_q`."""
    inputs = {name: value.value if isinstance(value, OnHost) else value for name, value in inputs.items()}
    if "cu_seq_lens_q" in inputs:
        is_varlen = attention_of(model.config) == VARLEN
        inputs["attention_mask"] = no_mask(inputs["input_ids"].device) if is_varlen else None
    return inputs


def answer_hidden_states(model: PreTrainedModel, inputs: dict[str, Any], positions: torch.Tensor) -> torch.Tensor:
    """
    Runs the backbone and keeps the hidden states that predict an answer token.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model whose `base_model` is the backbone below the language-model head.
        inputs (`dict[str, Any]`):
            Inputs of the backbone, as the collator makes them; `input_ids` has shape (B, L).
        positions (`torch.Tensor` of shape `(N,)`):
            Positions of these hidden states in B · L (see [`find_answers`]), N the number of answer tokens.

    Returns:
        `torch.Tensor` of shape (N, H), row by row.
    """
    hidden_states = model.base_model(**to_model_inputs(model, inputs), use_cache=False).last_hidden_state
    return hidden_states.flatten(0, 1).index_select(0, positions)


class CheckedOnce:
    """
    Lets transformers compare the numbers of image tokens and of image features in the first pass only.

    On a GPU it waits for the device to do so, in every pass. Both come from the same processor, so if model and
    processor agree once, they do.
    """

    def __init__(self):
        self.passes = 0

    @contextmanager
    def __call__(self, inputs: dict[str, Any]) -> Iterator[None]:
        skips = self.passes and inputs["input_ids"].is_cuda
        self.passes += 1
        with patch_environment(TRANSFORMERS_DISABLE_TORCH_CHECK="1") if skips else nullcontext():
            yield


def read_head(model: PreTrainedModel) -> Head:
    """
    Returns weight (V, H) and bias (V,) of the language-model head, to be called inside the student's wrapped forward.

    Under ZeRO-3 they may still be sharded; `maybe_gather_lm_head_ctx` gathers them.
    """
    head = model.get_output_embeddings()
    # Workaround (accelerate 1.15, huggingface/accelerate#4015): since that change the head of a vision-language model
    # is a unit of its own under FSDP2. The loss reads its weight without calling it, so nothing would gather it, and
    # the gradient of a DTensor gathered by hand would keep this rank's part only.
    if isinstance(head, FSDPModule):
        head.unshard()
    weight, bias = head.weight, head.bias
    if isinstance(weight, DTensor):
        weight = weight.full_tensor(grad_placements=[Partial("avg")] * weight.device_mesh.ndim)
    if isinstance(bias, DTensor):
        bias = bias.full_tensor(grad_placements=[Partial("avg")] * bias.device_mesh.ndim)
    return weight, bias


def logit_transform(config: PreTrainedConfig) -> tuple[float, float | None]:
    """Returns what a model does to the outputs of its head: a factor, and behind it a soft cap, if any."""
    text = config.get_text_config()
    softcap = getattr(text, "final_logit_softcapping", None)
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):  # Cohere, and Falcon-H1's
        if (scale := getattr(text, name, None)) is not None:
            return scale, softcap
    scaling = getattr(text, "logits_scaling", None)
    if scaling is None:
        return 1.0, softcap
    return (scaling if text.model_type == "hyperclovax" else 1 / scaling), softcap  # the others, as Granite, divide


class SelfTeacher:
    """
    The model being trained as its own teacher, without gradient and without dropout.

    Args:
        weights (`Callable[[], AbstractContextManager]`, *optional*):
            Context in which the model has the teacher's weights, such as its adapters switched off. By default the
            weights are the student's (`teacher: live`).
        average (`TrainerCallback`, *optional*):
            What keeps the moving average, where those weights are one.
    """

    def __init__(
        self,
        weights: Callable[[], AbstractContextManager] = nullcontext,
        average: TrainerCallback | None = None,
    ):
        self.weights = weights
        self.average = average

    def __call__(
        self, student: PreTrainedModel, inputs: dict[str, Any], positions: torch.Tensor
    ) -> tuple[torch.Tensor, Head]:
        """Returns the hidden states (N, H) that predict the answer on the text-rich side, and the teacher's head."""
        training = student.training
        student.eval()
        try:
            with torch.no_grad(), self.weights():
                return answer_hidden_states(student, inputs, positions), read_head(student)
        finally:
            student.train(training)


class SeparateTeacher:
    """
    A second model as the teacher (`teacher: model`, and `frozen` or `ema` without adapters).

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The teacher. Its forward is replaced by one that returns hidden states.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model.eval().requires_grad_(False)
        prepare_towers(model)

        def hidden_forward(self, inputs, positions):
            return answer_hidden_states(self, inputs, positions)

        model.forward = types.MethodType(hidden_forward, model)
        # What the engine's wrapper makes of the model; the trainer sets it.
        self.wrapped: torch.nn.Module = model

    def __call__(
        self, student: PreTrainedModel, inputs: dict[str, Any], positions: torch.Tensor
    ) -> tuple[torch.Tensor, Head]:
        """Returns the hidden states (N, H) that predict the answer on the text-rich side, and the teacher's head."""
        with torch.no_grad():
            # the head is read here because what leaves a DeepSpeed forward is a copy that cannot be gathered
            return self.wrapped(inputs=inputs, positions=positions), read_head(self.model)


def _pop_answers(inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Takes the answer tokens (N,) out of a batch, and the positions (N,) that predict them."""
    labels, positions = inputs.pop("labels"), inputs.pop("answer_positions", None)
    if positions is None:
        positions = find_answers(labels)
    return labels.flatten().index_select(0, positions + 1), positions


def add_pair_forward(
    model: PreTrainedModel,
    config: PumaKLConfig,
    teacher: SelfTeacher | SeparateTeacher,
    memo: TowerMemo | None = None,
    watch: Callable[[ModelOutput], None] = lambda output: None,
) -> None:
    """
    Adds the pair step to `model`: `model(**student, labels=…, teacher_inputs=…)` returns a [`PairOutput`].

    `teacher_inputs` holds the text-rich batch with its own `labels`; the answer tokens of both sides are the same, row
    by row. `lambda_kl` takes the place of that of the settings. Without `teacher_inputs` the forward is the one it
    was, TRL's fused head included.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model to patch, unwrapped from PEFT and from the engine.
        config ([`PumaKLConfig`]):
            Weights and temperature of the loss.
        teacher ([`SelfTeacher`] or [`SeparateTeacher`]):
            Who reads the text-rich side.
        memo ([`TowerMemo`], *optional*):
            Used in steps called with `same_images=True`, where both sides show the same pictures.
        watch (`Callable[[ModelOutput], None]`, *optional*):
            Called with each output of TRL's fused head, which TRL's step does not hand on.
    """
    sft_forward = model.forward
    prepare_towers(model)
    checked_once = CheckedOnce()
    logit_scale, softcap = logit_transform(model.config)
    teacher_model = teacher.model if isinstance(teacher, SeparateTeacher) else model
    teacher_logit_scale, teacher_softcap = logit_transform(teacher_model.config)

    # keep the original signature: `generate` and Trainer inspect it
    @functools.wraps(type(model).forward)
    def pair_forward(self, *args, teacher_inputs=None, same_images=False, lambda_kl=None, **kwargs):
        if teacher_inputs is None:
            if isinstance(self.get_output_embeddings(), FSDPModule):
                # Workaround (TRL 1.16, huggingface/trl#6077): its fused head gathers by hand, see `read_head`
                self.get_output_embeddings().unshard()
            with checked_once(kwargs) if "cu_seq_lens_q" in kwargs else nullcontext():
                output = sft_forward(*args, **to_model_inputs(self, kwargs))
            if isinstance(output, FusedCausalLMOutput):
                watch(output)
            return output

        num_items = kwargs.pop("num_items_in_batch")
        labels, positions = _pop_answers(kwargs)
        teacher_inputs = dict(teacher_inputs)
        _, teacher_positions = _pop_answers(teacher_inputs)
        use_memo = memo is not None and same_images
        with checked_once(kwargs):
            with memo.record() if use_memo else nullcontext():
                teacher_hidden, teacher_head = teacher(self, teacher_inputs, teacher_positions)
            with memo.replay() if use_memo else nullcontext():
                student_hidden = answer_hidden_states(self, kwargs, positions)
        weight, bias = read_head(self)
        if teacher_head[0] is weight:
            teacher_head = (None, None)  # one head, gathered and projected from once
        with maybe_gather_lm_head_ctx(weight, bias, *teacher_head):
            sizes = [head.shape[0] for head in (weight, teacher_head[0]) if head is not None]
            output = fused_puma_loss(
                student_hidden,
                teacher_hidden,
                weight,
                labels,
                alpha_kl=config.alpha_kl,
                lambda_kl=config.lambda_kl if lambda_kl is None else lambda_kl,
                temp_kl=config.temp_kl,
                num_items=num_items,
                lm_head_bias=bias,
                teacher_lm_head_weight=teacher_head[0],
                teacher_lm_head_bias=teacher_head[1],
                standardize_logits=config.standardize_logits,
                logit_scale=logit_scale,
                softcap=softcap,
                teacher_logit_scale=teacher_logit_scale,
                teacher_softcap=teacher_softcap,
                shared_vocab_size=min(sizes),
            )
        sums = torch.stack([getattr(output, name).double() for name in SUMS])
        return PairOutput(loss=output.loss, sums=sums)

    model.forward = types.MethodType(pair_forward, model)
