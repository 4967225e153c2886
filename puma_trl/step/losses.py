"""
The PUMA loss between a model on the vision-rich side of a problem (student) and on its text-rich side (teacher).

[`puma_loss`] is the readable reference on full logits, [`fused_puma_loss`] what the trainer uses.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .loss_chunk import METRICS, FusedPumaLoss, Settings, run_chunk_step
from .reference import at_least_one, check_labels, check_numbers


# Both logits buffers of a chunk together, in bytes
CHUNK_MEMORY = 320 * 10**6
# Heads stored in a lower precision than the products use are converted this many rows at a time
VOCAB_SLICE = 8192


def _add_product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, beta: int = 1) -> None:
    """`out = beta * out + a @ b`, rounded to the dtype of `out` only."""
    if a.dtype == out.dtype:
        torch.addmm(out, a, b, beta=beta, out=out)
    else:
        torch.addmm(out, a, b, beta=beta, out_dtype=out.dtype, out=out)


class _Head:
    """
    Products with a language-model head, accumulated in single precision or better.

    Args:
        weight (`torch.Tensor` of shape `(V, H)`):
            Weight of the head.
        bias (`torch.Tensor` of shape `(V,)`, *optional*):
            Bias of the head.
        dtype (`torch.dtype`):
            Dtype in which the operands enter the products.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype):
        # A head stored in another precision is converted once on a GPU. On a CPU the products need single precision,
        # in which the whole head would take twice the memory of the stored one, so it is converted in slices.
        self.weight = weight.to(dtype) if weight.is_cuda else weight
        self.bias = bias
        self.dtype = dtype
        self.step = weight.shape[0] if self.weight.dtype == dtype else VOCAB_SLICE

    def _slices(self) -> Iterator[tuple[slice, torch.Tensor]]:
        for start in range(0, self.weight.shape[0], self.step):
            part = slice(start, start + self.step)
            yield part, self.weight[part].to(self.dtype)

    def project(self, hidden: torch.Tensor, out: torch.Tensor) -> None:
        """Writes the logits of the hidden states (n, H) to `out` (n, V)."""
        for part, weight in self._slices():
            _add_product(out[:, part], hidden, weight.t(), beta=0)
        if self.bias is not None:
            out += self.bias

    def add_gradients(
        self, grad: torch.Tensor, hidden: torch.Tensor, to_hidden: torch.Tensor | None, to_weight: torch.Tensor | None
    ) -> None:
        """Adds what the gradient of the logits (n, V) means for hidden states (n, H) and weight (V, H)."""
        grad = grad.to(self.dtype)
        for part, weight in self._slices():
            if to_hidden is not None:
                _add_product(to_hidden, grad[:, part], weight)
            if to_weight is not None:
                _add_product(to_weight[part], grad[:, part].t(), hidden)


def _operand_dtype(hidden: torch.Tensor) -> torch.dtype:
    """Dtype of the operands of products: only GPUs return the exact product of half-precision operands."""
    if hidden.dtype == torch.float64:
        return torch.float64
    if not hidden.is_cuda:
        return torch.float32
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else hidden.dtype


def _rows_per_chunk(num_tokens: int, chunk_size: int | None, bytes_per_row: int) -> int:
    """Number of tokens per chunk: at most `chunk_size`, all chunks as good as equal, so that none is thin and slow."""
    if chunk_size is None:
        chunk_size = max(CHUNK_MEMORY // (2 * bytes_per_row) // 32 * 32, 32)
    num_chunks = math.ceil(num_tokens / chunk_size)
    return math.ceil(num_tokens / num_chunks) if num_chunks else 1


class _FusedPumaLoss(torch.autograd.Function):
    """Loss and metrics from hidden states. The forward computes the gradients, the backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        student_hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        teacher_hidden: torch.Tensor,
        teacher_weight: torch.Tensor,
        teacher_bias: torch.Tensor | None,
        labels: torch.Tensor,
        num_items: torch.Tensor | int,
        settings: Settings,
        chunk_size: int | None,
        grad_enabled: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        needs_hidden, needs_weight, needs_bias = (grad_enabled and needs for needs in ctx.needs_input_grad[:3])
        with_grad = needs_hidden or needs_weight or needs_bias
        num_tokens, vocab_size, num_shared = student_hidden.shape[0], weight.shape[0], teacher_weight.shape[0]
        dtype = _operand_dtype(student_hidden)
        # dtype of everything between the products
        wide = torch.promote_types(dtype, torch.float32)
        head = teacher_head = _Head(weight, bias, dtype)
        if teacher_weight is not weight or teacher_bias is not bias:
            teacher_head = _Head(teacher_weight, teacher_bias, dtype)

        rows = _rows_per_chunk(num_tokens, chunk_size, vocab_size * wide.itemsize)
        zeros = partial(torch.zeros, device=student_hidden.device, dtype=wide)
        logits = torch.empty((2 * rows, vocab_size), device=student_hidden.device, dtype=wide)
        per_token = zeros((len(METRICS), num_tokens))
        grad_hidden = torch.empty_like(student_hidden) if needs_hidden else None
        grad_weight = zeros(weight.shape) if needs_weight else None
        grad_bias = zeros(bias.shape) if needs_bias else None
        with torch.autocast(student_hidden.device.type, enabled=False):
            for start in range(0, num_tokens, rows):
                chunk = slice(start, start + rows)
                student, teacher = student_hidden[chunk].to(dtype), teacher_hidden[chunk].to(dtype)
                n = student.shape[0]
                if teacher_head is head:
                    # one product of twice the height
                    head.project(torch.cat((student, teacher)), logits[: 2 * n])
                else:
                    head.project(student, logits[:n])
                    teacher_head.project(teacher, logits[n : 2 * n, :num_shared])
                per_token[:, chunk] = run_chunk_step(
                    logits[:n], logits[n : 2 * n, :num_shared], labels[chunk, None], settings, with_grad
                )
                grad = logits[:n]  # overwritten by the step
                grad_chunk = zeros(student.shape) if needs_hidden else None
                if needs_hidden or needs_weight:
                    head.add_gradients(grad, student, grad_chunk, grad_weight)
                if needs_hidden:
                    grad_hidden[chunk] = grad_chunk
                if needs_bias:
                    grad_bias += grad.sum(0)

        sums = per_token.sum(1)
        ctx.num_items = num_items
        ctx.save_for_backward(
            grad_hidden,
            grad_weight.to(weight.dtype) if needs_weight else None,
            grad_bias.to(bias.dtype) if needs_bias else None,
        )
        ctx.mark_non_differentiable(sums)
        return sums[0] / num_items, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale = grad_loss / ctx.num_items
        # not in place: a graph that is retained may be asked again
        return *(None if grad is None else grad * scale for grad in ctx.saved_tensors), *(None,) * 8


def _cut_head(
    weight: torch.Tensor, bias: torch.Tensor | None, student_size: int, shared: int | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns the teacher's head for the entries of the vocabulary that both sides share."""
    size = weight.shape[0]
    if shared is None and size != student_size or (shared or 0) > min(size, student_size):
        raise ValueError(
            f"The student's vocabulary has {student_size} entries, the teacher's {size}, and `shared_vocab_size` is "
            f"{shared}. Their distributions can only be compared over entries that both have: say how many."
        )
    if shared in (None, size):  # the very same tensors, which may be the student's
        return weight, bias
    return weight[:shared], None if bias is None else bias[:shared]


def fused_puma_loss(
    student_hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    alpha_kl: float = 0.5,
    lambda_kl: float = 0.1,
    temp_kl: float = 1.0,
    num_items: torch.Tensor | int | None = None,
    lm_head_bias: torch.Tensor | None = None,
    teacher_lm_head_weight: torch.Tensor | None = None,
    teacher_lm_head_bias: torch.Tensor | None = None,
    standardize_logits: bool = False,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    teacher_logit_scale: float = 1.0,
    teacher_softcap: float | None = None,
    shared_vocab_size: int | None = None,
    chunk_size: int | None = None,
) -> FusedPumaLoss:
    """
    [`puma_loss`] from hidden states, without ever holding the logits of more than one chunk of tokens.

    The weights of the loss are known in the forward, so the gradient of each chunk's logits is computed right after
    them and multiplied by the head at once; the backward only scales. The products with the head are the three that no
    exact method avoids (four with a trained head), and what lies between them is compiled by `torch.compile` where the
    vocabulary is worth it and a compiler is there. Arithmetic is in single precision for half-precision inputs,
    under autocast too. Logits must be finite.

    Without answer tokens (N = 0) the result is zero and still attached to the graph, so that all ranks run the same
    collectives in the backward. Under `torch.no_grad`, and for inputs that need none, no gradient is computed.

    Args:
        student_hidden (`torch.Tensor` of shape `(N, H)`):
            Hidden states of the vision-rich side at the positions that predict the answer tokens.
        teacher_hidden (`torch.Tensor` of shape `(N, H)`):
            Hidden states of the text-rich side at the same tokens. No gradient flows to them.
        lm_head_weight (`torch.Tensor` of shape `(V, H)`):
            Weight of the head, in full: gathered where it is sharded.
        labels (`torch.Tensor` of shape `(N,)`):
            The answer tokens.
        alpha_kl (`float`, *optional*, defaults to `0.5`):
            Weight of the forward KL(teacher‖student) in the KL term.
        lambda_kl (`float`, *optional*, defaults to `0.1`):
            Weight of the KL term in the loss.
        temp_kl (`float`, *optional*, defaults to `1.0`):
            Temperature of both distributions in the KL term.
        num_items (`torch.Tensor` or `int`, *optional*):
            What the summed loss is divided by (at least 1): the answer tokens of the global batch. Defaults to N.
        lm_head_bias (`torch.Tensor` of shape `(V,)`, *optional*):
            Bias of the head.
        teacher_lm_head_weight (`torch.Tensor` of shape `(V, H_teacher)`, *optional*):
            Weight of the teacher's head, if it has its own. Defaults to the student's head, with its bias, scale and
            soft cap.
        teacher_lm_head_bias (`torch.Tensor` of shape `(V,)`, *optional*):
            Bias of the teacher's own head.
        standardize_logits (`bool`, *optional*, defaults to `False`):
            Whether to standardise each row of logits in the KL term, as in [`puma_loss`].
        logit_scale (`float`, *optional*, defaults to `1.0`):
            Factor of the logits of both sides, or of the student's where the teacher has its own head.
        softcap (`float`, *optional*):
            Soft cap of the same, after the scale: `softcap * tanh(logits / softcap)`.
        teacher_logit_scale (`float`, *optional*, defaults to `1.0`), teacher_softcap (`float`, *optional*):
            The same for the teacher's own head.
        shared_vocab_size (`int`, *optional*):
            Where both heads have vocabularies of different sizes, the number of entries at their beginning that mean
            the same, as in [`puma_loss`].
        chunk_size (`int`, *optional*):
            Number of tokens whose logits are held at a time. Defaults to what fits into `CHUNK_MEMORY` bytes.

    Returns:
        [`FusedPumaLoss`]: the loss divided by `num_items`, and detached sums over the N tokens.

    Raises:
        ValueError: if the sides have different numbers of tokens or vocabularies, a label is not in the vocabulary, or
            a number, such as `chunk_size`, is out of its range.
    """
    if not student_hidden.shape[0] == teacher_hidden.shape[0] == labels.shape[0]:
        raise ValueError(
            f"The student has {student_hidden.shape[0]} answer positions, the teacher {teacher_hidden.shape[0]} and "
            f"`labels` {labels.shape[0]}. Both sides of a pair must have the same answer tokens."
        )
    if teacher_lm_head_weight is None:
        teacher_lm_head_weight, teacher_lm_head_bias = lm_head_weight, lm_head_bias
        teacher_logit_scale, teacher_softcap = logit_scale, softcap
    transforms = (logit_scale, softcap, teacher_logit_scale, teacher_softcap)
    teacher_head = _cut_head(teacher_lm_head_weight, teacher_lm_head_bias, lm_head_weight.shape[0], shared_vocab_size)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"`chunk_size` is {chunk_size}, but a chunk holds at least one token. Leave it out.")
    check_numbers(alpha_kl, lambda_kl, temp_kl)
    check_labels(labels, student_hidden.shape[0], teacher_head[0].shape[0])
    if num_items is None:
        num_items = labels.shape[0]
    loss, sums = _FusedPumaLoss.apply(
        student_hidden,
        lm_head_weight,
        lm_head_bias,
        teacher_hidden,
        *teacher_head,
        labels,
        at_least_one(num_items),
        Settings(alpha_kl, lambda_kl, temp_kl, standardize_logits, *transforms),
        chunk_size,
        torch.is_grad_enabled(),
    )
    values = dict(zip(METRICS, sums.unbind(), strict=True)) | {"loss": loss}
    return FusedPumaLoss(**values, num_tokens=sums.new_full((), labels.shape[0]))
