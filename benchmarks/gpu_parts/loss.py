"""
The fused PUMA loss against other ways to the same number, forward and backward, on hidden states; needs PyTorch alone.

- `fused`: `fused_puma_loss`.
- `puma_loss`: the readable reference on the logits of both sides.
- `TRL`: its `ChunkedDivergenceFunction` for each direction of the KL and its `ChunkedLogProbFunction`, on a GPU with
  Triton kernels.
- `Liger`: its fused JSD at β 0 and 1, which are the two directions, and its fused cross-entropy.

Those whose package is not installed are left out. The truth is `puma_loss` in fp64 on the same numbers.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .measuring import first_line, median_seconds, peak, start_peak, wait_for


ALPHA, LAMBDA = 0.5, 0.1
WEIGHTS = {"alpha_kl": ALPHA, "lambda_kl": LAMBDA, "temp_kl": 1.0, "num_items": 1}
# answer tokens N, hidden size H of Qwen2-VL-2B and 7B
SHAPES = [(512, 1536), (4096, 1536), (4096, 3584)]
VOCABULARY = 151_936
TINY = [(16, 32)]
# Tokens whose loss and gradient are compared with the truth
COMPARED = 64


class Inputs:
    """Hidden states (N, H) of both sides, labels (N,) and a frozen head (V, H) that give logits of ordinary size."""

    def __init__(self, num_tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype, device: torch.device):
        generator = torch.Generator(device).manual_seed(0)
        kind = {"device": device, "generator": generator}
        student = torch.randn(num_tokens, hidden, **kind)
        # the two sides of a pair mostly agree
        self.teacher = (student + 0.3 * torch.randn(num_tokens, hidden, **kind)).to(dtype)
        self.student = student.to(dtype).requires_grad_()
        self.labels = torch.randint(vocabulary, (num_tokens,), **kind)
        self.weight = (torch.randn(vocabulary, hidden, **kind) * 3 / hidden**0.5).to(dtype)

    def part(self, num_tokens: int, dtype: torch.dtype) -> "Inputs":
        """Returns the first tokens in another dtype."""
        part = object.__new__(Inputs)
        part.student = self.student.detach()[:num_tokens].to(dtype).requires_grad_()
        part.teacher, part.labels = self.teacher[:num_tokens].to(dtype), self.labels[:num_tokens]
        part.weight = self.weight.to(dtype)
        return part


def _import(name: str) -> ModuleType:
    """Imports a module of the step, also where nothing but PyTorch is installed."""
    if find_spec("wrapt") is None and "puma_trl" not in sys.modules:
        package = sys.modules["puma_trl"] = ModuleType("puma_trl")
        package.__path__ = [str(Path(__file__).parents[2] / "puma_trl")]
    return import_module(f"puma_trl.step.{name}")


def fused(inputs: Inputs) -> torch.Tensor:
    """Returns the loss of `fused_puma_loss`."""
    loss = _import("losses").fused_puma_loss
    return loss(inputs.student, inputs.teacher, inputs.weight, inputs.labels, **WEIGHTS).loss


def plain(inputs: Inputs) -> torch.Tensor:
    """Returns the loss of `puma_loss` on logits in single precision, or in double for the truth."""
    wide = torch.promote_types(inputs.student.dtype, torch.float32)
    with torch.no_grad():
        teacher = (inputs.teacher @ inputs.weight.T).to(wide)
    return (
        _import("reference")
        .puma_loss((inputs.student @ inputs.weight.T).to(wide), teacher, inputs.labels, **WEIGHTS)
        .loss
    )


def trl(inputs: Inputs) -> torch.Tensor:
    """Returns the loss put together from TRL's chunked functions."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    sides = inputs.student, inputs.weight, None, inputs.teacher, inputs.weight, None
    forward_kl, reverse_kl = (ChunkedDivergenceFunction.apply(*sides, beta)[0].sum() for beta in (0.0, 1.0))
    arguments = inputs.student, inputs.weight, None, inputs.labels, 1.0, 32768, None, 1.0, ()
    ce = -ChunkedLogProbFunction.apply(*arguments)[0].sum()
    return LAMBDA * (ALPHA * forward_kl + (1 - ALPHA) * reverse_kl) + (1 - LAMBDA) * ce


def liger(inputs: Inputs) -> torch.Tensor:
    """Returns the loss put together from Liger's, whose JSD is a mean over tokens."""
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    sides = inputs.student, inputs.weight, inputs.teacher, inputs.weight, inputs.labels
    forward_kl, reverse_kl = (len(inputs.labels) * LigerFusedLinearJSD(jsd_beta=beta)(*sides) for beta in (0.0, 1.0))
    ce = LigerFusedLinearCrossEntropyLoss(reduction="sum")(inputs.weight, inputs.student, inputs.labels)
    return LAMBDA * (ALPHA * forward_kl + (1 - ALPHA) * reverse_kl) + (1 - LAMBDA) * ce


VARIANTS: dict[str, tuple[Callable[[Inputs], torch.Tensor], str]] = {
    "fused": (fused, "torch"),
    "puma_loss": (plain, "torch"),
    "TRL": (trl, "trl"),
    "Liger": (liger, "liger_kernel"),
}


def gradient(variant: Callable[[Inputs], torch.Tensor], inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns loss and gradient of the student's hidden states."""
    inputs.student.grad = None
    loss = variant(inputs)
    loss.backward()
    return loss.detach().double(), inputs.student.grad.double()


def errors(variant: Callable[[Inputs], torch.Tensor], inputs: Inputs, dtype: torch.dtype) -> dict[str, float]:
    """Returns how far loss and gradient are from the truth, relative to it."""
    count = min(COMPARED, len(inputs.labels))
    loss, grad = gradient(variant, inputs.part(count, dtype))
    true_loss, true_grad = gradient(plain, inputs.part(count, torch.float64))
    return {
        "loss_error": ((loss - true_loss).abs() / true_loss.abs()).item(),
        "gradient_error": ((grad - true_grad).norm() / true_grad.norm()).item(),
    }


def measure(name: str, inputs: Inputs, device: torch.device, repeats: int) -> dict[str, Any]:
    """Returns seconds, extra bytes and errors of a variant, or why there are none."""
    variant, _ = VARIANTS[name]
    try:
        gradient(variant, inputs)  # compiles
        result = errors(variant, inputs, inputs.student.dtype)
        inputs.student.grad = None
        before = start_peak(device)
        gradient(variant, inputs)
        wait_for(device)
        result["extra_mb"] = (peak(device) - before) / 1e6
        result["seconds"] = median_seconds(lambda: gradient(variant, inputs), device, repeats)
        return result
    except Exception as error:  # out of memory, or a kernel that the card does not take: the others are still measured
        return {"failed": first_line(error)}


def run(device: torch.device, tiny: bool, has_time: Callable[[], bool]) -> list[dict[str, Any]]:
    """
    Measures all variants that can be had.

    Args:
        device (`torch.device`):
            Where.
        tiny (`bool`):
            Whether it is only to be tried.
        has_time (`Callable`):
            Says whether to go on.
    """
    found = []
    vocabulary, shapes = (300, TINY) if tiny else (VOCABULARY, SHAPES)
    for dtype in (torch.bfloat16, torch.float32):
        for num_tokens, hidden in shapes:
            inputs = Inputs(num_tokens, hidden, vocabulary, dtype, device)
            for name, (_, package) in VARIANTS.items():
                if find_spec(package) is not None and has_time():
                    row = {"loss": name, "dtype": str(dtype).removeprefix("torch."), "N": num_tokens, "H": hidden}
                    found.append(row | measure(name, inputs, device, 1 if tiny else 5))
            del inputs
    return found
