"""A domain's samples, in an order that neither its weight nor the length of the run changes.

A stream goes over its domain in epochs. Each epoch has all samples once, in an order decided by the
seed, the domain's name and the number of the epoch. Megatron builds the index of an epoch as that
of a dataset without a number of samples. The indices lie in data.cache, one folder for each epoch,
so a run with other weights finds them there.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from megatron.core.datasets.utils import Split

from nemo_chameleon.config.data import DataConfig
from nemo_chameleon.data.blend import dataset_config
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.data.megatron_indices import facts_of, made_folder
from nemo_chameleon.mixture.order import DomainOrder
from nemo_chameleon.utils.arrays import Ints
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import write_atomically
from nemo_chameleon.utils.seeding import key_of

SIZES = "samples.json"
"""The file in an epoch's folder with the number of samples of each dataset."""
_BLOCK = 1 << 12  # samples whose order is computed together
_KEPT = 2  # epochs whose indices stay open


@dataclass(frozen=True)
class Epochs:
    """The epochs of a domain, as the first rank has found or made them.

    Attributes:
        sizes: samples of an epoch by the prefix of each dataset.
        folders: the folder of each epoch's indices.
        head: the domain in the order of a blend, which comes before the epochs; None for none.
    """

    sizes: Mapping[str, int]
    folders: tuple[str, ...]
    head: "Head | None" = None

    @property
    def samples(self) -> int:
        """Samples of an epoch."""
        return sum(self.sizes.values())


@dataclass(frozen=True)
class Head:
    """The samples of a domain as a blend of Megatron has them, by which a run has begun.

    Attributes:
        folder: the folder of their index.
        asked: the number of samples that Megatron was asked for.
        samples: the number of samples, of whole epochs, that Megatron has put in order.
    """

    folder: str
    asked: int
    samples: int


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

    def __init__(
        self, epochs: Epochs, open_epoch: Callable[[str, int | None], Any], reordered: bool
    ) -> None:
        """Take the epochs of a domain; nothing is opened before a sample is asked for.

        Args:
            epochs: the epochs.
            open_epoch: opens a dataset of the domain, by prefix, for an epoch, by number; or for
                the head of the domain, by None.
            reordered: whether a dataset has all epochs, each in its own order.
        """
        self._epochs, self._open_epoch, self._reordered = epochs, open_epoch, reordered
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
        head = self._epochs.head
        if head is not None and number < head.samples:
            return self._sample(self._prefixes[0], None, number)
        number -= head.samples if head is not None else 0
        epoch, place = divmod(number, self._epochs.samples)
        at, place = (0, place) if self._parts is None else self._parts.at(place)
        prefix = self._prefixes[at]
        if self._reordered:
            epoch, place = 0, epoch * self._epochs.sizes[prefix] + place
        return self._sample(prefix, epoch, place)

    def _sample(self, prefix: str, epoch: int | None, place: int) -> dict[str, Any]:
        if (prefix, epoch) not in self._open:
            for key in [key for key in self._open if (key[1] or 0) <= (epoch or 0) - _KEPT]:
                del self._open[key]
            self._open[prefix, epoch] = self._open_epoch(prefix, epoch)
        sample: dict[str, Any] = self._open[prefix, epoch][place]
        return sample


class EpochDatasets:
    """Makes and opens the datasets of a domain's epochs."""

    def __init__(
        self,
        data: DataConfig,
        domain: Domain,
        *,
        seq_length: int,
        seed: int,
        dataset_class: type | None = None,
    ) -> None:
        """Take a domain.

        Args:
            data: the data configuration.
            domain: the domain.
            seq_length: tokens per sample.
            seed: the run's seed.
            dataset_class: a class of datasets; None for the one of data.dataset.
        """
        self._data, self._domain = data, domain
        self._seq_length, self._seed, self._class = seq_length, seed, dataset_class
        self.reordered = kind_of(data).reorders_epochs
        self._low_level: dict[str, tuple[Any, Ints]] = {}

    def made(self, samples: int, blended: int | None = None) -> Epochs:
        """Find the indices of all epochs that a run draws from, and make those that are not there.

        One process at a time needs to call it for a domain; others may do the same.

        Args:
            samples: how many samples of the domain the run draws.
            blended: how many samples of the domain Megatron was asked for in a blend by which the
                run has begun; None for none.

        Returns:
            The epochs.

        Raises:
            UserError: the domain does not fill a sample, or the indices cannot be written.
        """
        epochs = Epochs({}, (), self._head(blended))
        if epochs.head is not None:
            samples -= epochs.head.samples
        while not epochs.folders or (
            not self.reordered and len(epochs.folders) * epochs.samples < samples
        ):
            folder, sizes = self.made_epoch(len(epochs.folders))
            epochs = replace(epochs, sizes=sizes, folders=(*epochs.folders, folder))
        self._low_level.clear()  # a run has thousands of files, and opens those that it draws from
        return epochs

    def made_epoch(self, number: int) -> tuple[str, dict[str, int]]:
        """Find the indices of one epoch, or make them; see `made`.

        Args:
            number: of the epoch, from 0.

        Returns:
            The folder of the indices, and the samples of the epoch by the prefix of each dataset.

        Raises:
            UserError: the domain does not fill a sample, or the indices cannot be written.
        """
        facts, make = partial(self._facts, number), partial(self._make, number)
        folder = made_folder(self._data.cache, facts, make)
        sizes: dict[str, int] = json.loads((folder / SIZES).read_text())
        if not sum(sizes.values()):
            raise UserError(
                f"domain {self._domain.name!r}: no part of it has the {self._seq_length + 1} "
                "tokens of a sample: add data to it, or remove the domain"
            )
        return str(folder), sizes

    def stream(self, epochs: Epochs) -> Stream:
        """Return the domain's samples.

        Args:
            epochs: what `made` returned, here or in another process.

        Returns:
            The stream.
        """

        def open_epoch(prefix: str, epoch: int | None) -> Any:
            if epoch is not None:
                expected = epochs.sizes[prefix]
                dataset = self._dataset(prefix, epoch, epochs.folders[epoch])
            else:
                assert epochs.head is not None
                expected, folder = epochs.head.samples, epochs.head.folder
                dataset = self._dataset(prefix, None, folder, epochs.head.asked)
            if (found := len(dataset)) != expected:
                raise UserError(
                    f"{prefix} has {found:,} samples now, and had {expected:,} when the run "
                    "started: do not change data while a run uses them"
                )
            return dataset

        return Stream(epochs, open_epoch, self.reordered)

    def _head(self, asked: int | None) -> Head | None:
        if asked is None or self.reordered:  # such a dataset has one order for all epochs
            return None
        if len(self._domain.datasets) > 1:
            raise UserError(
                f"domain {self._domain.name!r} has several parts, whose order in Megatron's blend "
                "cannot be continued: set data.on_mixture_change=accept, which may repeat samples, "
                "or begin the next run with data.order=streams"
            )
        (prefix,) = self._domain.datasets

        def make(cache: str) -> None:
            size = len(self._dataset(prefix, None, cache, asked))
            write_atomically(Path(cache) / SIZES, json.dumps({prefix: size}) + "\n")

        folder = made_folder(self._data.cache, lambda: [*self._facts(None), asked], make)
        return Head(str(folder), asked, json.loads((folder / SIZES).read_text())[prefix])

    def _make(self, epoch: int, cache: str) -> None:
        sizes = {p: self._size(p, epoch, cache) for p in self._domain.datasets}
        write_atomically(Path(cache) / SIZES, json.dumps(sizes, indent=2) + "\n")

    def _size(self, prefix: str, epoch: int, cache: str) -> int:
        # Megatron fails on a part that does not fill a sample.
        if not self.reordered and self._domain.datasets[prefix] <= self._seq_length:
            return 0
        return len(self._dataset(prefix, epoch, cache))

    def _facts(self, epoch: int | None) -> list[Any]:
        kind, config = self._config(epoch, [*self._domain.datasets])
        return ["head" if epoch is None else "epoch", *facts_of(kind, config, [self._domain])]

    def _config(self, epoch: int | None, prefixes: list[str], cache: str = "") -> tuple[type, Any]:
        seed = self._seed
        if not self.reordered and epoch is not None:
            key = key_of("order of an epoch", self._seed, self._domain.name, epoch)
            seed = int.from_bytes(key[:4])
        data = replace(self._data, cache=cache or self._data.cache)
        kind, config = dataset_config(
            data, [self._domain], self._seq_length, seed, (prefixes, None)
        )
        config.split_matrix = [config.split_matrix[0], None, None]
        return self._class or kind, config

    def _dataset(
        self, prefix: str, epoch: int | None, cache: str, samples: int | None = None
    ) -> Any:
        kind: Any
        kind, config = self._config(epoch, [prefix], cache)
        if prefix not in self._low_level:
            low_level = kind.build_low_level_dataset(prefix, config)
            # As Megatron's builder divides it.
            share, count = config.split_matrix[0], kind.numel_low_level_dataset(low_level)
            first, stop = (round(end * float(count)) for end in share)
            self._low_level[prefix] = low_level, np.arange(first, stop, dtype=np.int32)
        low_level, indices = self._low_level[prefix]
        return kind(low_level, prefix, indices, samples, Split.train, config)
