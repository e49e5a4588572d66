"""The model that embeds, whatever it is: described without its weights, and found again."""

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
    """A model, described without its weights."""

    @property
    def num_layers(self) -> int:
        """That can be averaged over, counted from 1."""

    @property
    def seq_length(self) -> int:
        """Tokens of the longest window that it takes."""

    @property
    def identity(self) -> str:
        """A digest that tells it from any other."""

    def record(self) -> dict[str, Any]:
        """What a mixture file says of it: enough for `proxy_from_record`."""

    def opened(self) -> contextlib.AbstractContextManager[Extractor]:
        """Load it, to embed with; every rank must enter it."""


def proxy_from_record(record: Mapping[str, Any], place: str | None = None) -> Proxy:
    """The model that a mixture file says its domains were embedded with.

    Args:
        record: of the file.
        place: where the model lies, if no longer where it says.

    Raises:
        UserError: it is not there, or is another model.
    """
    try:
        dtype = _precision(record)
        if "hf" in record:
            proxy: Proxy = HuggingFaceProxy.of(place or record["hf"], dtype)
        else:
            path = Path(place or record["checkpoint"])
            if not path.is_dir():
                raise UserError(f"the proxy's checkpoint {path} is not there; name it with --proxy")
            run = RunConfig(model=ModelConfig(**record["model"]))
            run.train.precision = "bf16" if dtype == torch.bfloat16 else "fp32"
            proxy = MegatronProxy(PretrainedCheckpoint(path, run, record["vocab_size"]))
    except (KeyError, TypeError) as error:
        raise UserError(f"the mixture file does not say enough of its proxy: {error!r}") from error
    if proxy.identity != record.get("trained"):
        where = place or record.get("checkpoint", record.get("hf"))
        raise UserError(f"{where} is not the proxy that the mixture was computed through")
    return proxy


def _precision(record: Mapping[str, Any]) -> torch.dtype:
    """As the mixture's other domains were embedded, where this machine can."""
    if record["precision"] != "torch.bfloat16":
        return torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16
    logger.warning("the other domains were embedded in bf16, these are in fp32")
    return torch.float32
