"""Domain embeddings: the mean hidden state of a domain's tokens after a middle layer of a GPT.

A forward hook on the layer takes what it puts out and ends the forward pass there: nothing above
the layer is computed. Sums over tokens are what travels between ranks, never a hidden state: under
sequence parallelism each rank sums the part of the sequence that it holds.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from megatron.core import parallel_state
from numpy.typing import NDArray

from nemo_chameleon import parallel
from nemo_chameleon.domains import Domain
from nemo_chameleon.errors import UserError
from nemo_chameleon.model import unwrap
from nemo_chameleon.shards import Shards, shard_count

Forward = Callable[[torch.Tensor], torch.Tensor]


def middle_layer(num_layers: int) -> int:
    """The paper's layer, counted from 1: 3 of 6, 6 of 12."""
    return (num_layers + 1) // 2


class _ReachedError(Exception):
    """The hooked layer has put out its hidden state."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden


@contextmanager
def hooked(model: torch.nn.Module, layer: int) -> Iterator[Forward]:
    """Let a megatron-core GPT's forward pass end at a layer.

    Args:
        model: the GPT, in data parallel or precision wrappers or not; all its layers on this rank.
        layer: global number, from 1.

    Yields:
        A function from tokens (b, s) to that layer's output (s, b, h); under sequence parallelism
        to this rank's part of it, (s / tensor parallel size, b, h).

    Raises:
        UserError: the model has no such layer here.
    """
    gpt = unwrap(model)
    chosen = [part for part in gpt.decoder.layers if part.layer_number == layer]
    if not chosen:
        raise UserError(f"layer {layer}: the model's layers here are {len(gpt.decoder.layers)}")

    def stop(_module: torch.nn.Module, _arguments: Any, output: Any) -> None:
        raise _ReachedError(output[0] if isinstance(output, tuple) else output)

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        try:
            gpt(tokens, positions, None)
        except _ReachedError as reached:
            return reached.hidden
        raise RuntimeError(f"layer {layer} was never reached")

    was_training = gpt.training
    gpt.eval()
    handle = chosen[0].register_forward_hook(stop)
    try:
        with torch.inference_mode():
            yield forward
    finally:
        handle.remove()
        gpt.train(was_training)


def embed(
    model: torch.nn.Module,
    domains: Mapping[str, Domain],
    *,
    layer: int,
    samples: int,
    sample_length: int,
    micro_batch_size: int,
    seed: int,
    first: int = 0,
    advance: Callable[[int], None] = lambda tokens: None,
) -> dict[str, Shards]:
    """Embed domains with a model; every rank of its layout must call it.

    Windows go to shards and to data parallel ranks by their index, so neither which windows are
    drawn nor which shard they are in depends on the layout. A window shorter than `sample_length`
    is padded on the right, where a causal model's earlier tokens cannot see it; padding is not
    counted.

    Args:
        model: a megatron-core GPT without pipeline parallelism.
        domains: by name.
        layer: whose output is averaged, from 1.
        samples: windows per domain.
        sample_length: tokens a window, at most.
        micro_batch_size: windows at once.
        seed: of the windows.
        first: index of the first window, for more of them than an earlier call drew.
        advance: told of every batch's tokens, for a progress bar.

    Returns:
        {name: shard means (b, h)}, equal on every rank.

    Raises:
        UserError: a hidden state that is not finite, naming domain and window.
    """
    embeddings = {}
    width = unwrap(model).config.hidden_size
    windows = range(first, first + samples)
    with hooked(model, layer) as forward:
        for name, domain in domains.items():
            sums = _sums_over_windows(
                forward, width, domain, windows, sample_length, micro_batch_size, seed, advance
            )
            tokens = sums[:, -1]
            embeddings[name] = Shards(
                (sums[:, :-1] / tokens[:, None]).astype(np.float32), tokens.astype(np.int64)
            )
    return embeddings


def _sums_over_windows(
    forward: Forward,
    hidden_size: int,
    domain: Domain,
    windows: range,
    length: int,
    micro_batch_size: int,
    seed: int,
    advance: Callable[[int], None],
) -> NDArray[np.float64]:
    """(b, h + 1), by shard: the sum of hidden states over all tokens, and the number of tokens."""
    shards = shard_count(len(windows))
    mine = windows[
        parallel_state.get_data_parallel_rank() :: parallel_state.get_data_parallel_world_size()
    ]
    device = parallel.device()
    total = torch.zeros(shards, hidden_size + 1, dtype=torch.float64, device=device)
    broken = torch.tensor(windows.stop, device=device)
    for start in range(0, len(mine), micro_batch_size):
        indices = mine[start : start + micro_batch_size]
        texts = [domain.window(index, length, seed) for index in indices]
        tokens = torch.zeros(len(texts), length, dtype=torch.int64)
        mask = torch.zeros(len(texts), length)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = torch.from_numpy(text)
            mask[row, : len(text)] = 1.0
        mask = mask.to(device)
        hidden = forward(tokens.to(device))
        sums = torch.cat([_token_sums(hidden, mask), mask.sum(1, keepdim=True)], dim=1)
        finite = torch.isfinite(sums).all(dim=1)
        if not bool(finite.all()):
            broken.fill_(indices[int(finite.logical_not().nonzero()[0])])
            break
        # A product rather than an indexed sum, which CUDA adds up in no fixed order.
        places = F.one_hot(torch.tensor(indices, device=device) % shards, shards)
        total += places.t().double() @ sums.double()
        advance(sum(map(len, texts)))
    group = parallel_state.get_data_parallel_group()
    dist.all_reduce(broken, op=dist.ReduceOp.MIN, group=group)
    if int(broken) < windows.stop:
        raise UserError(
            f"domain {domain.name!r}: the hidden state of window {int(broken)} is not finite"
        )
    dist.all_reduce(total, group=group)
    result: NDArray[np.float64] = total.cpu().numpy()
    return result


def _token_sums(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(b, h) sums over a window's tokens of hidden states (s, b, h), whole or this rank's part."""
    part = hidden.shape[0]
    offset = parallel_state.get_tensor_model_parallel_rank() * part
    sharded = part != mask.shape[1]
    weights = (mask[:, offset : offset + part] if sharded else mask).t().unsqueeze(-1)
    sums = (hidden.float() * weights).sum(0)
    if sharded:
        dist.all_reduce(sums, group=parallel_state.get_tensor_model_parallel_group())
    return sums
