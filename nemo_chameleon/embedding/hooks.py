"""Forward hooks that record the outputs of layers, and the protocol of models that offer them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Part:
    """The part of a layer's output that one rank holds.

    Attributes:
        layer: number of the layer, counted from 1.
        hidden: hidden states (n, b, h), for n positions of the b windows.
        positions: positions of these hidden states in their window (n,).
    """

    layer: int
    hidden: torch.Tensor
    positions: torch.Tensor


class Extractor(Protocol):
    """A model that gives the outputs of its layers, in any layout over the ranks.

    Attributes:
        hidden_size: width h of the hidden states.
        num_layers: number of the model's layers.
        length_multiple: the length of a window is padded to a multiple of this.
        max_length: tokens that the model has positions for; None for any number.
        replica: which share of the windows this rank works on, from 0 to `replicas` - 1.
        replicas: number of shares that the windows are divided into.
    """

    hidden_size: int
    num_layers: int
    length_multiple: int
    max_length: int | None
    replica: int
    replicas: int

    def parts(self, tokens: torch.Tensor, layers: Sequence[int]) -> Iterator[Part]:
        """Yield this rank's parts of the outputs of some layers.

        Every rank of a replica must call it with the same tokens. No two ranks give the same part
        of a hidden state.

        Args:
            tokens: token ids of the windows (b, s).
            layers: numbers of the layers, counted from 1.

        Yields:
            The parts; a rank that holds none yields nothing.
        """


class ReachedLastLayerError(Exception):
    """Ends a forward pass after the last layer whose output is wanted."""


@contextmanager
def hooked(layers: Mapping[int, torch.nn.Module], last: int) -> Iterator[dict[int, torch.Tensor]]:
    """Record the outputs of layers within the context, and end the forward pass after the last one.

    Args:
        layers: the layers to record, by number.
        last: number of the layer whose output ends the forward pass with a ReachedLastLayerError.

    Yields:
        The outputs by layer number; a forward pass fills them in.
    """
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
    """Put modules into evaluation mode without gradients, and afterwards back into their own mode.

    Args:
        modules: the modules; every submodule gets back the mode that it had.
    """
    was_training = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        # inference_mode would not do: Megatron keeps tables that are made here for training.
        with torch.no_grad():
            yield
    finally:
        for part, training in was_training:
            part.training = training
