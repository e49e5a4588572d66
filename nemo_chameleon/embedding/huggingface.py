"""Hugging Face causal language models that embed; every rank loads the whole model."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nemo_chameleon.distributed.device import current_device
from nemo_chameleon.embedding.hooks import (
    Extractor,
    Part,
    ReachedLastLayerError,
    evaluating,
    hooked,
)
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest, digest_of_files
from nemo_chameleon.utils.huggingface import from_pretrained

_WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True)
class HuggingFaceProxy:
    """A Hugging Face causal language model that embeds; see `Proxy`.

    Attributes:
        name: the name of the model, or its folder.
        dtype: the type of its weights when it embeds.
        settings: its configuration, as transformers gives it.
    """

    name: str
    dtype: torch.dtype
    settings: Any

    @classmethod
    def of(cls, name: str, dtype: torch.dtype) -> "HuggingFaceProxy":
        """Read a model's configuration.

        Args:
            name: the name of the model, or its folder.
            dtype: the type of its weights when it embeds.

        Returns:
            The model, described without its weights.

        Raises:
            UserError: transformers is not installed, or there is no such model.
        """
        return cls(name, dtype, from_pretrained("AutoConfig", name).get_text_config())

    @property
    def num_layers(self) -> int:
        """See `Proxy`."""
        return int(self.settings.num_hidden_layers)

    @property
    def seq_length(self) -> int:
        """See `Proxy`."""
        # A model without position embeddings takes windows of any length.
        return int(getattr(self.settings, "max_position_embeddings", None) or 2**31)

    @functools.cached_property
    def identity(self) -> str:
        """See `Proxy`."""
        files = digest_of_files(Path(self.name), _WEIGHTS) if Path(self.name).is_dir() else []
        return digest({"name": "" if files else self.name, "files": files, "commit": self.commit})

    @property
    def earlier_identity(self) -> str:
        """See `Proxy`."""
        return self.identity

    @property
    def commit(self) -> str | None:
        """The commit of a model from the hub; None for a model in a folder."""
        return getattr(self.settings, "_commit_hash", None)

    def record(self) -> dict[str, Any]:
        """See `Proxy`."""
        return {"hf": self.name, "precision": str(self.dtype)}

    @contextmanager
    def opened(self) -> Iterator[Extractor]:
        """See `Proxy`."""
        lm, loading = from_pretrained(
            "AutoModelForCausalLM", self.name, dtype=self.dtype, output_loading_info=True
        )
        for what in ("missing_keys", "mismatched_keys"):
            if loading[what]:
                raise UserError(
                    f"proxy.hf={self.name} has no weights for {sorted(loading[what])[0]}"
                )
        with huggingface_extractor(lm.to(current_device())) as extractor:
            yield extractor


class HuggingFaceExtractor:
    """See `Extractor`: a Hugging Face causal language model that is whole on every rank."""

    def __init__(self, model: Any) -> None:
        """Find the model's layers, and check that it is causal.

        Args:
            model: the model, on this rank's device and in evaluation mode.

        Raises:
            UserError: the layers are not one list, or tokens attend to later tokens.
        """
        self.model = model
        config = model.config.get_text_config()
        self.hidden_size, self.num_layers = config.hidden_size, config.num_hidden_layers
        self.length_multiple = 1
        self.replica, self.replicas = dist.get_rank(), dist.get_world_size()
        self.max_length = getattr(config, "max_position_embeddings", None)
        lists = (p for p in model.get_decoder().modules() if isinstance(p, torch.nn.ModuleList))
        layers = next((part for part in lists if len(part) == self.num_layers), None)
        if layers is None:
            raise UserError(f"{type(model).__name__} has no list of {self.num_layers} layers")
        self._layers = dict(enumerate(layers, start=1))
        self._require_causality()

    def parts(self, tokens: torch.Tensor, layers: Sequence[int]) -> Iterator[Part]:
        """See `Extractor`."""
        wanted = {number: self._layers[number] for number in layers}
        with hooked(wanted, max(layers)) as outputs, suppress(ReachedLastLayerError):
            self.model(input_ids=tokens, use_cache=False)
        if outputs.keys() != wanted.keys():
            raise UserError(f"{type(self.model).__name__} does not run its layers in order")
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        for number, hidden in outputs.items():
            yield Part(number, hidden.transpose(0, 1), positions)

    def _require_causality(self) -> None:
        """Refuse a model whose tokens attend to later tokens: they would see the padding."""
        tokens = torch.arange(8, device=self.model.device).repeat(2, 1)
        tokens[1, -1] = 0
        (part,) = self.parts(tokens, [self.num_layers])
        one, other = part.hidden[:-1].float().unbind(1)
        if not torch.allclose(one, other, rtol=1e-2, atol=1e-3 * float(one.abs().max())):
            raise UserError(
                f"{type(self.model).__name__} is not a causal LM: its tokens attend to later tokens"
            )


@contextmanager
def huggingface_extractor(model: Any) -> Iterator[HuggingFaceExtractor]:
    """Attach to a Hugging Face causal language model; afterwards the model is as it was.

    Args:
        model: the model, on this rank's device.

    Yields:
        The extractor of its layers' outputs.
    """
    with evaluating([model]):
        yield HuggingFaceExtractor(model)
