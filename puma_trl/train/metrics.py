"""What a run measures between two logs: sums on each rank, reduced over ranks once, and the means that are logged."""

from collections import defaultdict
from typing import Any

import torch
from accelerate import Accelerator

from ..data.collator import TEACHER
from ..step.forward import SUMS


# Means over answer tokens, and the sums they are of
MEANS = {name: name for name in ("kl", "forward_kl", "reverse_kl", "ce", "teacher_ce", "entropy")} | {
    "mean_token_accuracy": "correct",
    "teacher_mean_token_accuracy": "teacher_correct",
}


class StepMetrics:
    """
    Sums since the last log, kept on the device, separately for training (`"train"`) and evaluation (`"eval"`).

    Args:
        device (`torch.device`):
            Device of the sums.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.total_train_tokens = 0
        # Sums in the order of `SUMS`, and the number of input tokens
        self._sums: dict[str, torch.Tensor | int] = defaultdict(int)
        # Positions of the batches: (read, all)
        self._slots: dict[str, torch.Tensor | int] = defaultdict(int)
        # Row ids and loss of each micro-batch since the last check that all losses are finite
        self._unchecked: list[tuple[list[str], torch.Tensor]] = []

    def add_positions(self, mode: str, inputs: dict[str, Any]) -> None:
        """Counts the positions of a batch, of both sides, and those among them that are no padding."""
        for name in ("attention_mask", f"{TEACHER}attention_mask"):
            if name in inputs:
                mask = inputs[name]
                self._slots[mode] += torch.stack((mask.sum(), mask.new_full((), mask.numel())))

    def add_sums(self, mode: str, sums: torch.Tensor, attention_mask: torch.Tensor) -> None:
        """
        Adds what the pair step measured on a micro-batch.

        Args:
            mode (`str`):
                `"train"` or `"eval"`.
            sums (`torch.Tensor` of shape `(len(SUMS),)`):
                Sums over its answer tokens.
            attention_mask (`torch.Tensor` of shape `(B, L)`):
                The student's.
        """
        self._sums[mode] += torch.cat((sums, attention_mask.sum().double()[None]))

    def add_loss(self, row_ids: list[str], loss: torch.Tensor) -> None:
        """Keeps the loss of a micro-batch until the next reduction finds out whether it is finite."""
        self._unchecked.append((row_ids, loss.detach()))

    def reduce(self, accelerator: Accelerator, mode: str | None = None, stop: bool = False) -> tuple[dict, bool]:
        """
        Sums over ranks, all of which must call it, and starts anew.

        Args:
            accelerator ([`~accelerate.Accelerator`]):
                Whose ranks are reduced over.
            mode (`str`, *optional*):
                What is to be measured. By default losses and stops are looked at only.
            stop (`bool`, *optional*, defaults to `False`):
                Whether this rank was asked to stop.

        Returns:
            `tuple[dict[str, float], bool]`: the means by name, and whether any rank was asked to stop.

        Raises:
            NotFiniteError: on all ranks, if a loss since the last call was NaN or infinite on one.
        """
        slots, sums = self._slots.pop(mode, None), self._sums.pop(mode, None)
        counts = [value.double() for value in (slots, sums) if value is not None]
        unchecked, self._unchecked = self._unchecked, []
        losses = torch.stack([torch.zeros((), device=self.device), *(loss.float() for _, loss in unchecked)])
        bad = (~losses.isfinite()).any()[None].double()
        asked = torch.tensor([stop], dtype=torch.double, device=self.device)
        any_bad, any_stop, *totals = accelerator.reduce(torch.cat((bad, asked, *counts)), "sum").tolist()
        if any_bad:
            raise NotFiniteError([(rows, loss.item()) for rows, loss in unchecked if not loss.isfinite()])
        means = {}
        if slots is not None:
            num_read, num_slots, *totals = totals
            means["padding_share"] = 1 - num_read / num_slots
        if sums is not None:
            means |= self._means(dict(zip((*SUMS, "input_tokens"), totals, strict=True)), mode)
        return means, bool(any_stop)

    def _means(self, sums: dict[str, float], mode: str) -> dict[str, float]:
        if mode == "train":
            self.total_train_tokens += int(sums["input_tokens"])
        count = max(sums["num_tokens"], 1.0)
        return {name: sums[of] / count for name, of in MEANS.items()} | {"num_tokens": self.total_train_tokens}


class NotFiniteError(FloatingPointError):
    """
    A loss was NaN or infinite.

    Args:
        bad (`list[tuple[list[str], float]]`):
            The rows and the loss of each such micro-batch of this rank.
    """

    def __init__(self, bad: list[tuple[list[str], float]]):
        rows = "; ".join(f"loss {loss} at rows {', '.join(rows)}" for rows, loss in bad[:3])
        super().__init__(rows or "the rows are named by another rank")
