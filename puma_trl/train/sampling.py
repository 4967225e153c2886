"""Which rows a rank reads, and which of them count: an order by seed and epoch alone, and no row twice in an epoch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..config import PumaKLConfig
from ..data.collator import TEACHER
from ..errors import DataError


class EpochLengthGroupedSampler(LengthGroupedSampler):
    """
    transformers' length-grouped sampler with an order of its own for every epoch.

    Workaround (transformers 5.23, huggingface/transformers#48025): without a generator, which that change gives to
    evaluation alone, it draws from the global random state. That differs in a run that is resumed in a later epoch,
    and may differ between ranks, each of which takes its part of what must be the same order. Besides, transformers
    groups by the rows of one process, which makes another order of each number of processes.

    Args:
        batch_size (`int`):
            Number of rows that are to be of similar length: those of an optimizer step, on all processes.
        lengths (`list[int]`):
            Length of every row.
        seed (`int`):
            Seed of the order.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch; the trainer calls it before each."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return super().__iter__()


def require_batches(dataset: Dataset | IterableDataset | None, args: PumaKLConfig) -> None:
    """
    Sees that there is something to train on: Trainer would end at step 0 as if all were done.

    Raises:
        DataError: if `dataloader_drop_last` drops all rows.
    """
    if not args.dataloader_drop_last or not hasattr(dataset, "__len__"):
        return
    rows = args.per_device_train_batch_size * args.world_size
    if len(dataset) < rows:
        raise DataError(
            f"`dataloader_drop_last: true` leaves nothing to train on: the train data have {len(dataset):,} rows, and "
            f"a batch of {args.world_size} processes {rows:,}. Set it to false, or lower "
            "`per_device_train_batch_size`."
        )


@contextmanager
def keep_last(args: PumaKLConfig) -> Iterator[None]:
    """Evaluates on all rows: `dataloader_drop_last` is for steps of one size, and Trainer has it for both."""
    asked, args.dataloader_drop_last = args.dataloader_drop_last, False
    try:
        yield
    finally:
        args.dataloader_drop_last = asked


def count_real_rows(
    batch: dict[str, Any], accelerator: Accelerator, drops_last: bool, padding_free: bool
) -> int | None:
    """
    Returns how many rows of a batch count, if others behind them are there only to fill the last batch of an epoch;
    the arguments are those of [`mask_repeated_rows`].
    """
    state, num_processes = accelerator.gradient_state, accelerator.num_processes
    if num_processes == 1 or drops_last or not state.end_of_dataloader or padding_free:
        return None
    dataset = state.active_dataloader.dataset
    if "labels" not in batch or isinstance(dataset, torch.utils.data.IterableDataset):
        return None
    # Workaround (accelerate 1.15, huggingface/accelerate#4235): its `remainder` is unknown in an epoch that is resumed
    batch_size = len(batch["row_id"]) if "row_id" in batch else batch["labels"].shape[0]
    remainder = len(dataset) % (batch_size * num_processes)
    num_real = max(remainder - accelerator.process_index * batch_size, 0)
    return num_real if remainder and num_real < batch_size else None


def mask_repeated_rows(batch: dict[str, Any], accelerator: Accelerator, drops_last: bool, padding_free: bool) -> None:
    """
    Takes the rows that accelerate repeats to fill the last batch of an epoch out of the loss.

    Ranks must run the same number of batches, so the last ones are filled with rows from the start of the data.
    Counted twice, they would make the result depend on the number of processes. In TRL's padding-free batches
    (packing) rows are not told apart, and count.

    Args:
        batch (`dict[str, Any]`):
            A collated batch, whose `labels` and `answer_positions` are changed.
        accelerator ([`~accelerate.Accelerator`]):
            Knows the data loader and the ranks.
        drops_last (`bool`):
            Whether the last batch is dropped where rows are missing.
        padding_free (`bool`):
            Whether batches are TRL's padding-free ones.
    """
    num_real = count_real_rows(batch, accelerator, drops_last, padding_free)
    if num_real is None:
        return
    for side in ("", TEACHER):
        if f"{side}labels" not in batch:
            continue
        if f"{side}cu_seq_lens_q" not in batch:
            batch[f"{side}labels"][num_real:] = -100
            continue
        start = int(batch[f"{side}cu_seq_lens_q"][num_real])
        batch[f"{side}labels"][:, start:] = -100
        if f"{side}answer_positions" in batch:
            positions = batch[f"{side}answer_positions"]
            batch[f"{side}answer_positions"] = positions[positions + 1 < start]
