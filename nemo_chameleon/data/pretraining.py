"""Pretraining data (data.dataset=gpt): Megatron's indexed datasets, with loss on all tokens.

A sample continues from one document to the next, so no example can be too long for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from nemo_chameleon.config.data import DataConfig
from nemo_chameleon.data.agreement import opened_once_a_node
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.indexed import IndexedDomain, open_indexed, open_indexed_validation
from nemo_chameleon.data.kind import DataKind
from nemo_chameleon.data.tokenizer import has_tokenizer
from nemo_chameleon.data.vocabulary import Vocabulary
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.logging import package_logger

logger = package_logger(__package__)


class PretrainingData(DataKind):
    """Megatron's indexed datasets; see `DataKind`."""

    def open_domains(
        self, data: DataConfig, seq_length: int, *, answers_alone: bool = True
    ) -> dict[str, Domain]:
        """See `DataKind`; one process on each node opens the files."""
        del seq_length, answers_alone
        size = Vocabulary.of(data).vocab_size
        return opened_once_a_node(
            lambda: {**open_indexed(data.domains, data.split, size, data.tokenizer)}
        )

    def open_validation(
        self, data: DataConfig, domains: Mapping[str, Domain], seq_length: int
    ) -> dict[str, Domain]:
        """See `DataKind`."""
        del seq_length
        return {**open_indexed_validation(data, domains, Vocabulary.of(data).vocab_size)}

    def require_samples(
        self,
        data: DataConfig,
        domains: Mapping[str, Domain],
        seq_length: int,
        prefix: str,
        evaluated: bool,
    ) -> None:
        """See `DataKind`: every validation set must fill one sample."""
        if not evaluated:
            return
        held_out = open_indexed_validation(data, domains, Vocabulary.of(data).vocab_size)
        for name, dataset in held_out.items():
            sizes = [part.tokens for part in dataset.parts]
            if not _fill_a_sample(f"data.validation.{name}", sizes, seq_length):
                raise UserError(
                    f"data.validation.{name} has {_amount(sizes)} tokens, but a sample takes "
                    f"{seq_length + 1}: set data.validation.{name}.path to a larger set"
                )
        for name, domain in domains.items():
            assert isinstance(domain, IndexedDomain)
            sizes = [part.validation_tokens for part in domain.parts]
            if name not in held_out and not _fill_a_sample(f"domain {name!r}", sizes, seq_length):
                raise UserError(
                    f"domain {name!r} has {_amount(sizes)} validation tokens under "
                    f"data.split={data.split!r}, but a sample takes {seq_length + 1}: give "
                    f"validation a larger share, set data.validation.{name}.path, or set "
                    f"{prefix.removesuffix('model.')}train.eval_iters=0"
                )

    def dataset_config(
        self, data: DataConfig, settings: Mapping[str, Any]
    ) -> tuple[type, GPTDatasetConfig]:
        """See `DataKind`."""
        del data
        return GPTDataset, GPTDatasetConfig(**settings)

    def as_recorded(self, record: Mapping[str, Any], data: DataConfig) -> tuple[DataConfig, int]:
        """See `DataKind`."""
        place = record.get("tokenizer")
        known = place if place is not None and has_tokenizer(place) else None
        return replace(data, vocab_size=record.get("vocab_size"), tokenizer=known), 0


def _fill_a_sample(what: str, sizes: Sequence[int], seq_length: int) -> bool:
    """Return whether any part fills a sample, and warn of those that do not if some do."""
    short = sum(tokens <= seq_length for tokens in sizes)
    if 0 < short < len(sizes):
        logger.warning(
            "%s: %s of its %s parts have fewer tokens to evaluate on than the %s of a sample, and "
            "are not evaluated on; the others are",
            *(what, f"{short:,}", f"{len(sizes):,}", seq_length + 1),
        )
    return short < len(sizes)


def _amount(sizes: Sequence[int]) -> str:
    return str(sizes[0]) if len(sizes) == 1 else f"no part of more than {max(sizes)}"
