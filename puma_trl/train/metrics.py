"""What a run measures between two logs: sums on each rank, reduced over ranks once, and the means that are logged."""

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerState

from ..record.console import use_lines
from ..step.forward import SUMS
from .completions import ON_POLICY_SUMS, describe_on_policy
from .throughput import COUNTS, Clock, Costs, Work, count_rows, describe_speed, num_read, peak_flops, peak_memory
from .watch import Watch


# Sums of TRL's step in evaluation; those of the pair step are in the order of its output
SFT_SUMS = ("loss", "entropy", "correct", "num_tokens")
# Beside training and evaluation, the micro-batches of training whose answers the student has written
ON_POLICY = "on_policy"
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
    Sums since the last reduction, kept on the device, separately for training (`"train"`), its micro-batches whose
    answers the student has written (`"on_policy"`), and evaluation (`"eval"`).
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.total_train_tokens = 0
        self.clock = Clock()
        # What the model costs, and what the device can do, where both are known
        self.costs: Costs | None = None
        self.peak: float | None = None
        # Sums over answer tokens
        self._sums: dict[str, torch.Tensor | int] = defaultdict(int)
        self._work: dict[str, Work] = defaultdict(Work)
        # Row ids and loss of each micro-batch since the last check that all losses are finite
        self._unchecked: list[tuple[list[str], torch.Tensor]] = []
        # Sums over the first steps, until teacher and student are compared
        self._first: dict[str, float] | None = defaultdict(float)

    def add_positions(self, mode: str, inputs: dict[str, Any]) -> None:
        """Counts what a batch holds (see [`Work`])."""
        self._work[mode].add(inputs)

    def add_rows(self, batches: list[dict[str, Any]]) -> None:
        """Counts the rows of batches of training."""
        self._work["train"].rows += sum(count_rows(batch) for batch in batches)

    def add_sums(self, mode: str, sums: torch.Tensor) -> None:
        """
        Adds what was measured on a micro-batch.

        Args:
            mode (`str`):
                `"train"`, `"on_policy"` or `"eval"`.
            sums (`torch.Tensor`):
                In the order of `SUMS`, of `ON_POLICY_SUMS`, or of `SFT_SUMS`.
        """
        self._sums[mode] += sums.double()

    def add_loss(self, row_ids: list[str], loss: torch.Tensor) -> None:
        """Keeps the loss of a micro-batch until the next reduction finds out whether it is finite."""
        self._unchecked.append((row_ids, loss.detach()))

    def forget(self, mode: str) -> None:
        """Drops what a loop has left that an error ended."""
        self._work.pop(mode, None), self._sums.pop(mode, None)

    def begin(self, total_train_tokens: int) -> None:
        """Starts a training anew, or where another one has read so many tokens."""
        self.forget("train"), self.forget(ON_POLICY)
        self._unchecked = []
        self.total_train_tokens = total_train_tokens
        self.clock = Clock()

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
        work, sums = self._work.pop(mode, None), self._sums.pop(mode, None)
        on_policy = self._sums.pop(ON_POLICY, None) if mode == "train" else None
        counts = [] if work is None else [work.totals(self.device), self._of_ranks(accelerator)]
        counts += [each.double() for each in (sums, on_policy) if each is not None]
        unchecked, self._unchecked = self._unchecked, []
        losses = torch.stack([torch.zeros((), device=self.device), *(loss.float() for _, loss in unchecked)])
        bad = (~losses.isfinite()).any()[None].double()
        asked = torch.tensor([stop], dtype=torch.double, device=self.device)
        any_bad, any_stop, *totals = accelerator.reduce(torch.cat((bad, asked, *counts)), "sum").tolist()
        if any_bad:
            raise NotFiniteError([(rows, loss.item()) for rows, loss in unchecked if not loss.isfinite()])
        means = {}
        if work is not None:
            counted = dict(zip(COUNTS, totals, strict=False))
            waited, *memory = totals[len(COUNTS) : len(COUNTS) + 1 + accelerator.num_processes]
            totals = totals[len(COUNTS) + 1 + accelerator.num_processes :]
            means["padding_share"] = 1 - num_read(counted) / counted["slots"]
            if mode == "train":
                self.total_train_tokens += int(counted["tokens"])
                means["num_tokens"] = self.total_train_tokens
                means |= self._describe_speed(counted, waited, max(memory), accelerator.num_processes)
        if on_policy is not None:
            totals, answers = totals[: -len(ON_POLICY_SUMS)], totals[-len(ON_POLICY_SUMS) :]
            means |= describe_on_policy(dict(zip(ON_POLICY_SUMS, answers, strict=True)))
        if sums is not None:
            names = SUMS if len(totals) == len(SUMS) else SFT_SUMS
            means |= self._means(dict(zip(names, totals, strict=True)), mode)
        return means, bool(any_stop)

    def _of_ranks(self, accelerator: Accelerator) -> torch.Tensor:
        """Returns what is not a sum over ranks in a form that is: the mean of the waiting, the memory of each."""
        values = [0.0] * (1 + accelerator.num_processes)
        values[0] = self.clock.waited / accelerator.num_processes
        values[1 + accelerator.process_index] = peak_memory(self.device)
        return torch.tensor(values, dtype=torch.double, device=self.device)

    def _describe_speed(
        self, counted: dict[str, float], waited: float, memory: float, num_processes: int
    ) -> dict[str, float]:
        # the reduction has waited for the device, so the time is that of all steps
        seconds, flops, peak = self.clock.take(), None, None
        if self.costs is not None and self.peak is not None:
            flops, peak = self.costs.count(counted), self.peak * num_processes
        return describe_speed(counted, seconds, waited, memory, flops, peak)

    def _means(self, sums: dict[str, float], mode: str) -> dict[str, float]:
        count = max(sums["num_tokens"], 1.0)
        means = {name: sums[of] / count for name, of in MEANS.items() if of in sums}
        if "teacher_correct" not in sums:
            if mode == "train":
                del means["loss"]  # which Trainer logs
            return means
        means["modality_gap"] = means["teacher_mean_token_accuracy"] - means["mean_token_accuracy"]
        if mode == "eval":
            return means | {"num_tokens": self.total_train_tokens}
        if self._first is not None:
            for name, value in sums.items():
                self._first[name] += value
        # rows without an answer, of which a mean of 0 would look like a collapse
        return means if sums["num_tokens"] else {}

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


class AtBeginning(TrainerCallback):
    """Calls a function when a training begins, resumed or not."""

    def __init__(self, begin: Callable[[TrainerState], None]):
        self.begin = begin

    def on_train_begin(self, args, state, control, **kwargs):
        self.begin(state)


class TokenMeans:
    """
    What [`~transformers.Trainer`] needs to log means over the answer tokens of all ranks: to be inherited before it,
    with `self._step_metrics`, `self._is_pair_data` and `self.stop_requested` of [`PumaKLTrainer`].

    Attributes:
        is_stopping (`bool`):
            Whether all ranks know that one was asked to stop. `stop_requested` may be true on some alone, if a signal
            came after they last told each other.
    """

    is_stopping = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        use_lines(self)
        self.watch = Watch(self)
        for callback in (AtBeginning(self._begin_metrics), self.watch):
            self.add_callback(callback)

    def _begin_metrics(self, state: TrainerState) -> None:
        # what was read before the run was resumed; the batches after its last log are not in any file
        num_tokens = next((logs["num_tokens"] for logs in reversed(state.log_history) if "num_tokens" in logs), 0)
        self._total_train_tokens = num_tokens  # TRL's
        self._step_metrics.begin(num_tokens)
        self._has_told_left_out = False
        half = (torch.bfloat16, torch.float16)
        if self.args.device.type == "cuda" and (self.args.bf16 or self.args.fp16 or self.model.dtype in half):
            costs = Costs(self.model, self.teacher.model if self.args.teacher == "model" else None)
            is_known = all(each.is_known for each in costs.of_sides.values())
            self._step_metrics.costs = costs if is_known else None
            self._step_metrics.peak = peak_flops(torch.cuda.get_device_name(self.args.device))

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        clock = self._step_metrics.clock
        clock.start()
        batches, num_items = super().get_batch_samples(clock.watch(epoch_iterator), num_batches, device)
        self._step_metrics.add_rows(batches)
        return batches, num_items

    def pause_clock(self) -> None:
        """Leaves the time until the next step out of the pace that is logged."""
        if self.args.device.type == "cuda":
            torch.cuda.synchronize(self.args.device)  # what is under way belongs to the steps
        self._step_metrics.clock.stop()

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        self._step_metrics.forget("eval")
        self.pause_clock()
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
            means = self._measure("train")
            if not self._is_pair_data:  # TRL counts the tokens of texts, also where processes share a row
                means.pop("num_tokens", None)
            self._metrics["train"] |= {name: [value] for name, value in means.items()}
            self._tell_if_left_out(means)
            if self.args.part_learning_rates and "learning_rate" in logs:
                logs |= {f"learning_rate/{group['part']}": group["lr"] for group in self.optimizer.param_groups}
            warning = self._step_metrics.compare_sides(self.state.global_step, is_end="train_runtime" in logs)
            if warning and self.is_world_process_zero():
                warnings.warn(warning)
        super().log(logs, start_time)

    def _tell_if_left_out(self, means: dict[str, float]) -> None:
        """Warns once in a training if no sampled answer since the last log has counted."""
        if "completions/mean_length" not in means or "on_policy/kl" in means or self._has_told_left_out:
            return
        self._has_told_left_out = True
        if self.is_world_process_zero():
            warnings.warn(
                f"All answers sampled by step {self.state.global_step} since the last log were cut off at "
                f"`max_completion_length: {self.args.max_completion_length}`, and `mask_truncated_completions: true` "
                "leaves them out, so nothing was learned from them. Raise the one, or set the other to false."
            )

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
        self.is_stopping = stop
        if stop:
            self.stop_requested = True
            self.control.should_training_stop = self.control.should_save = True
        return means

    def _save_checkpoint(self, model, trial):
        self._measure()  # nothing is saved after a loss that is not finite
        self._step_metrics.clock.stop()
        super()._save_checkpoint(model, trial)
