"""Forward hooks that take a layer's output, and what every kind of model offers through them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Part:
    """What one rank has of a layer's output.

    Attributes:
        layer: which, from 1.
        hidden: (positions, b, h).
        positions: which of the window's, in the same order.
    """

    layer: int
    hidden: torch.Tensor
    positions: torch.Tensor


class Extractor(Protocol):
    """A model whose layers' outputs can be had, however it lies over the ranks."""

    hidden_size: int
    num_layers: int
    length_multiple: int
    """Windows are padded to a multiple of this."""
    max_length: int | None
    """Tokens that the model has positions for; None for any number."""
    replica: int
    """Which share of the windows this rank works on, of `replicas`."""
    replicas: int

    def parts(self, tokens: torch.Tensor, layers: Sequence[int]) -> Iterator[Part]:
        """This rank's parts of the outputs of `layers` for tokens (b, s).

        Every rank of a replica must call it with the same tokens. No part of a hidden state is
        given by two ranks.
        """


class ReachedLastLayerError(Exception):
    """The last layer that is wanted has put out its hidden state."""


@contextmanager
def hooked(layers: Mapping[int, torch.nn.Module], last: int) -> Iterator[dict[int, torch.Tensor]]:
    """Collect the outputs of layers by number; after the last one the forward pass ends."""
    outputs: dict[int, torch.Tensor] = {}

    def collect(number: int) -> Any:
        def hook(_module: torch.nn.Module, _arguments: Any, output: Any) -> None:
            outputs[number] = output[0] if isinstance(output, tuple) else output
            if number == last:
                raise ReachedLastLayerError

        return hook

    handles = [module.register_forward_hook(collect(n)) for n, module in layers.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(modules: Sequence[torch.nn.Module]) -> Iterator[None]:
    was_training = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        # Not inference_mode: Megatron keeps tables that are made here, and training uses them.
        with torch.no_grad():
            yield
    finally:
        for part, training in was_training:
            part.training = training
