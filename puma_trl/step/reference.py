"""`puma_loss`: the loss of Math-PUMA on logits, as it reads in the paper, which the fused loss is compared with."""

import math
from dataclasses import dataclass

import torch

from .loss_chunk import STD_EPS, mix


@dataclass
class PumaLoss:
    """
    The PUMA loss of a batch of answer tokens, and sums of its parts over them.

    Args:
        loss (`torch.Tensor` of shape `()`):
            Sum of `lambda_kl * KL + (1 - lambda_kl) * CE`, in nats, divided by `num_items`.
        kl (`torch.Tensor` of shape `()`):
            Sum of `temp_kl**2 * (alpha_kl * forward_kl + (1 - alpha_kl) * reverse_kl)`.
        forward_kl (`torch.Tensor` of shape `()`):
            Sum of KL(teacher‖student), without the squared temperature.
        reverse_kl (`torch.Tensor` of shape `()`):
            Sum of KL(student‖teacher), without the squared temperature.
        ce (`torch.Tensor` of shape `()`):
            Sum of the student's cross-entropy at temperature 1.
        num_tokens (`int`):
            Number of answer tokens N.
    """

    loss: torch.Tensor
    kl: torch.Tensor
    forward_kl: torch.Tensor
    reverse_kl: torch.Tensor
    ce: torch.Tensor
    num_tokens: int


def _standardize(logits: torch.Tensor) -> torch.Tensor:
    """Shifts the finite entries of each row to mean 0 and scales them to standard deviation 1."""
    finite = logits.isfinite()
    count = finite.sum(-1, keepdim=True)
    mean = logits.masked_fill(~finite, 0).sum(-1, keepdim=True) / count
    # masked before the square, so that an infinite entry has no gradient either
    centred = (logits - mean).masked_fill(~finite, 0)
    variance = centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    # a row of equal logits has variance 0, where the square root has no gradient
    std = variance.clamp(min=torch.finfo(logits.dtype).tiny).sqrt()
    return torch.where(finite, centred / (std + STD_EPS), logits)


def _kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p‖q) summed over all tokens; a vocabulary entry with p = 0 contributes nothing, whatever q is."""
    p = log_p.exp()
    outside = p == 0
    # both logarithms are masked before they meet, or -inf - (-inf) would put NaN into the gradient
    return (p * (log_p.masked_fill(outside, 0) - log_q.masked_fill(outside, 0))).sum()


def puma_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    alpha_kl: float = 0.5,
    lambda_kl: float = 0.1,
    temp_kl: float = 1.0,
    num_items: torch.Tensor | int | None = None,
    standardize_logits: bool = False,
    shared_vocab_size: int | None = None,
) -> PumaLoss:
    """
    The loss of Math-PUMA on the logits of both sides, differentiable by autograd.

    For each answer token, with `p_T = softmax(teacher / temp_kl)` and `p_S = softmax(student / temp_kl)`:

        KL = temp_kl² · (alpha_kl · KL(p_T‖p_S) + (1 − alpha_kl) · KL(p_S‖p_T))
        CE = −log softmax(student)[label]
        loss = lambda_kl · KL + (1 − lambda_kl) · CE

    A vocabulary entry that is `-inf` on both sides contributes nothing to value or gradient. One that is `-inf` on one
    side only makes one direction infinite by definition: the forward KL if the student excludes what the teacher
    allows, the reverse KL if the teacher excludes what the student allows. The loss is then infinite and its gradient
    undefined, unless the weight of that direction is 0.

    Args:
        student_logits (`torch.Tensor` of shape `(N, V)`):
            Logits of the vision-rich side at the positions that predict the answer tokens.
        teacher_logits (`torch.Tensor` of shape `(N, V)`):
            Logits of the text-rich side at the same tokens. No gradient flows to them.
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
        standardize_logits (`bool`, *optional*, defaults to `False`):
            Whether to bring each row of logits to mean 0 and standard deviation 1 over its finite entries (unbiased,
            1e-6 added) before the temperature, in the KL term only
            ([Logit Standardization in Knowledge Distillation](https://huggingface.co/papers/2403.01427)).
        shared_vocab_size (`int`, *optional*):
            Number of entries at the beginning of both vocabularies that mean the same, where the sides have
            vocabularies of different sizes: the KL term compares both distributions over these alone, normalised over
            them. The cross-entropy is over the student's whole vocabulary.

    Returns:
        [`PumaLoss`]: the loss divided by `num_items`, and sums over the N tokens. Logits below single precision are
        computed with in single precision.

    Raises:
        ValueError: if the shapes are not those above, a label is not in the vocabulary, such as -100, or a number is
            out of its range.
    """
    student_shared, teacher_logits = student_logits[..., :shared_vocab_size], teacher_logits[..., :shared_vocab_size]
    if student_logits.dim() != 2 or student_shared.shape != teacher_logits.shape:
        raise ValueError(
            f"The logits have the shapes {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}, but both "
            "sides have (N, V), N answer tokens. Take the positions that predict an answer token: `logits[:, "
            ":-1][labels[:, 1:] != -100]`."
        )
    check_numbers(alpha_kl, lambda_kl, temp_kl)
    check_labels(labels, *student_shared.shape)
    if torch.finfo(student_logits.dtype).bits < 32:
        student_logits, student_shared = student_logits.float(), student_shared.float()
    teacher_logits = teacher_logits.detach().to(student_logits.dtype)
    ce = -student_logits.log_softmax(-1).gather(-1, labels[:, None]).sum()
    if standardize_logits:
        student_shared, teacher_logits = _standardize(student_shared), _standardize(teacher_logits)
    student_log_probs = (student_shared / temp_kl).log_softmax(-1)
    teacher_log_probs = (teacher_logits / temp_kl).log_softmax(-1)
    forward_kl = _kl_divergence(teacher_log_probs, student_log_probs)
    reverse_kl = _kl_divergence(student_log_probs, teacher_log_probs)
    kl = temp_kl**2 * mix(alpha_kl, forward_kl, reverse_kl)
    loss = mix(lambda_kl, kl, ce) / at_least_one(labels.shape[0] if num_items is None else num_items)
    return PumaLoss(loss, kl, forward_kl, reverse_kl, ce, labels.shape[0])


def check_numbers(alpha_kl: float, lambda_kl: float, temp_kl: float) -> None:
    """Refuses weights that are no shares, and temperatures of which there is no distribution."""
    for name, value in (("alpha_kl", alpha_kl), ("lambda_kl", lambda_kl)):
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` is {value}, but it must be between 0 and 1.")
    if not 0 < temp_kl < math.inf:
        raise ValueError(f"`temp_kl` is {temp_kl}, but it must be above 0 and finite.")


def check_labels(labels: torch.Tensor, num_tokens: int, vocab_size: int) -> None:
    """Refuses labels (N,) of another number than the answer tokens or another dtype, or out of the vocabulary."""
    if labels.shape != (num_tokens,):
        raise ValueError(
            f"`labels` has the shape {tuple(labels.shape)}, but there are {num_tokens} answer tokens, each with one "
            "label."
        )
    if labels.dtype != torch.int64:
        raise ValueError(f"`labels` has the dtype {labels.dtype}, but tokens have int64. Give `labels.long()`.")
    # on a GPU the look would wait for the device, and the kernels refuse such labels by themselves
    if not labels.is_cuda and num_tokens and not 0 <= int(labels.min()) <= int(labels.max()) < vocab_size:
        raise ValueError(
            f"`labels` goes from {int(labels.min())} to {int(labels.max())}, but the vocabulary has {vocab_size} "
            "entries. Leave out positions without an answer token (-100)."
        )


def at_least_one(num_items: torch.Tensor | int) -> torch.Tensor | int:
    """Returns what a sum is divided by, which may be a count of nothing."""
    return num_items.clamp(min=1) if torch.is_tensor(num_items) else max(num_items, 1)
