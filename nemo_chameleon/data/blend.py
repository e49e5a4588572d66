"""Megatron datasets for a mixture: blended for training, one per domain for validation.

Megatron's own builder builds them all. A mixture decides its `blend` and nothing else.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig

from nemo_chameleon.config.schema import DataConfig
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.kind import kind_of
from nemo_chameleon.data.token_shares import sample_shares
from nemo_chameleon.data.vocabulary import Vocabulary
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.utils.arrays import Ints

_SMALL_RUN = 10_000  # samples


def training_dataset(
    data: DataConfig,
    domains: Mapping[str, Domain],
    mixture: Mixture,
    *,
    samples: int,
    seq_length: int,
    seed: int,
) -> Any:
    """Build the blended training set; every rank must call it.

    Args:
        data: the configuration.
        domains: opened, by name.
        mixture: what they are drawn by.
        samples: that the run draws.
        seq_length: tokens of a sample.
        seed: of the order of the samples.

    Returns:
        A BlendedDataset of at least `samples` samples, whose first `samples` follow the mixture
        within one a domain. A sample's `dataset_id` is its domain's position in `domains`.
    """
    prefixes, weights = mixture.blend({name: domain.prefix for name, domain in domains.items()})
    if data.unit == "tokens":
        sizes = {"samples": samples, "seq_length": seq_length, "seed": seed}
        shares = sample_shares(dict(zip(domains, weights, strict=True)), domains, **sizes)
        weights = list(shares.values())
    kind, config = dataset_config(data, domains.values(), seq_length, seed, (prefixes, weights))
    # Where a domain gives a handful of samples, rounding can ask for more than the default surplus
    # holds, and Megatron then refuses to build.
    if samples < _SMALL_RUN:
        config.mid_level_dataset_surplus = 0.5
    # Validation is by domain, below: a blended set would say less, and small ones overflow.
    config.split_matrix = [config.split_matrix[0], None, None]
    return BlendedMegatronDatasetBuilder(kind, [samples, 0, 0], lambda: True, config).build()[0]


def validation_datasets(
    data: DataConfig, domains: Mapping[str, Domain], *, seq_length: int, seed: int
) -> dict[str, Any]:
    """Build one pass over each domain's validation split, and over all of data.validation's sets.

    Every rank must call it. `DataKind.require_samples` says beforehand whether there is enough.

    Returns:
        Datasets by name: the domains come first, whether they have sets of their own or not.
    """
    held_out, datasets = kind_of(data).open_validation(data, domains, seq_length), {}
    for name, domain in {**domains, **held_out}.items():
        kind, config = dataset_config(data, [domain], seq_length, seed, ([domain.prefix], None))
        part = (0.0, 1.0) if name in held_out else config.split_matrix[1]
        config.split_matrix = [None, part, None]
        sizes = [None, None, None]
        datasets[name] = BlendedMegatronDatasetBuilder(kind, sizes, lambda: True, config).build()[1]
    return datasets


def dataset_config(
    data: DataConfig,
    domains: Iterable[Domain],
    seq_length: int,
    seed: int,
    blend: tuple[list[str], list[float] | None],
) -> tuple[type, GPTDatasetConfig]:
    """Return the class of Megatron's datasets over some domains, and their configuration."""
    settings: dict[str, Any] = {
        "blend": blend,
        "random_seed": seed,
        "sequence_length": seq_length,
        "split": data.split,
        "path_to_cache": data.cache,
        "tokenizer": Vocabulary.of(data, [domain.fingerprint for domain in domains]),
        "reset_position_ids": False,
        "reset_attention_mask": False,
        "eod_mask_loss": False,
        "create_attention_mask": False,
    }
    return kind_of(data).dataset_config(data, settings)


@dataclass(frozen=True)
class BatchSampler:
    """Indices of this rank's micro-batches, from any iteration on.

    Iteration i draws samples [i·global, (i+1)·global) however many ranks share them, so a run
    goes on at the right sample after a restart, on another number of ranks too.
    """

    first: int
    iterations: int
    global_batch_size: int
    micro_batch_size: int
    rank: int
    ranks: int

    def __iter__(self) -> Iterator[list[int]]:
        """Micro-batches in the order the schedule asks for them."""
        for iteration in range(self.first, self.iterations):
            start = iteration * self.global_batch_size
            indices = np.arange(start, start + self.global_batch_size)
            for micro_batch in self._mine(indices):
                yield micro_batch.tolist()

    def __len__(self) -> int:
        """Micro-batches in all."""
        steps = self.global_batch_size // (self.micro_batch_size * self.ranks)
        return (self.iterations - self.first) * steps

    def _mine(self, indices: Ints) -> Ints:
        return indices.reshape(-1, self.ranks, self.micro_batch_size)[:, self.rank]
