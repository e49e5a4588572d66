"""The epochs of a domain, each an index of Megatron in a folder of its own in data.cache.

An epoch has all samples of the domain once. The seed, the domain's name and the number of the epoch
decide their order, so a run with other weights, neighbours or length finds the same epochs there.
Megatron builds the index of an epoch as that of a dataset without a number of samples.
"""

import json
from collections.abc import Mapping
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
from nemo_chameleon.data.megatron_indices import facts_of, found_folder
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import write_atomically
from nemo_chameleon.utils.seeding import key_of

SIZES = "samples.json"
"""The file in an epoch's folder with the number of samples of each dataset."""


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

    def folder_of(self, epoch: int | None) -> str:
        """Return the folder of an epoch, by number, or of the head, by None."""
        if epoch is not None:
            return self.folders[epoch]
        assert self.head is not None
        return self.head.folder


@dataclass(frozen=True)
class Head:
    """The samples of a domain as a blend of Megatron has them, by which a run has begun.

    Attributes:
        samples: the number of samples, of whole epochs, that Megatron has put in order.
        folder: the folder of their index.
        asked: the number of samples that Megatron was asked for.
    """

    samples: int
    folder: str
    asked: int


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

    def found(self, samples: int, blended: int | None = None) -> Epochs | None:
        """Find the indices of all epochs that a run draws from, and verify them.

        Args:
            samples: how many samples of the domain the run draws.
            blended: how many samples of the domain Megatron was asked for in a blend by which the
                run has begun; None for none.

        Returns:
            The epochs; None if indices are not there.

        Raises:
            UserError: the domain does not fill a sample, or the indices cannot be read.
        """
        return self._found(samples, blended, make=False)

    def made(self, samples: int, blended: int | None = None) -> Epochs:
        """Find the indices as `found` does, and make those that are not there.

        Other processes may do the same. In a process group, Megatron makes indices on the first
        rank alone.

        Args:
            samples: as for `found`.
            blended: as for `found`.

        Returns:
            The epochs.

        Raises:
            UserError: as for `found`, or the indices cannot be written.
        """
        epochs = self._found(samples, blended, make=True)
        assert epochs is not None
        return epochs

    def _found(self, samples: int, blended: int | None, make: bool) -> Epochs | None:
        head, epochs = None, Epochs({}, ())
        if blended is not None and not self.reordered:  # else one order serves all epochs
            head = self._head(blended, make)
            if head is None:
                return None
            samples -= head.samples
        wanted = 1
        while len(epochs.folders) < wanted:
            found = self._epoch(len(epochs.folders), make)
            if found is None:
                return None
            folder, sizes = found
            epochs = Epochs(sizes, (*epochs.folders, folder), head)
            if not self.reordered:
                wanted = -(-samples // epochs.samples)
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
        found = self._epoch(number, make=True)
        assert found is not None
        return found

    def _epoch(self, number: int, make: bool) -> tuple[str, dict[str, int]] | None:
        fill = partial(self._make, number)
        folder = found_folder(self._data.cache, self._facts(number), fill if make else None)
        if folder is None:
            return None
        sizes: dict[str, int] = json.loads((folder / SIZES).read_text())
        if not sum(sizes.values()):
            raise UserError(
                f"domain {self._domain.name!r}: no part of it has the {self._seq_length + 1} "
                "tokens of a sample: add data to it, or remove the domain"
            )
        return str(folder), sizes

    def opened(self, epochs: Epochs, prefix: str, epoch: int | None) -> Any:
        """Open a dataset.

        Args:
            epochs: what `found` returned, here or in another process.
            prefix: of the dataset.
            epoch: number of the epoch; None for the head.

        Returns:
            Megatron's dataset.

        Raises:
            UserError: it has another number of samples than it had for `found`.
        """
        head = epochs.head if epoch is None else None
        expected = epochs.sizes[prefix] if head is None else head.samples
        asked = None if head is None else head.asked
        dataset = self._dataset(prefix, epoch, epochs.folder_of(epoch), asked)
        if (found := len(dataset)) != expected:
            raise UserError(
                f"{prefix} has {found:,} samples now, and had {expected:,} when the run started: "
                "do not change data while a run uses them"
            )
        return dataset

    def _head(self, asked: int, make: bool) -> Head | None:
        (prefix,) = self._domain.datasets

        def fill(cache: str) -> None:
            size = len(self._dataset(prefix, None, cache, asked))
            write_atomically(Path(cache) / SIZES, json.dumps({prefix: size}) + "\n")

        facts = [*self._facts(None), asked]
        folder = found_folder(self._data.cache, facts, fill if make else None)
        if folder is None:
            return None
        return Head(json.loads((folder / SIZES).read_text())[prefix], str(folder), asked)

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
        low_level = kind.build_low_level_dataset(prefix, config)
        # As Megatron's builder divides it.
        share, count = config.split_matrix[0], kind.numel_low_level_dataset(low_level)
        first, stop = (round(end * float(count)) for end in share)
        indices = np.arange(first, stop, dtype=np.int32)
        return kind(low_level, prefix, indices, samples, Split.train, config)
