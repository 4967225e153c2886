"""The arithmetic of the fused PUMA loss on the logits of one chunk of tokens, compiled where a compiler is there."""

import warnings
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch


# Added to the standard deviation of a row of logits in the standardisation
STD_EPS = 1e-6

# Below this vocabulary the arithmetic is too short to be worth starting a compiler for
COMPILE_MIN_VOCAB = 8192


def mix(weight: float, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """`weight * first + (1 - weight) * second`, where a weight of 0 silences even an infinite term."""
    if weight == 0:
        return second
    if weight == 1:
        return first
    return weight * first + (1 - weight) * second


@dataclass
class FusedPumaLoss:
    """
    The PUMA loss of a micro-batch and the sums over its N answer tokens that metrics need, all of shape `()`.

    Args:
        loss (`torch.Tensor`):
            Sum of `lambda_kl * KL + (1 - lambda_kl) * CE` divided by `num_items`; the only differentiable field.
        kl, forward_kl, reverse_kl, ce (`torch.Tensor`):
            Sums as in [`~puma_trl.step.losses.PumaLoss`].
        teacher_ce (`torch.Tensor`):
            Sum of the teacher's cross-entropy at temperature 1.
        entropy (`torch.Tensor`):
            Sum of the entropy of the student's distribution at temperature 1, in nats.
        correct, teacher_correct (`torch.Tensor`):
            Number of tokens that the student, or the teacher, ranks first.
        num_tokens (`torch.Tensor`):
            N.
    """

    loss: torch.Tensor
    kl: torch.Tensor
    forward_kl: torch.Tensor
    reverse_kl: torch.Tensor
    ce: torch.Tensor
    teacher_ce: torch.Tensor
    entropy: torch.Tensor
    correct: torch.Tensor
    teacher_correct: torch.Tensor
    num_tokens: torch.Tensor


# What is computed for each answer token, in the order of all buffers and sums: every field but N
METRICS = tuple(field.name for field in fields(FusedPumaLoss) if field.name != "num_tokens")


class Settings(NamedTuple):
    """What the arithmetic needs to know, named as the arguments of [`fused_puma_loss`]."""

    alpha_kl: float
    lambda_kl: float
    temp_kl: float
    standardize_logits: bool
    logit_scale: float
    softcap: float | None
    teacher_logit_scale: float
    teacher_softcap: float | None


def _transform(logits: torch.Tensor, scale: float, softcap: float | None) -> torch.Tensor:
    """Scale and soft cap that some models put behind their head."""
    # a factor of 1 is left out: inductor takes a scaled softmax apart and reads the logits twice more
    if scale != 1:
        logits = logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _token_statistics(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """At temperature 1: logits minus their maximum, log of the summed exponentials, cross-entropy, correctness."""
    centred = logits - logits.amax(-1, keepdim=True)
    log_sum = centred.exp().sum(-1, keepdim=True).log()
    ce = log_sum - centred.gather(-1, labels)
    return centred, log_sum, ce, logits.argmax(-1, keepdim=True) == labels


def _standard_deviation(centred: torch.Tensor) -> torch.Tensor:
    """Unbiased standard deviation over the vocabulary."""
    deviation = centred - centred.mean(-1, keepdim=True)
    return (deviation.square().sum(-1, keepdim=True) / (centred.shape[-1] - 1)).sqrt()


def _kl_argument(centred: torch.Tensor, settings: Settings) -> tuple[torch.Tensor | float, torch.Tensor]:
    """Factor on the logits and argument of the softmax in the KL term; a shift of the whole row does not matter."""
    if settings.standardize_logits:
        factor = 1 / ((_standard_deviation(centred) + STD_EPS) * settings.temp_kl)
        return factor, centred * factor
    if settings.temp_kl == 1:
        return 1.0, centred  # the very same tensor, so that its exponentials are computed once
    return 1 / settings.temp_kl, centred / settings.temp_kl


def _through_standardization(grad: torch.Tensor, along: torch.Tensor, centred: torch.Tensor) -> torch.Tensor:
    """Takes out of a gradient of zero mean, with `along = (grad * centred).sum(-1)`, what the scaling takes back."""
    std = _standard_deviation(centred)
    share = along / ((std + STD_EPS) * std * (centred.shape[-1] - 1))
    return grad - torch.where(std > 0, share, 0) * (centred - centred.mean(-1, keepdim=True))


def chunk_arithmetic(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    settings: Settings,
    with_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Loss, metrics and gradient of a chunk of n tokens, as a pure function.

    One reading of both rows of logits gives the sums that all terms need, the next one the gradient.

    Args:
        student_logits (`torch.Tensor` of shape `(n, V)`):
            Finite outputs of the head.
        teacher_logits (`torch.Tensor` of shape `(n, V_shared)`):
            Those of the teacher's head. The KL term compares the first V_shared entries of both sides, normalised over
            them.
        labels (`torch.Tensor` of shape `(n, 1)`):
            Answer tokens.
        settings (`Settings`):
            Weights, temperature and transforms.
        with_grad (`bool`):
            Whether to compute the gradient.

    Returns:
        Loss and metrics of each token in the order of `METRICS`, shape (M, n), and the gradient of the summed loss
        with respect to `student_logits`, shape (n, V), or `None`.
    """
    s = _transform(student_logits, settings.logit_scale, settings.softcap)
    t = _transform(teacher_logits, settings.teacher_logit_scale, settings.teacher_softcap)
    a, log_sum, ce, correct = _token_statistics(s, labels)
    b, _, teacher_ce, teacher_correct = _token_statistics(t, labels)
    entropy = log_sum - (a.exp() * a).sum(-1, keepdim=True) / log_sum.exp()

    # with log p = u - log(sum_u) and log q = v - log(sum_v), p of the student and q of the teacher
    shared, rest = a, s.shape[-1] - t.shape[-1]
    if rest:
        shared = a[:, : t.shape[-1]]
        shared = shared - shared.amax(-1, keepdim=True)  # the largest logit may be among the others
    factor, u = _kl_argument(shared, settings)
    _, v = _kl_argument(b, settings)
    sum_u, sum_v, gap = u.exp().sum(-1, keepdim=True), v.exp().sum(-1, keepdim=True), v - u
    log_ratio = (sum_v / sum_u).log()  # not the difference of two larger numbers
    forward_kl = (v.exp() * gap).sum(-1, keepdim=True) / sum_v - log_ratio
    reverse_kl = log_ratio - (u.exp() * gap).sum(-1, keepdim=True) / sum_u
    kl = settings.temp_kl**2 * mix(settings.alpha_kl, forward_kl, reverse_kl)
    loss = mix(settings.lambda_kl, kl, ce)
    values = {"loss": loss, "kl": kl, "forward_kl": forward_kl, "reverse_kl": reverse_kl, "ce": ce, "entropy": entropy}
    values |= {"teacher_ce": teacher_ce, "correct": correct, "teacher_correct": teacher_correct}
    rows = torch.cat([values[name] for name in METRICS], dim=-1).t()
    if not with_grad:
        return rows, None

    p, q = (u - sum_u.log()).exp(), (v - sum_v.log()).exp()
    grad = mix(settings.alpha_kl, p - q, p * (log_ratio - gap - reverse_kl))
    if settings.standardize_logits:
        # (grad * shared).sum(-1) from sums of its own: as a use of `grad` it would keep that in memory
        mean_p = (u.exp() * shared).sum(-1, keepdim=True) / sum_u
        mean_q = (v.exp() * shared).sum(-1, keepdim=True) / sum_v
        mean_gap = (u.exp() * gap * shared).sum(-1, keepdim=True) / sum_u
        along = mix(settings.alpha_kl, mean_p - mean_q, (log_ratio - reverse_kl) * mean_p - mean_gap)
        grad = _through_standardization(grad, along, shared)
    if rest:
        grad = torch.nn.functional.pad(grad, (0, rest))
    is_label = torch.arange(s.shape[-1], device=s.device) == labels
    ce_grad = (a - log_sum).exp() - is_label.to(a.dtype)
    grad = mix(settings.lambda_kl, settings.temp_kl**2 * factor * grad, ce_grad)
    if settings.softcap is not None:
        grad = grad * (1 - (s / settings.softcap).square())
    return rows, grad if settings.logit_scale == 1 else grad * settings.logit_scale


def _chunk_step(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    settings: Settings,
    with_grad: bool,
) -> torch.Tensor:
    """[`chunk_arithmetic`] with the gradient written over the student's logits, so that no third buffer is needed."""
    rows, grad = chunk_arithmetic(student_logits, teacher_logits, labels, settings, with_grad)
    if with_grad:
        student_logits.copy_(grad)
    return rows


_compiled_chunk_step = torch.compile(_chunk_step)
_compiler_works = True


def run_chunk_step(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor, *args: Any
) -> torch.Tensor:
    """[`_chunk_step`], compiled where that pays and works."""
    global _compiler_works
    num_tokens, vocab_size = student_logits.shape
    # a chunk of one row would be compiled for by itself
    if _compiler_works and vocab_size >= COMPILE_MIN_VOCAB and num_tokens > 1:
        for tensor in (student_logits, teacher_logits, labels):
            torch._dynamo.mark_dynamic(tensor, 0)
        try:
            return _compiled_chunk_step(student_logits, teacher_logits, labels, *args)
        except torch.OutOfMemoryError:  # is told as such, and a smaller batch mends it
            raise
        except Exception as error:  # of TorchDynamo, and of Triton at a first launch, such as for want of a C compiler
            _compiler_works = False
            warnings.warn(
                f"`torch.compile` does not work here ({type(error).__name__}), so the loss is computed eagerly: the "
                "same result, but slower and with more memory. It needs a C++ compiler on a CPU and Triton on a GPU. "
                f"The error was: {error}"
            )
    return _chunk_step(student_logits, teacher_logits, labels, *args)
