"""Divides the global batches of a run among the data-parallel ranks."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nemo_chameleon.utils.arrays import Ints


@dataclass(frozen=True)
class BatchSampler:
    """The sample indices of this rank's micro-batches, from any iteration on.

    Iteration i draws samples [i·global, (i+1)·global), whatever the number of ranks that share
    them. A run therefore resumes at the right sample, also on another number of ranks.

    Attributes:
        first: the iteration to start from.
        iterations: number of iterations of the whole run.
        global_batch_size: samples per iteration.
        micro_batch_size: samples per micro-batch.
        rank: this rank among the data-parallel ranks.
        ranks: number of data-parallel ranks.
    """

    first: int
    iterations: int
    global_batch_size: int
    micro_batch_size: int
    rank: int
    ranks: int

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each micro-batch, in the order in which the schedule asks for them.

        Yields:
            `micro_batch_size` sample indices.
        """
        for iteration in range(self.first, self.iterations):
            start = iteration * self.global_batch_size
            indices = np.arange(start, start + self.global_batch_size)
            for micro_batch in self._mine(indices):
                yield micro_batch.tolist()

    def __len__(self) -> int:
        """Return the number of micro-batches from `first` to the end of the run."""
        steps = self.global_batch_size // (self.micro_batch_size * self.ranks)
        return (self.iterations - self.first) * steps

    def _mine(self, indices: Ints) -> Ints:
        return indices.reshape(-1, self.ranks, self.micro_batch_size)[:, self.rank]
