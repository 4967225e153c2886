"""The arithmetic of the fused PUMA loss on the logits of one chunk of tokens, compiled where a compiler is there."""

import warnings
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


class Settings(NamedTuple):
    alpha_kl: float
    lambda_kl: float
    temp_kl: float
    standardize: bool
    logit_scale: float
    softcap: float | None


def _transform(logits: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Scale and soft cap that some models put behind their head."""
    # factors of 1 are left out: inductor takes a scaled softmax apart and reads the logits twice more
    if settings.logit_scale != 1:
        logits = logits * settings.logit_scale
    return logits if settings.softcap is None else settings.softcap * torch.tanh(logits / settings.softcap)


def _sharpness(logits: torch.Tensor, settings: Settings) -> torch.Tensor | float:
    """Factor between logits and the arguments of the KL term's softmax, where the mean does not matter."""
    if not settings.standardize:
        return 1 / settings.temp_kl
    return 1 / ((logits.std(-1, keepdim=True) + STD_EPS) * settings.temp_kl)


def _token_statistics(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """At temperature 1: logits minus their maximum, log of their summed exponentials, cross-entropy, correctness."""
    centred = logits - logits.amax(-1, keepdim=True)
    log_sum = centred.exp().sum(-1, keepdim=True).log()
    ce = log_sum - centred.gather(-1, labels)
    return centred, log_sum, ce, logits.argmax(-1, keepdim=True) == labels


def _chunk_arithmetic(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    settings: Settings,
    with_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Loss, metrics and gradient of a chunk of n tokens, a pure function.

    Softmaxes stay unnormalised: one reading of both rows of logits gives all sums that the divergences need, a second
    one the gradient.

    Args:
        student_logits, teacher_logits (`torch.Tensor` of shape `(n, V)`):
            Outputs of the head.
        labels (`torch.Tensor` of shape `(n, 1)`):
            Answer tokens.
        settings (`Settings`):
            Weights, temperature and transforms.
        with_grad (`bool`):
            Whether to compute the gradient.

    Returns:
        Per token the loss and the metrics in the order of [`FusedPumaLoss`], shape (9, n), and the gradient of the
        summed loss with respect to `student_logits`, shape (n, V), or `None`.
    """
    alpha, lambda_, temperature = settings.alpha_kl, settings.lambda_kl, settings.temp_kl
    s, t = _transform(student_logits, settings), _transform(teacher_logits, settings)
    a, log_sum, ce, correct = _token_statistics(s, labels)
    b, _, teacher_ce, teacher_correct = _token_statistics(t, labels)
    entropy = log_sum - (a.exp() * a).sum(-1, keepdim=True) / log_sum.exp()

    # the KL term's log-probabilities are u - log(sum(exp(u))) and v - log(sum(exp(v)))
    sharpness = _sharpness(s, settings)
    u, v = (
        (a, b) if settings.temp_kl == 1 and not settings.standardize else (a * sharpness, b * _sharpness(t, settings))
    )
    exp_u, exp_v, gap = u.exp(), v.exp(), v - u
    sum_u, sum_v = exp_u.sum(-1, keepdim=True), exp_v.sum(-1, keepdim=True)
    log_ratio = (sum_v / sum_u).log()  # not the difference of two larger numbers
    forward_kl = (exp_v * gap).sum(-1, keepdim=True) / sum_v - log_ratio
    reverse_kl = log_ratio - (exp_u * gap).sum(-1, keepdim=True) / sum_u
    kl = temperature**2 * mix(alpha, forward_kl, reverse_kl)
    loss = mix(lambda_, kl, ce)
    rows = torch.cat((loss, kl, forward_kl, reverse_kl, ce, teacher_ce, entropy, correct, teacher_correct), dim=-1).t()
    if not with_grad:
        return rows, None

    p, q = (u - sum_u.log()).exp(), (v - sum_v.log()).exp()
    # of the forward KL: p - q; of the reverse KL: p * (log p - log q - KL)
    grad = alpha * (p - q) + (1 - alpha) * p * (log_ratio - gap - reverse_kl)
    if settings.standardize:
        centred = s - s.mean(-1, keepdim=True)
        std = s.std(-1, keepdim=True)
        along = (grad * a).sum(-1, keepdim=True) / ((std + STD_EPS) * std * (s.shape[-1] - 1))
        grad = grad - torch.where(std > 0, along, 0) * centred
    is_label = torch.arange(s.shape[-1], device=s.device) == labels
    ce_grad = (a - log_sum).exp() - is_label.to(a.dtype)
    grad = lambda_ * temperature**2 * sharpness * grad + (1 - lambda_) * ce_grad
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
    """[`_chunk_arithmetic`] with the gradient written over the student's logits, so that no third buffer is needed."""
    rows, grad = _chunk_arithmetic(student_logits, teacher_logits, labels, settings, with_grad)
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
        except torch._dynamo.exc.TorchDynamoException as error:
            _compiler_works = False
            warnings.warn(
                f"`torch.compile` does not work here ({type(error).__name__}), so the loss is computed eagerly: the "
                "same result, but slower and with more memory. It needs a C++ compiler on a CPU and Triton on a GPU. "
                f"The error was: {error}"
            )
    return _chunk_step(student_logits, teacher_logits, labels, *args)
