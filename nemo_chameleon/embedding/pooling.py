"""Domain embeddings: the mean hidden state of a domain's tokens after a middle layer of a GPT.

Forward hooks on the layers take what they put out; the last of them ends the forward pass there,
so nothing above it is computed. A rank sums what it holds of a hidden state, its part of the
sequence or of the layers, and of the windows: sums are all that ever travels between ranks.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812

from nemo_chameleon.data.domain import Domain, Window
from nemo_chameleon.distributed.device import current_device
from nemo_chameleon.embedding.hooks import Extractor
from nemo_chameleon.method.embeddings import ShardedEmbedding, shard_count
from nemo_chameleon.utils.arrays import Floats
from nemo_chameleon.utils.errors import UserError

# Batches between two meetings of all ranks: often enough that none waits for long, whatever the
# timeout of the process group, and seldom enough to cost nothing.
_BATCHES_A_BLOCK = 8


def middle_layer(num_layers: int) -> int:
    """The paper's layer, counted from 1: 3 of 6, 6 of 12."""
    return (num_layers + 1) // 2


def embed(
    extractor: Extractor,
    domains: Mapping[str, Domain],
    *,
    layers: Sequence[int],
    samples: int,
    sample_length: int,
    micro_batch_size: int,
    seed: int,
    first: int = 0,
    cross_documents: bool = False,
    advance: Callable[[int, int], None] = lambda windows, tokens: None,
) -> list[dict[str, ShardedEmbedding]]:
    """Embed domains with a model; every rank of the job must call it.

    Windows go to shards and to replicas by their index, so neither which windows are drawn nor
    which shard they are in depends on the layout. A window shorter than others of its batch is
    padded on the right, where a causal model's earlier tokens cannot see it; padding is not
    counted.

    Args:
        extractor: the model.
        domains: by name.
        layers: whose outputs are averaged, from 1.
        samples: windows per domain.
        sample_length: tokens a window, at most.
        micro_batch_size: windows at once, a replica.
        seed: of the windows.
        first: index of the first window, for more of them than an earlier call drew.
        cross_documents: as `Domain.window` has it.
        advance: told of every batch's windows and tokens, for a progress bar.

    Returns:
        For each layer {name: shard means (b, h)}, equal on every rank.

    Raises:
        UserError: a layer that the model does not have, or a hidden state that is not finite,
            naming domain and window.
    """
    for layer in layers:
        if not 1 <= layer <= extractor.num_layers:
            raise UserError(f"layer {layer}: the model's layers are 1 to {extractor.num_layers}")
    padded = _padded(sample_length, extractor)
    if extractor.max_length is not None and padded > extractor.max_length:
        raise UserError(
            f"chameleon.sample_length={sample_length} is padded to {padded} in this layout, the "
            f"model has positions for {extractor.max_length}: set a smaller one"
        )
    embeddings: list[dict[str, ShardedEmbedding]] = [{} for _ in layers]
    windows = range(first, first + samples)
    for name, domain in domains.items():
        read = partial(
            domain.window, length=sample_length, seed=seed, cross_documents=cross_documents
        )
        with contextlib.closing(_batches(read, windows, extractor, micro_batch_size)) as batches:
            sums = _sums_over_windows(extractor, domain, windows, batches, layers, advance)
        for by_name, total in zip(embeddings, sums, strict=True):
            tokens = total[:, -1]
            if not tokens.all():
                raise RuntimeError(f"no rank gave a hidden state of domain {name!r}")
            means = (total[:, :-1] / tokens[:, None]).astype(np.float32)
            by_name[name] = ShardedEmbedding(means, tokens.astype(np.int64))
    return embeddings


@dataclass(frozen=True)
class _Batch:
    """Windows to go through the model at once, on the CPU.

    Attributes:
        indices: (b,), of the windows.
        tokens: (b, s).
        counted: (b, s), which tokens the mean is over: none that are padding.
    """

    indices: torch.Tensor
    tokens: torch.Tensor
    counted: torch.Tensor


def _batches(
    window: Callable[[int], Window],
    windows: range,
    extractor: Extractor,
    micro_batch_size: int,
) -> Generator[list[_Batch], None, None]:
    """This replica's windows in blocks of batches, as many blocks on every rank."""
    block = _BATCHES_A_BLOCK * micro_batch_size * extractor.replicas
    pinned = torch.cuda.is_available()
    nothing = Window(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_))

    def read(start: int) -> list[_Batch]:
        mine = windows[start : start + block][extractor.replica :: extractor.replicas]
        drawn = [(index, window(index)) for index in mine]
        # Windows of a length go together: the less padding goes through the model.
        drawn.sort(key=lambda numbered: len(numbered[1].tokens))
        batches = []
        # As many on every replica, though some may be of nothing: experts are shared between them.
        most = -(-len(windows[start : start + block]) // extractor.replicas)
        for at in range(0, most, micro_batch_size):
            part = drawn[at : at + micro_batch_size] or [(windows.start, nothing)]
            longest = max(len(part[-1][1].tokens), 1)
            tokens = torch.zeros(len(part), _padded(longest, extractor), dtype=torch.int64)
            counted = torch.zeros(tokens.shape, dtype=torch.bool)
            for row, (_, drawn_one) in enumerate(part):
                tokens[row, : len(drawn_one.tokens)] = torch.from_numpy(drawn_one.tokens)
                counted[row, : len(drawn_one.counted)] = torch.from_numpy(drawn_one.counted)
            indices = torch.tensor([index for index, _ in part])
            tensors = (indices, tokens, counted)
            batches.append(_Batch(*(t.pin_memory() for t in tensors) if pinned else tensors))
        return batches

    # The next block is read while the model works on this one.
    with ThreadPoolExecutor(1) as reader:
        ahead = None
        for start in range(0, len(windows), block):
            ready = ahead or reader.submit(read, start)
            ahead = reader.submit(read, start + block) if start + block < len(windows) else None
            yield ready.result()


def _padded(length: int, extractor: Extractor) -> int:
    return -(-length // extractor.length_multiple) * extractor.length_multiple


def _sums_over_windows(
    extractor: Extractor,
    domain: Domain,
    windows: range,
    batches: Iterator[list[_Batch]],
    layers: Sequence[int],
    advance: Callable[[int, int], None],
) -> Floats:
    """(layers, b, h + 1), by shard: sums of hidden states over tokens, and the number of tokens."""
    shards, device = shard_count(len(windows)), current_device()
    size = (len(layers), shards, extractor.hidden_size + 1)
    total = torch.zeros(size, dtype=torch.float64, device=device)
    broken = torch.full((), windows.stop, device=device)
    for block in batches:
        for batch in block:
            indices, tokens, counting = (
                part.to(device, non_blocking=True) for part in vars(batch).values()
            )
            places = F.one_hot(indices % shards, shards).t().double()
            for part in extractor.parts(tokens, layers):
                counted = counting[:, part.positions].float()
                sums = torch.einsum("sbh,bs->bh", part.hidden.float(), counted)
                sums = torch.cat([sums, counted.sum(1, keepdim=True)], dim=1)
                bad = sums.isfinite().all(dim=1).logical_not()
                broken = torch.minimum(broken, torch.where(bad, indices, windows.stop).min())
                # A product rather than an indexed sum, which CUDA adds up in no fixed order.
                total[layers.index(part.layer)] += places @ sums.double()
            advance(int(batch.counted.any(dim=1).sum()), int(batch.counted.sum()))
        dist.all_reduce(broken, op=dist.ReduceOp.MIN)
        if int(broken) < windows.stop:
            raise UserError(
                f"domain {domain.name!r}: the hidden state of window {int(broken)} is not finite"
            )
    dist.all_reduce(total)
    result: Floats = total.cpu().numpy()
    return result
