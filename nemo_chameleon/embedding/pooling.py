"""Domain embeddings: the mean hidden state of a domain's tokens after a middle layer of a GPT.

Forward hooks record the outputs of the wanted layers. The hook of the last one ends the forward
pass, so that nothing above it is computed. Each rank sums the hidden states that it holds: those of
its windows, of its part of the sequence and of its layers. Ranks exchange nothing but these sums.
"""

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from nemo_chameleon.data.domain import Domain, Window
from nemo_chameleon.distributed.device import current_device
from nemo_chameleon.embedding.hooks import Extractor
from nemo_chameleon.embedding.reencoding import Reencoding
from nemo_chameleon.embedding.sums import DomainSums
from nemo_chameleon.embedding.windows import WindowReader, Windows
from nemo_chameleon.method.embeddings import ShardedEmbedding, shard_count
from nemo_chameleon.utils.errors import UserError

# Batches between two collectives of all ranks. The collectives are frequent enough for any timeout
# of the process group, and rare enough to cost nothing.
_BATCHES_A_BLOCK = 8


def middle_layer(num_layers: int) -> int:
    """Return the layer that the paper embeds with.

    Args:
        num_layers: number of the model's layers.

    Returns:
        The number of the middle layer, counted from 1: 3 of 6, or 6 of 12.
    """
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
    cross_documents: bool = True,
    normalize_states: bool = True,
    reencoding: Reencoding | None = None,
    advance: Callable[[int, int], None] = lambda windows, tokens: None,
) -> list[dict[str, ShardedEmbedding]]:
    """Embed domains with a model; every rank of the job must call it.

    A window's index decides its shard and its replica. Therefore neither the windows that are drawn
    nor their shards depend on the layout. A window that is shorter than others of its batch is
    padded on the right, where the earlier tokens of a causal model cannot see the padding. Padding
    is not counted.

    Args:
        extractor: the model.
        domains: the domains, by name.
        layers: numbers of the layers whose outputs are averaged, counted from 1.
        samples: windows per domain.
        sample_length: the most tokens in a window.
        micro_batch_size: windows that each replica embeds at once.
        seed: seed of the windows.
        first: index of the first window; a later call continues where an earlier one ended.
        cross_documents: whether a window may continue into the next document.
        normalize_states: whether each token's state is divided by its root mean square, so that no
            token counts for more than another.
        reencoding: how the domains' tokens become the model's; None if they are the same.
        advance: called with the numbers of windows and of tokens in each batch, for a progress bar.

    Returns:
        For each layer the embeddings by domain name, equal on every rank. Each has the means of b
        shards (b, h) and their numbers of tokens (b,).

    Raises:
        UserError: a layer that the model does not have, windows that are longer than the model's
            positions, or a hidden state that is not finite; the last names domain and window.
        RuntimeError: no rank gave a hidden state of a domain, because of a fault in the extractor.
    """
    padded_length(extractor, layers, sample_length)
    embeddings: list[dict[str, ShardedEmbedding]] = [{} for _ in layers]
    numbers, device = range(first, first + samples), current_device()
    windows = Windows(tuple(layers), sample_length, seed, cross_documents, normalize_states)
    for name, domain in domains.items():
        read = WindowReader(domain, windows, reencoding).read
        sums = DomainSums(
            name,
            layers,
            numbers,
            shards=shard_count(samples),
            hidden_size=extractor.hidden_size,
            normalize_states=normalize_states,
            device=device,
        )
        with contextlib.closing(_batches(read, numbers, extractor, micro_batch_size)) as batches:
            for block in batches:
                for batch in block:
                    indices, tokens, counting = (
                        part.to(device, non_blocking=True) for part in vars(batch).values()
                    )
                    for part in extractor.parts(tokens, layers):
                        sums.add(part, indices, tokens, counting)
                    advance(int(batch.counted.any(dim=1).sum()), int(batch.counted.sum()))
                sums.require_finite()
        for by_name, shards in zip(embeddings, sums.embeddings(), strict=True):
            by_name[name] = shards
    return embeddings


def padded_length(extractor: Extractor, layers: Sequence[int], sample_length: int) -> int:
    """Check that a model has layers and positions, and pad the length of its windows.

    Args:
        extractor: the model.
        layers: numbers of the layers that are averaged, counted from 1.
        sample_length: the most tokens in a window.

    Returns:
        The tokens of the longest batch.

    Raises:
        UserError: a layer that the model does not have, or windows that are longer than the model's
            positions.
    """
    for layer in layers:
        if not 1 <= layer <= extractor.num_layers:
            raise UserError(f"layer {layer}: the model's layers are 1 to {extractor.num_layers}")
    padded = _padded(sample_length, extractor)
    if extractor.max_length is not None and padded > extractor.max_length:
        raise UserError(
            f"chameleon.sample_length={sample_length} is padded to {padded} in this layout, but "
            f"the model has positions for {extractor.max_length}: set a smaller one"
        )
    return padded


@dataclass(frozen=True)
class _Batch:
    """Windows that go through the model at once, on the CPU.

    Attributes:
        indices: indices of the windows (b,).
        tokens: token ids (b, s).
        counted: whether each token counts for the mean (b, s); padding does not.
    """

    indices: torch.Tensor
    tokens: torch.Tensor
    counted: torch.Tensor


def _batches(
    read_windows: Callable[[Sequence[int]], list[Window]],
    windows: range,
    extractor: Extractor,
    micro_batch_size: int,
) -> Generator[list[_Batch], None, None]:
    """Yield this replica's windows as blocks of batches; every rank gets as many blocks."""
    block = _BATCHES_A_BLOCK * micro_batch_size * extractor.replicas
    pinned = torch.cuda.is_available()
    nothing = Window(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_))

    def read(start: int) -> list[_Batch]:
        mine = windows[start : start + block][extractor.replica :: extractor.replicas]
        drawn = list(zip(mine, read_windows(mine), strict=True))
        # Windows of similar length share a batch, so that less padding goes through the model.
        drawn.sort(key=lambda numbered: len(numbered[1].tokens))
        batches = []
        # Every replica makes as many batches, some of them perhaps empty, because replicas share
        # experts.
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


def first_batch(reader: WindowReader, numbers: Sequence[int], extractor: Extractor) -> torch.Tensor:
    """Read windows as one batch, as `embed` does.

    Args:
        reader: of a domain's windows.
        numbers: of the windows.
        extractor: the model.

    Returns:
        Token ids (b, s), padded on the right.
    """
    windows = reader.read(numbers)
    longest = max([1, *(len(window.tokens) for window in windows)])
    tokens = torch.zeros(len(windows), _padded(longest, extractor), dtype=torch.int64)
    for row, window in enumerate(windows):
        tokens[row, : len(window.tokens)] = torch.from_numpy(window.tokens)
    return tokens


def _padded(length: int, extractor: Extractor) -> int:
    return -(-length // extractor.length_multiple) * extractor.length_multiple
