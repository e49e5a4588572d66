"""A domain's samples, in an order that neither its weight nor the length of the run changes.

A stream goes over its domain in epochs, and draws the datasets of the domain evenly in each.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from nemo_chameleon.data.epochs import EpochDatasets, Epochs
from nemo_chameleon.mixture.order import DomainOrder
from nemo_chameleon.utils.arrays import Ints

_BLOCK = 1 << 12  # samples whose order is computed together
_KEPT = 2  # epochs whose indices stay open


class Blocks:
    """An order of which any part can be computed, read one sample at a time."""

    def __init__(self, draws: Callable[[int, int], tuple[Ints, Ints]], samples: int) -> None:
        """Take what computes a part of the order, and the number of all samples."""
        self._draws, self._samples = draws, samples
        self._first, self._block = -1, (np.zeros(0, np.int64), np.zeros(0, np.int64))

    def at(self, number: int) -> tuple[int, int]:
        """Return what `draws` returns for one sample.

        Args:
            number: of the sample.

        Returns:
            What the sample is of, and its number there.
        """
        first = number - number % _BLOCK
        if first != self._first:
            self._block = self._draws(first, min(first + _BLOCK, self._samples))
            self._first = first
        return int(self._block[0][number - first]), int(self._block[1][number - first])


class Stream:
    """The samples of a domain, by how many of them the run has drawn before."""

    def __init__(self, datasets: EpochDatasets, epochs: Epochs) -> None:
        """Take the epochs of a domain; nothing is opened before a sample is asked for.

        Args:
            datasets: opens the epochs.
            epochs: what `datasets.found` returned, here or in another process.
        """
        self._datasets, self.epochs = datasets, epochs
        self._prefixes = [prefix for prefix, size in epochs.sizes.items() if size]
        self._open: dict[tuple[str, int | None], Any] = {}
        self._parts = None
        if len(self._prefixes) > 1:
            order = DomainOrder([epochs.sizes[prefix] for prefix in self._prefixes])
            self._parts = Blocks(order.draws, epochs.samples)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return a sample.

        Args:
            number: how many of the domain's samples are drawn before it.

        Returns:
            Tensors by name.
        """
        head = self.epochs.head
        if head is not None and number < head.samples:
            return self._sample(self._prefixes[0], None, number)
        number -= head.samples if head is not None else 0
        epoch, place = divmod(number, self.epochs.samples)
        at, place = (0, place) if self._parts is None else self._parts.at(place)
        prefix = self._prefixes[at]
        if self._datasets.reordered:
            epoch, place = 0, epoch * self.epochs.sizes[prefix] + place
        return self._sample(prefix, epoch, place)

    def _sample(self, prefix: str, epoch: int | None, place: int) -> dict[str, Any]:
        if (prefix, epoch) not in self._open:
            for key in [key for key in self._open if (key[1] or 0) <= (epoch or 0) - _KEPT]:
                del self._open[key]
            self._open[prefix, epoch] = self._datasets.opened(self.epochs, prefix, epoch)
        sample: dict[str, Any] = self._open[prefix, epoch][place]
        return sample
