"""What a run measures between two logs: sums on each rank, reduced over ranks once, and the means that are logged."""

import warnings
from collections import defaultdict
from typing import Any

import torch
from accelerate import Accelerator

from ..data.collator import TEACHER
from ..step.forward import SUMS


# Sums of the pair step, in the order of its output, and of TRL's step in evaluation
PAIR_SUMS = (*SUMS, "input_tokens")
SFT_SUMS = ("loss", "entropy", "correct", "num_tokens")
# Means over answer tokens, and the sums they are of
MEANS = {name: name for name in ("loss", "kl", "forward_kl", "reverse_kl", "ce", "teacher_ce", "entropy")} | {
    "mean_token_accuracy": "correct",
    "teacher_mean_token_accuracy": "teacher_correct",
}
# The optimizer steps after which the teacher is compared with the student
FIRST_STEPS = 100
# Share of the cross-entropy, and of the tokens, by which it is called worse
MARGIN = 0.02


class StepMetrics:
    """
    Sums since the last reduction, kept on the device, separately for training (`"train"`) and evaluation (`"eval"`).

    Args:
        device (`torch.device`):
            Device of the sums.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.total_train_tokens = 0
        # Sums over answer tokens
        self._sums: dict[str, torch.Tensor | int] = defaultdict(int)
        # Positions of the batches: (read, all)
        self._slots: dict[str, torch.Tensor | int] = defaultdict(int)
        # Row ids and loss of each micro-batch since the last check that all losses are finite
        self._unchecked: list[tuple[list[str], torch.Tensor]] = []
        # Sums over the first steps, until teacher and student are compared
        self._first: dict[str, float] | None = defaultdict(float)

    def add_positions(self, mode: str, inputs: dict[str, Any]) -> None:
        """Counts the positions of a batch, of both sides, and those among them that are not padding."""
        for name in ("attention_mask", f"{TEACHER}attention_mask"):
            if name in inputs:
                mask = inputs[name]
                self._slots[mode] += torch.stack((mask.sum(), mask.new_full((), mask.numel())))

    def add_sums(self, mode: str, sums: torch.Tensor) -> None:
        """
        Adds what was measured on a micro-batch.

        Args:
            mode (`str`):
                `"train"` or `"eval"`.
            sums (`torch.Tensor`):
                In the order of `PAIR_SUMS`, or of `SFT_SUMS`.
        """
        self._sums[mode] += sums.double()

    def add_loss(self, row_ids: list[str], loss: torch.Tensor) -> None:
        """Keeps the loss of a micro-batch until the next reduction finds out whether it is finite."""
        self._unchecked.append((row_ids, loss.detach()))

    def forget(self, mode: str) -> None:
        """Drops what a loop has left that an error ended."""
        self._slots.pop(mode, None), self._sums.pop(mode, None)

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
            names = PAIR_SUMS if len(totals) == len(PAIR_SUMS) else SFT_SUMS
            means |= self._means(dict(zip(names, totals, strict=True)), mode)
        return means, bool(any_stop)

    def _means(self, sums: dict[str, float], mode: str) -> dict[str, float]:
        count = max(sums["num_tokens"], 1.0)
        means = {name: sums[of] / count for name, of in MEANS.items() if of in sums}
        if "teacher_correct" in sums:
            means["modality_gap"] = means["teacher_mean_token_accuracy"] - means["mean_token_accuracy"]
            if mode == "train":
                self.total_train_tokens += int(sums["input_tokens"])
                if self._first is not None:
                    for name, value in sums.items():
                        self._first[name] += value
            means["num_tokens"] = self.total_train_tokens
        return means

    def compare_sides(self, step: int, is_end: bool = False) -> str | None:
        """
        Returns, once, what is wrong if the teacher was clearly worse than the student over the first steps.

        Args:
            step (`int`):
                Number of optimizer steps taken.
            is_end (`bool`, *optional*, defaults to `False`):
                Whether the run ends before it had `FIRST_STEPS`.
        """
        if not self._first or step < FIRST_STEPS and not is_end:
            return None
        first, self._first = self._first, None
        names = ("ce", "teacher_ce", "correct", "teacher_correct")
        ce, teacher_ce, accuracy, teacher_accuracy = (first[name] / max(first["num_tokens"], 1) for name in names)
        if teacher_ce <= (1 + MARGIN) * ce and teacher_accuracy >= accuracy - MARGIN:
            return None
        return (
            f"The teacher predicts the answers worse from the text-rich side (cross-entropy {teacher_ce:.3g}, token "
            f"accuracy {teacher_accuracy:.1%}) than the student from the vision-rich side ({ce:.3g}, {accuracy:.1%}), "
            "so the KL term teaches what is worse. Check that the sides are not exchanged (`image_url_2`, "
            "`instruction_2` are the vision-rich ones), run stage 1 before this stage, or lower `lambda_kl`."
        )


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


class TokenMeans:
    """
    What [`~transformers.Trainer`] needs to log means over the answer tokens of all ranks: to be inherited before it,
    with `self._step_metrics` and `self.stop_requested` of [`PumaKLTrainer`].
    """

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        self._step_metrics.forget("eval")
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
        )
        means = self._measure("eval")
        if self.args.use_kl:
            means["loss"] = means["kl"] * self.args.lambda_kl + means["ce"] * (1 - self.args.lambda_kl)
        # means over the tokens of all ranks, where Trainer and TRL take means of batches
        self._metrics["eval"].clear()
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:
            self._metrics["train"] |= {name: [value] for name, value in self._measure("train").items()}
            if self.args.part_learning_rates and "learning_rate" in logs:
                logs |= {f"learning_rate/{group['part']}": group["lr"] for group in self.optimizer.param_groups}
            warning = self._step_metrics.compare_sides(self.state.global_step, is_end="train_runtime" in logs)
            if warning and self.is_world_process_zero():
                warnings.warn(warning)
        super().log(logs, start_time)

    def _measure(self, mode: str | None = None) -> dict[str, float]:
        """
        Returns the means since the last log, and in the same reduction tells all ranks of what one of them has seen.

        Stops the run, on all ranks, if a loss since the last call was NaN or infinite on one; saves and stops, on all
        ranks, if one was asked to.
        """
        try:
            means, stop = self._step_metrics.reduce(self.accelerator, mode, self.stop_requested)
        except NotFiniteError as error:
            raise FloatingPointError(
                f"The loss is not finite by step {self.state.global_step}: {error}. The last checkpoint in "
                f"{self.args.output_dir} was written before that and is good. Look at these rows, or lower "
                "`learning_rate` or `max_grad_norm`, then resume."
            ) from None
        if stop:
            self.stop_requested = self.control.should_training_stop = self.control.should_save = True
        return means

    def _save_checkpoint(self, model, trial):
        self._measure()  # nothing is saved after a loss that is not finite
        super()._save_checkpoint(model, trial)
