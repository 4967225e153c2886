"""Length-grouped sampling whose order depends on the seed and the epoch alone."""

from collections.abc import Iterator

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class EpochLengthGroupedSampler(LengthGroupedSampler):
    """
    transformers' length-grouped sampler with an order of its own for every epoch.

    Without a generator it draws from the global random state, which differs in a run that is resumed in a later epoch,
    and may differ between ranks, each of which takes its part of what must be the same order.

    Args:
        batch_size (`int`):
            Number of rows that are to be of similar length.
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
