"""The proxy, which is the model that embeds: its protocol, and how a mixture file's is found.

A proxy is described without its weights, which are loaded only when it embeds. A mixture file
records its proxy, so that further domains can be embedded with the same model.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from nemo_chameleon.config.schema import ModelConfig, RunConfig
from nemo_chameleon.embedding.hooks import Extractor
from nemo_chameleon.embedding.huggingface import HuggingFaceProxy
from nemo_chameleon.embedding.megatron import MegatronProxy
from nemo_chameleon.models.pretrained import PretrainedCheckpoint
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.logging import package_logger

logger = package_logger(__package__)


class Proxy(Protocol):
    """A model that embeds, described without its weights."""

    @property
    def num_layers(self) -> int:
        """The number of layers whose outputs can be averaged; they are counted from 1."""

    @property
    def seq_length(self) -> int:
        """The tokens of the longest window that the model takes."""

    @property
    def identity(self) -> str:
        """A digest that differs from that of any other model, wherever the model was trained."""

    @property
    def earlier_identity(self) -> str:
        """The digest that mixture files of versions before 0.3 record of the model."""

    def record(self) -> dict[str, Any]:
        """Describe the model for a mixture file.

        Returns:
            What `proxy_from_record` needs to find the model again, as values that JSON can hold.
        """

    def opened(self) -> contextlib.AbstractContextManager[Extractor]:
        """Load the model to embed with it; every rank must enter the context.

        Returns:
            A context that gives the extractor of the model's layers.

        Raises:
            UserError: the weights are missing, or they are another model's.
        """


def proxy_from_record(record: Mapping[str, Any], place: str | None = None) -> Proxy:
    """Find the proxy that a mixture file records.

    Args:
        record: what the file records of its proxy.
        place: where the model is now; None for the place that the file records.

    Returns:
        The proxy, described without its weights.

    Raises:
        UserError: the model is not there, or it is another model.
    """
    try:
        dtype = _precision(record)
        if "hf" in record:
            proxy: Proxy = HuggingFaceProxy.of(place or record["hf"], dtype)
        else:
            path = Path(place or record["checkpoint"])
            if not path.is_dir():
                raise UserError(
                    f"the proxy's checkpoint {path} does not exist: name its folder with --proxy"
                )
            run = RunConfig(model=ModelConfig(**record["model"]))
            run.train.precision = "bf16" if dtype == torch.bfloat16 else "fp32"
            vocab_size = record.get("model_vocab_size", record["vocab_size"])
            proxy = MegatronProxy(PretrainedCheckpoint(path, run, vocab_size))
    except (KeyError, TypeError) as error:
        raise UserError(
            f"the mixture file does not describe its proxy completely: {error!r}"
        ) from error
    trained = record.get("trained")
    if trained != proxy.identity and trained != proxy.earlier_identity:
        where = place or record.get("checkpoint", record.get("hf"))
        raise UserError(
            f"{where} is not the proxy that the mixture was computed through: name that one with "
            "--proxy"
        )
    return proxy


def _precision(record: Mapping[str, Any]) -> torch.dtype:
    """Return the type that the mixture's other domains were embedded in, if this machine has it."""
    if record["precision"] != "torch.bfloat16":
        return torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16
    logger.warning("the mixture's domains were embedded in bf16, but the new ones are in fp32")
    return torch.float32
