"""The kinds of data, by the value of data.dataset."""

from collections.abc import Mapping
from typing import Any

from nemo_chameleon.config.data import GPT, SFT, DataConfig, DomainConfig
from nemo_chameleon.data.kind import DataKind
from nemo_chameleon.data.pretraining import PretrainingData
from nemo_chameleon.data.sft.finetuning import FinetuningData

_KINDS: dict[str, DataKind] = {GPT: PretrainingData(), SFT: FinetuningData()}


def kind_of(data: DataConfig) -> DataKind:
    """Return the kind of data that data.dataset names.

    Args:
        data: the data configuration.

    Returns:
        The kind.
    """
    return _KINDS[data.dataset]


def read_as_recorded(
    record: Mapping[str, Any], domains: dict[str, DomainConfig], cache: str
) -> tuple[DataConfig, int]:
    """Return a configuration that reads domains as a mixture's own domains were read.

    Args:
        record: what a mixture file says about its proxy.
        domains: the domains that are to be read, by name.
        cache: data.cache, unless the file is of an earlier version, which recorded it.

    Returns:
        The data configuration, and the tokens per sample.

    Raises:
        UserError: the domains would be tokenised differently from the mixture's own.
    """
    dataset = SFT if "sft" in record else GPT
    data = DataConfig(dataset=dataset, domains=domains, split=str(record.get("split")), cache=cache)
    return kind_of(data).as_recorded(record, data)
