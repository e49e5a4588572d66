"""What differs between data to pretrain on and data to finetune on, in one object.

Whoever reads, checks, packs or records data asks the `DataKind` of a configuration, and branches
nowhere else on data.dataset.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from megatron.core.datasets.gpt_dataset import GPTDatasetConfig

from nemo_chameleon.config.schema import GPT, SFT, ChameleonConfig, DataConfig, DomainConfig
from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.pretraining import PretrainingData
from nemo_chameleon.data.sft.finetuning import FinetuningData


class DataKind(Protocol):
    """The data of one value of data.dataset.

    Attributes:
        packed: whether a sample holds several sequences, with loss on some of their tokens. The
            schedule, the reports and the hosts' adapters follow it.
        order_settings: keys of `data` that the order and the contents of samples follow from, apart
            from those of all data; a checkpoint records them.
    """

    @property
    def packed(self) -> bool:
        """See the class."""

    @property
    def order_settings(self) -> tuple[str, ...]:
        """See the class."""

    def open_domains(
        self, data: DataConfig, seq_length: int, *, answers_alone: bool = True
    ) -> dict[str, Domain]:
        """Open every configured domain, in the configuration's order; every rank must call it.

        Args:
            data: the configuration.
            seq_length: tokens of the base model's samples; pretraining data does not depend on it.
            answers_alone: whether embeddings are means over answers alone.

        Raises:
            UserError: naming the domain, and what is wrong with its data.
        """

    def open_validation(
        self, data: DataConfig, domains: Mapping[str, Domain], seq_length: int
    ) -> dict[str, Domain]:
        """Open the sets that are evaluated on and not drawn from, in the configuration's order.

        Raises:
            UserError: naming the set; also where it is a domain's own data.
        """

    def require_samples(
        self,
        data: DataConfig,
        domains: Mapping[str, Domain],
        seq_length: int,
        prefix: str,
        evaluated: bool,
    ) -> None:
        """Refuse data that a run cannot train on, or be evaluated on, at its sequence length.

        Args:
            data: the configuration.
            domains: opened.
            seq_length: tokens of a sample.
            prefix: what the key `seq_length` begins with, for errors.
            evaluated: whether the run evaluates on validation splits.

        Raises:
            UserError: naming the domain or set that does not fill a sample or does not fit.
        """

    def dataset_config(
        self, data: DataConfig, settings: Mapping[str, Any]
    ) -> tuple[type, GPTDatasetConfig]:
        """Return the class of Megatron's datasets, and their configuration from `settings`."""

    def for_proxy(
        self, data: DataConfig, domains: Mapping[str, Domain]
    ) -> tuple[DataConfig, Mapping[str, Domain]]:
        """Return the configuration and the domains that a proxy of shorter samples trains on."""

    def embedding_settings(self, wanted: ChameleonConfig) -> dict[str, Any]:
        """Return settings that decide embeddings of this data alone, for the mixture file."""

    def reading(self, data: DataConfig, seq_length: int) -> dict[str, Any]:
        """Return what a mixture file records so that further domains can be read as its own."""

    def as_recorded(self, record: Mapping[str, Any], data: DataConfig) -> tuple[DataConfig, int]:
        """Return the configuration and the sequence length that a mixture's domains were read with.

        Args:
            record: what a mixture file says of its proxy.
            data: with the domains that are to be read.

        Raises:
            UserError: the domains would be tokenised otherwise than the mixture's own.
        """


_KINDS: dict[str, DataKind] = {GPT: PretrainingData(), SFT: FinetuningData()}


def kind_of(data: DataConfig) -> DataKind:
    """Return what data.dataset names."""
    return _KINDS[data.dataset]


def read_as_recorded(
    record: Mapping[str, Any], domains: dict[str, DomainConfig]
) -> tuple[DataConfig, int]:
    """Return a configuration that reads domains as those of a mixture were read.

    Args:
        record: what a mixture file says of its proxy.
        domains: to be read.

    Returns:
        The configuration, and tokens of a sample.

    Raises:
        UserError: the domains would be tokenised otherwise than the mixture's own.
    """
    dataset = SFT if "sft" in record else GPT
    data = DataConfig(dataset=dataset, domains=domains, split=str(record.get("split")))
    return kind_of(data).as_recorded(record, data)
