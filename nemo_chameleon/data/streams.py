"""A domain's samples, in an order that neither its weight nor the length of the run changes.

A stream goes over its domain in epochs, and draws the datasets of the domain evenly in each.
"""

import resource
from collections import OrderedDict
from typing import Any

import numpy as np

from nemo_chameleon.data.epochs import EpochDatasets, Epochs
from nemo_chameleon.mixture.order import DomainOrder

_FILES = 6  # open files of a dataset of Megatron
_OTHERS = 256  # open files for everything else in a process
_MOST = 4096  # Linux maps at most 65,530 files in a process


class OpenDatasets:
    """The datasets that a process has open: as many as its limit of open files allows."""

    def __init__(self) -> None:
        """Read the limit."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = _MOST if limit == resource.RLIM_INFINITY else (limit - _OTHERS) // _FILES
        self._most = min(_MOST, max(8, most))
        self._open: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def get(self, datasets: EpochDatasets, epochs: Epochs, prefix: str, epoch: int | None) -> Any:
        """Return a dataset, and close the one that was not used for longest if there are too many.

        Args:
            datasets: opens it.
            epochs: the epochs of its domain.
            prefix: of the dataset.
            epoch: number of the epoch; None for the head.

        Returns:
            Megatron's dataset.
        """
        folder = epochs.folder_of(epoch)
        if (key := (prefix, folder)) in self._open:
            self._open.move_to_end(key)
            return self._open[key]
        if len(self._open) >= self._most:
            self._open.popitem(last=False)
        self._open[key] = datasets.opened(epochs, prefix, epoch)
        return self._open[key]


class Stream:
    """The samples of a domain, by how many of them the run has drawn before."""

    def __init__(self, datasets: EpochDatasets, epochs: Epochs, opened: OpenDatasets) -> None:
        """Take the epochs of a domain; nothing is opened before a sample is asked for.

        Args:
            datasets: opens the epochs.
            epochs: what `datasets.found` returned, here or in another process.
            opened: the datasets that are open, of all streams of a run.
        """
        self._datasets, self.epochs, self._opened = datasets, epochs, opened
        self._prefixes = [prefix for prefix, size in epochs.sizes.items() if size]
        self._parts = None
        if len(self._prefixes) > 1:
            self._parts = DomainOrder([epochs.sizes[prefix] for prefix in self._prefixes])

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
        prefix = self._prefixes[0]
        if self._parts is not None:
            ats, places = self._parts.at(np.array([place]))
            prefix, place = self._prefixes[int(ats[0])], int(places[0])
        if self._datasets.reordered:
            epoch, place = 0, epoch * self.epochs.sizes[prefix] + place
        return self._sample(prefix, epoch, place)

    def _sample(self, prefix: str, epoch: int | None, place: int) -> dict[str, Any]:
        dataset = self._opened.get(self._datasets, self.epochs, prefix, epoch)
        sample: dict[str, Any] = dataset[place]
        return sample
