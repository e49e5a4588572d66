"""Finetuning data (data.dataset=sft): JSONL whose answers carry loss, packed into samples.

The first rank tokenises and packs; the other ranks read its results from data.cache.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron.core.datasets.gpt_dataset import GPTDatasetConfig

from nemo_chameleon.config.data import SFT, DataConfig
from nemo_chameleon.config.schema import ChameleonConfig
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.kind import DataKind
from nemo_chameleon.data.sft.dataset import SFTDataset, SFTDatasetConfig
from nemo_chameleon.data.sft.domain import SFTDomain, open_sft_domains, open_sft_validation
from nemo_chameleon.data.sft.fitting import require_fitting
from nemo_chameleon.data.sft.tokenize import ExampleTokenizer
from nemo_chameleon.distributed.collectives import first_rank_first
from nemo_chameleon.utils.errors import UserError

# The settings of `data` that decide how JSONL is read; a mixture file records them.
_READING = ("chat_template", "ignored_keys", "on_malformed", "on_too_long")


class FinetuningData(DataKind):
    """JSONL of examples; see `DataKind`."""

    supervised = True
    packed = True
    reorders_epochs = True
    order_settings = ("dataset", "unit", "packing", "on_too_long")

    def open_domains(
        self, data: DataConfig, seq_length: int, *, answers_alone: bool = True
    ) -> dict[str, Domain]:
        """See `DataKind`; the first rank tokenises, and the others read its files."""
        return first_rank_first(
            lambda: {**open_sft_domains(data, seq_length, answers_alone=answers_alone)}
        )

    def open_validation(
        self, data: DataConfig, domains: Mapping[str, Domain], seq_length: int
    ) -> dict[str, Domain]:
        """See `DataKind`."""
        return {**open_sft_validation(data, domains, seq_length)}

    def require_samples(
        self,
        data: DataConfig,
        domains: Mapping[str, Domain],
        seq_length: int,
        prefix: str,
        evaluated: bool,
    ) -> None:
        """See `DataKind`; this makes the samples, which later calls find in the cache."""
        first_rank_first(lambda: require_fitting(data, domains, seq_length, prefix, evaluated))

    def dataset_config(
        self, data: DataConfig, settings: Mapping[str, Any]
    ) -> tuple[type, GPTDatasetConfig]:
        """See `DataKind`."""
        return SFTDataset, SFTDatasetConfig(
            **settings, packing=data.packing, on_too_long=data.on_too_long
        )

    def for_proxy(
        self, data: DataConfig, domains: Mapping[str, Domain]
    ) -> tuple[DataConfig, Mapping[str, Domain]]:
        """See `DataKind`: the proxy truncates, whatever the base model does."""
        # Examples that fit into the base model's samples may be too long for the proxy's.
        shortened: dict[str, Domain] = {}
        for name, domain in domains.items():
            assert isinstance(domain, SFTDomain)
            shortened[name] = replace(
                domain, packing=replace(domain.packing, on_too_long="truncate")
            )
        return replace(data, on_too_long="truncate"), shortened

    def embedding_settings(self, wanted: ChameleonConfig) -> dict[str, Any]:
        """See `DataKind`."""
        return {"tokens": wanted.tokens, "cross_documents": False}

    def reading(self, data: DataConfig, seq_length: int) -> dict[str, Any]:
        """See `DataKind`."""
        settings = {key: getattr(data, key) for key in _READING}
        identity = ExampleTokenizer(data).identity
        return {SFT: {**settings, "seq_length": seq_length, "reader": identity}}

    def as_recorded(self, record: Mapping[str, Any], data: DataConfig) -> tuple[DataConfig, int]:
        """See `DataKind`."""
        read = record[SFT]
        # Files that an earlier version wrote lack the keys that came later, and have the cache.
        settings = {key: read[key] for key in (*_READING, "cache") if key in read}
        data = replace(data, tokenizer=record["tokenizer"], **settings)
        if ExampleTokenizer(data).identity != read["reader"]:
            raise UserError(
                f"{data.tokenizer} or its chat template has changed since the mixture's domains "
                "were read: restore both, name the tokenizer that was used with --tokenizer, or "
                "compute the mixture again"
            )
        return data, int(read["seq_length"])
