"""What differs between pretraining and finetuning data.

Code that opens, checks, packs or records data asks the `DataKind` of a configuration, which
kinds.py finds. Only the validation of the configuration looks at data.dataset itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from megatron.core.datasets.gpt_dataset import GPTDatasetConfig

from nemo_chameleon.config.data import DataConfig
from nemo_chameleon.config.schema import ChameleonConfig
from nemo_chameleon.data.domain import Domain


class DataKind(ABC):
    """The data of one value of data.dataset.

    Attributes:
        supervised: whether the data are examples to finetune on, with loss on their answers alone.
        packed: whether a sample may have several sequences, whose positions begin at 0 again.
        reorders_epochs: whether one dataset of this kind has every epoch, each in its own order;
            else a dataset has the epochs of its number of samples, in one order.
        order_settings: the keys of `data` that decide the order and the contents of this kind's
            samples. A checkpoint records them, in addition to the keys that decide them for all
            data.
    """

    supervised: bool = False
    packed: bool = False
    reorders_epochs: bool = False
    order_settings: tuple[str, ...] = ()

    @abstractmethod
    def open_domains(
        self, data: DataConfig, seq_length: int, *, answers_alone: bool = True
    ) -> dict[str, Domain]:
        """Open every configured domain; every rank must call it.

        Args:
            data: the data configuration.
            seq_length: tokens per sample of the base model; pretraining data ignore it.
            answers_alone: whether embeddings are means over answer tokens alone; pretraining data
                ignore it.

        Returns:
            The domains by name, in the configuration's order.

        Raises:
            UserError: a domain's data are missing or damaged; the message names the domain.
        """

    @abstractmethod
    def open_validation(
        self, data: DataConfig, domains: Mapping[str, Domain], seq_length: int
    ) -> dict[str, Domain]:
        """Open the sets of data.validation, which are evaluated on and never drawn from.

        Args:
            data: the data configuration.
            domains: the opened domains by name.
            seq_length: tokens per sample; pretraining data ignore it.

        Returns:
            The validation sets by name, in the configuration's order.

        Raises:
            UserError: a set is missing, damaged or the same data as a domain; the message names it.
        """

    @abstractmethod
    def require_samples(
        self,
        data: DataConfig,
        domains: Mapping[str, Domain],
        seq_length: int,
        prefix: str,
        evaluated: bool,
    ) -> None:
        """Check that a run can train on its data, and be evaluated on them, at its sequence length.

        Every rank must call it.

        Args:
            data: the data configuration.
            domains: the opened domains by name.
            seq_length: tokens per sample.
            prefix: prefix of the key `seq_length`, for instance "proxy.model."; errors name it.
            evaluated: whether the run evaluates on validation splits.

        Raises:
            UserError: a domain or a set does not fill one sample, or has examples that do not fit;
                the message names it.
        """

    @abstractmethod
    def dataset_config(
        self, data: DataConfig, settings: Mapping[str, Any]
    ) -> tuple[type, GPTDatasetConfig]:
        """Return the class of Megatron's datasets and their configuration.

        Args:
            data: the data configuration.
            settings: arguments of `GPTDatasetConfig` that both kinds share.

        Returns:
            The class and the configuration, as Megatron's builder takes them.
        """

    def for_proxy(
        self, data: DataConfig, domains: Mapping[str, Domain]
    ) -> tuple[DataConfig, Mapping[str, Domain]]:
        """Adapt the data to a proxy, whose samples may be shorter than the base model's.

        Args:
            data: the data configuration of the base model.
            domains: the base model's domains by name.

        Returns:
            The data configuration and the domains that the proxy trains on.
        """
        return data, domains

    def embedding_settings(self, wanted: ChameleonConfig) -> dict[str, Any]:
        """Return the settings that decide the embeddings of this kind of data alone.

        Args:
            wanted: the chameleon section of the configuration.

        Returns:
            Settings by name, as a mixture file records them.
        """
        del wanted
        return {}

    def reading(self, data: DataConfig, seq_length: int) -> dict[str, Any]:
        """Return what it takes to read further domains as this run reads its own.

        Args:
            data: the data configuration.
            seq_length: tokens per sample of the base model.

        Returns:
            Facts by name, as a mixture file records them about its proxy.
        """
        del data, seq_length
        return {}

    @abstractmethod
    def as_recorded(self, record: Mapping[str, Any], data: DataConfig) -> tuple[DataConfig, int]:
        """Return a configuration that reads domains as a mixture's own domains were read.

        Args:
            record: what a mixture file says about its proxy.
            data: a configuration of the domains that are to be read.

        Returns:
            The data configuration, and the tokens per sample.

        Raises:
            UserError: the domains would be tokenised differently from the mixture's own.
        """
