"""Megatron datasets for a mixture: blended for training, one per domain for validation.

Megatron's own builder builds them all. A mixture decides its `blend` and nothing else.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from numpy.typing import NDArray

from nemo_chameleon import parallel
from nemo_chameleon.domains import Domain, open_validation
from nemo_chameleon.domains import open_domains as domains_of
from nemo_chameleon.errors import UserError
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.schema import SFT, DataConfig, Run
from nemo_chameleon.sft.dataset import SFTDataset, SFTDatasetConfig
from nemo_chameleon.sft.domain import SFTDomain, check_sft, open_sft_domains, open_sft_validation
from nemo_chameleon.sft.shares import sample_shares
from nemo_chameleon.storage import opened_once_a_node
from nemo_chameleon.tokenizer import load_tokenizer

_SMALL_RUN = 10_000  # samples


@dataclass(frozen=True)
class Vocabulary:
    """What Megatron's datasets ask of a tokenizer, when the tokens are there already.

    It has no `pad` on purpose: nothing in tokenised data is padding, and Megatron then masks none.
    """

    vocab_size: int
    eod: int
    unique_identifiers: dict[str, Any]
    """Part of the key under which Megatron caches its indices; the rest of that key is paths and
    sizes, so what stands in the files is put in here."""

    @classmethod
    def of(cls, data: DataConfig, contents: Sequence[str] = ()) -> "Vocabulary":
        """The vocabulary that the configuration names, for data with these fingerprints.

        Raises:
            UserError: the tokenizer's file cannot be read.
        """
        size = data.vocab_size
        if data.tokenizer is not None:
            size = load_tokenizer(data.tokenizer).get_vocab_size()
        if size is None:
            raise UserError("set one of data.tokenizer and data.vocab_size")
        # No document boundary is reset or masked, so Megatron looks for no such token; and -1 is
        # what it takes for padding where a tokenizer has none.
        return cls(size, -2, {"vocab_size": size, "contents": list(contents)})


def open_domains(
    data: DataConfig, seq_length: int, *, answers_alone: bool = True
) -> dict[str, Domain]:
    """Every configured domain, in the configuration's order.

    JSONL is tokenised by the first rank, Megatron datasets are opened once a node: every rank must
    call it, before or after they have met.

    Args:
        data: the configuration.
        seq_length: for data.dataset=sft, tokens of the base model's samples.
        answers_alone: for data.dataset=sft, whether embeddings are means over answers alone.

    Raises:
        UserError: naming the domain, and what is wrong with its data.
    """
    if data.dataset == SFT:
        return parallel.first_rank_first(
            lambda: {**open_sft_domains(data, seq_length, answers_alone=answers_alone)}
        )
    vocab_size = Vocabulary.of(data).vocab_size
    return opened_once_a_node(lambda: domains_of(data.domains, data.split, vocab_size))


def check(data: DataConfig, domains: Mapping[str, Domain], run: Run, prefix: str) -> None:
    """Refuse data that a run cannot train on, or be evaluated on, at its sequence length.

    Args:
        data: the configuration.
        domains: opened.
        run: the model and its training.
        prefix: where the run's keys stand.

    Raises:
        UserError: naming a domain whose validation split does not fill one sample, a dataset of
            data.validation that does not or is drawn from, or examples that do not fit.
    """
    length, evaluated = run.model.seq_length, bool(run.train.eval_iters)
    if data.dataset == SFT:
        check_samples(data, domains, length, f"{prefix}model.", evaluated)
    elif evaluated:
        check_validation(data, domains, length)


def check_samples(
    data: DataConfig,
    domains: Mapping[str, Domain],
    seq_length: int,
    prefix: str = "",
    evaluated: bool = False,
) -> None:
    """`check`, for data.dataset=sft; `prefix` is where `seq_length` stands."""
    opened = {name: d for name, d in domains.items() if isinstance(d, SFTDomain)}
    parallel.first_rank_first(lambda: check_sft(data, opened, seq_length, prefix, evaluated))


def training_dataset(
    data: DataConfig,
    domains: Mapping[str, Domain],
    mixture: Mixture,
    *,
    samples: int,
    seq_length: int,
    seed: int,
) -> Any:
    """The blended training set; every rank must call it.

    Returns:
        A BlendedDataset of at least `samples` samples, whose first `samples` follow the mixture
        within one a domain. A sample's `dataset_id` is its domain's position in `domains`.
    """
    prefixes, weights = mixture.blend({name: domain.prefix for name, domain in domains.items()})
    if data.unit == "tokens":
        sizes = {"samples": samples, "seq_length": seq_length, "seed": seed}
        weights = [
            *sample_shares(dict(zip(domains, weights, strict=True)), domains, **sizes).values()
        ]
    kind, config = dataset_config(data, domains.values(), seq_length, seed, (prefixes, weights))
    # Where a domain gives a handful of samples, rounding can ask for more than the default surplus
    # holds, and Megatron then refuses to build.
    if samples < _SMALL_RUN:
        config.mid_level_dataset_surplus = 0.5
    # Validation is per domain, below: a blended one would say less, and small ones overflow.
    config.split_matrix = [config.split_matrix[0], None, None]
    return BlendedMegatronDatasetBuilder(kind, [samples, 0, 0], lambda: True, config).build()[0]


def validation_datasets(
    data: DataConfig, domains: Mapping[str, Domain], *, seq_length: int, seed: int
) -> dict[str, Any]:
    """One pass over each domain's validation split and over the whole of data.validation's sets.

    Every rank must call it. `check` says first whether there is enough for it.

    Returns:
        By name: the domains first, whether with sets of their own or not.
    """
    apart, datasets = _open_validation(data, domains, seq_length), {}
    for name, domain in {**domains, **apart}.items():
        kind, config = dataset_config(data, [domain], seq_length, seed, ([domain.prefix], None))
        part = (0.0, 1.0) if name in apart else config.split_matrix[1]
        config.split_matrix = [None, part, None]
        sizes = [None, None, None]
        datasets[name] = BlendedMegatronDatasetBuilder(kind, sizes, lambda: True, config).build()[1]
    return datasets


def _open_validation(
    data: DataConfig, domains: Mapping[str, Domain], seq_length: int
) -> Mapping[str, Domain]:
    if data.dataset == SFT:
        return open_sft_validation(data, domains, seq_length)
    return open_validation(data, domains, Vocabulary.of(data).vocab_size)


def check_validation(data: DataConfig, domains: Mapping[str, Domain], seq_length: int) -> None:
    """`check`, for validation data of tokens."""
    apart = open_validation(data, domains, Vocabulary.of(data).vocab_size)
    for name, dataset in apart.items():
        if dataset.tokens <= seq_length:
            raise UserError(
                f"data.validation.{name} has {dataset.tokens} tokens, a sample takes "
                f"{seq_length + 1}"
            )
    for name, domain in domains.items():
        if name in apart:
            continue
        if domain.validation_tokens <= seq_length:
            raise UserError(
                f"domain {name!r} has {domain.validation_tokens} validation tokens under "
                f"data.split={data.split!r}, a sample takes {seq_length + 1}: give validation a "
                f"larger share, set data.validation.{name}.path, or train.eval_iters=0"
            )


def dataset_config(
    data: DataConfig,
    domains: Iterable[Domain],
    seq_length: int,
    seed: int,
    blend: tuple[list[str], list[float] | None],
) -> tuple[type, GPTDatasetConfig]:
    """The class of Megatron's datasets over these domains, and their configuration."""
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
    if data.dataset == SFT:
        return SFTDataset, SFTDatasetConfig(
            **settings, packing=data.packing, on_too_long=data.on_too_long
        )
    return GPTDataset, GPTDatasetConfig(**settings)


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

    def _mine(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return indices.reshape(-1, self.ranks, self.micro_batch_size)[:, self.rank]
