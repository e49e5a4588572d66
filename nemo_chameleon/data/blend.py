"""Megatron's datasets for a mixture: one blended for training, one per domain for validation.

Megatron's own builder builds all of them. The mixture decides the builder's `blend` and nothing
else. Where a domain has several datasets, they are blended first, and then the domains, so that the
domains follow one another as if each were one dataset.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.core.datasets.utils import normalize
from torch.utils.data import ConcatDataset, Dataset, Subset

from nemo_chameleon.config.data import DataConfig
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.data.loading import loading_settings, map_order, set_loading
from nemo_chameleon.data.megatron_indices import facts_of, with_indices
from nemo_chameleon.data.token_shares import sample_shares
from nemo_chameleon.data.vocabulary import Vocabulary
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.mixture.datasets import blend_of

_SMALL_RUN = 10_000  # samples
_SURPLUS_OF_SMALL = 0.5


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
        data: the data configuration.
        domains: the opened domains by name.
        mixture: the weights that samples are drawn by.
        samples: number of samples that the run draws.
        seq_length: tokens per sample.
        seed: seed of the order of the samples.

    Returns:
        A BlendedDataset of at least `samples` samples. Its first `samples` follow the mixture to
        within one sample per domain, and a domain's samples follow the tokens of its datasets to
        within one sample per dataset. A sample's `dataset_id` is its domain's position in
        `domains`.
    """
    mixture.require_domains(domains)
    weights = {name: float(mixture.weights[name]) for name in domains}
    sizes: dict[str, Any] = {"seq_length": seq_length, "seed": seed}
    if data.unit == "tokens":
        weights = sample_shares(weights, domains, samples=samples, **sizes)
    kind, config = dataset_config(data, domains.values(), seq_length, seed, ([], None))

    def facts() -> Any:
        return ["training", *facts_of(kind, config, domains.values()), [*weights.items()], samples]

    def build(cache: str, here: Callable[[], bool]) -> Any:
        blend = _blend_of_domains if _any_has_several(domains) else _blend_of_datasets
        prefixes = [prefix for domain in domains.values() for prefix in domain.datasets]
        builder = _Builder(here, loading_settings(kind, config, cache, prefixes))
        placed = replace(data, cache=cache)
        return blend(placed, domains, weights, builder, samples=samples, **sizes)

    return with_indices(data.cache, facts, build)


def _any_has_several(domains: Mapping[str, Domain]) -> bool:
    return any(len(domain.datasets) > 1 for domain in domains.values())


@dataclass(frozen=True)
class _Builder:
    """Megatron's builder on this rank.

    Attributes:
        here: returns whether a dataset is built on this rank.
        settings: those of datasets whose indices are whole.
    """

    here: Callable[[], bool]
    settings: Mapping[str, Any]

    def build(self, kind: type, config: GPTDatasetConfig, sizes: list[int | None]) -> Any:
        """Build the datasets of the three splits."""
        kind = set_loading(kind, config, self.settings)
        return BlendedMegatronDatasetBuilder(kind, sizes, self.here, config).build()


def _blend_of_datasets(
    data: DataConfig,
    domains: Mapping[str, Domain],
    weights: Mapping[str, float],
    builder: _Builder,
    *,
    samples: int,
    seq_length: int,
    seed: int,
) -> Any:
    """Blend domains of one dataset each."""
    blend = blend_of(weights, {name: domain.datasets for name, domain in domains.items()})
    kind, config = dataset_config(data, domains.values(), seq_length, seed, blend)
    # When a domain gives only a few samples, rounding can need more of them than Megatron's default
    # surplus provides, and Megatron then refuses to build the dataset.
    if samples < _SMALL_RUN:
        config.mid_level_dataset_surplus = _SURPLUS_OF_SMALL
    return map_order(_training_split(kind, config, samples, builder))


def _training_split(kind: type, config: GPTDatasetConfig, samples: int, builder: _Builder) -> Any:
    # Validation datasets are built per domain below: a blended one would tell less, and Megatron
    # fails on it when domains are small.
    config.split_matrix = [config.split_matrix[0], None, None]
    return builder.build(kind, config, [samples, 0, 0])[0]


class _OfDomain(Dataset[dict[str, Any]]):
    """The samples of one domain, as a BlendedDataset of domains takes them."""

    def __init__(self, samples: Any) -> None:
        self._samples = samples
        self.index_split = getattr(samples, "index_split", None) or samples.split
        self.unique_identifiers = {"domain": samples.unique_description_hash}

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self._samples[index]
        return {name: value for name, value in sample.items() if name != "dataset_id"}


def _blend_of_domains(
    data: DataConfig,
    domains: Mapping[str, Domain],
    weights: Mapping[str, float],
    builder: _Builder,
    *,
    samples: int,
    seq_length: int,
    seed: int,
) -> Any:
    """Blend the datasets of each domain, and then the domains."""
    # One blend of all datasets would draw the same shares. But Megatron's blend takes datasets of
    # equal weight one directly after the other, and a domain may have hundreds of them.
    wanted = [math.ceil(weight * samples) for weight in normalize(list(weights.values()))]
    surplus = _surplus(len(domains), samples)
    built = []
    for domain, count in zip(domains.values(), wanted, strict=True):
        prefixes, shares = blend_of({domain.name: 1.0}, {domain.name: domain.datasets})
        several = len(prefixes) > 1
        blend = (prefixes, shares if several else None)
        kind, config = dataset_config(data, [domain], seq_length, seed, blend)
        count = math.ceil(count * (1 + surplus))
        if several:
            config.mid_level_dataset_surplus = _surplus(len(prefixes), count)
        split = _training_split(kind, config, count, builder)
        built.append(None if split is None else _OfDomain(split))
    _, config = dataset_config(data, domains.values(), seq_length, seed, ([], None))
    return BlendedMegatronDatasetBuilder.build_generic_dataset(
        BlendedDataset,
        builder.here,
        True,
        built,
        list(weights.values()),
        sum(wanted),
        config,
    )


def _surplus(datasets: int, samples: int) -> float:
    """Return a surplus of each dataset's samples with which rounding never needs more of them.

    Megatron rounds every dataset's share up, so that the blend has up to `datasets` more samples.
    """
    return max(float(GPTDatasetConfig.mid_level_dataset_surplus), (datasets + 1) / samples)


def blended_sizes(weights: Mapping[str, float], samples: int) -> dict[str, int]:
    """Return how many samples of each domain Megatron's builder asks for, to blend them.

    Args:
        weights: the blend's weights by domain name, in its order; each domain has one dataset.
        samples: number of samples of the blend.

    Returns:
        Samples by domain name.
    """
    surplus = (
        _SURPLUS_OF_SMALL
        if samples < _SMALL_RUN
        else float(GPTDatasetConfig.mid_level_dataset_surplus)
    )
    shares = normalize(list(weights.values()))
    wanted = [math.ceil(math.ceil(samples * share) * (1 + surplus)) for share in shares]
    return dict(zip(weights, wanted, strict=True))


def validation_datasets(
    data: DataConfig, domains: Mapping[str, Domain], *, seq_length: int, seed: int
) -> dict[str, Any]:
    """Build one pass over each domain's validation split and over each set of data.validation.

    Where they have several datasets, the pass goes over all that fill a sample, in turn. A set
    named like a domain replaces that domain's validation split. Every rank must call it.
    `DataKind.require_samples` checks beforehand that there is enough data.

    Args:
        data: the data configuration.
        domains: the opened domains by name.
        seq_length: tokens per sample.
        seed: seed of the order of the samples.

    Returns:
        Datasets by name: first one for each domain, then the other sets of data.validation.
    """
    held_out = kind_of(data).open_validation(data, domains, seq_length)
    everything = {**domains, **held_out}
    prefixes = {
        name: domain.evaluated(seq_length, whole=name in held_out)
        for name, domain in everything.items()
    }

    def config_of(name: str, cache: str) -> tuple[type, GPTDatasetConfig]:
        placed, blend = replace(data, cache=cache), (prefixes[name], None)
        kind, config = dataset_config(placed, [everything[name]], seq_length, seed, blend)
        part = (0.0, 1.0) if name in held_out else config.split_matrix[1]
        config.split_matrix = [None, part, None]
        return kind, config

    def facts() -> Any:
        return [
            facts_of(*config_of(name, data.cache), [domain], prefixes[name])
            for name, domain in everything.items()
        ]

    def build(cache: str, here: Callable[[], bool]) -> dict[str, Any]:
        kind, config = config_of(next(iter(everything)), cache)
        every = [prefix for name in everything for prefix in prefixes[name]]
        builder = _Builder(here, loading_settings(kind, config, cache, every))
        return {
            name: builder.build(*config_of(name, cache), [None, None, None])[1]
            for name in everything
        }

    return with_indices(data.cache, facts, build)


def in_turn(datasets: Sequence[Any]) -> Any:
    """Return one dataset that takes the samples of several in turn.

    Args:
        datasets: the datasets; at least one.

    Returns:
        The samples of all of them. Any stretch has samples of each in proportion to its size.
    """
    if len(datasets) == 1:
        return datasets[0]
    places = [(np.arange(len(samples)) + 0.5) / max(1, len(samples)) for samples in datasets]
    order = np.argsort(np.concatenate(places), kind="stable")
    return Subset(ConcatDataset(datasets), order.tolist())


def dataset_config(
    data: DataConfig,
    domains: Iterable[Domain],
    seq_length: int,
    seed: int,
    blend: tuple[list[str], list[float] | None],
) -> tuple[type, GPTDatasetConfig]:
    """Return the class and the configuration of Megatron's datasets over some domains.

    Args:
        data: the data configuration.
        domains: the opened domains, in the order of `blend`.
        seq_length: tokens per sample.
        seed: seed of the order of the samples.
        blend: the prefixes of the domains' datasets, and their weights or None.

    Returns:
        The class and the configuration, as Megatron's builder takes them.
    """
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
