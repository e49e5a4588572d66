"""The sums over tokens that one rank holds of a domain, and the embeddings that follow from them.

A few tokens of a well-trained model have hidden states with hundreds of times the norm of all
others ("massive activations": Sun et al. 2024, arXiv 2402.17762), mostly the first token of a
window. A mean over raw states would measure them, and so how long the windows are. Therefore each
token's state is divided by its own root mean square first, as the norm of the next layer does.

How much of a mean comes from its heaviest tokens is recorded in both cases. Tokens are put into
bins by their norms, four bins to a factor of two, and the bins are summed like the shards. So the
heaviest 1 % of the tokens are found without a second pass and in any layout, but for the bin that
is used in part: of that one the average token is taken.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812

from nemo_chameleon.embedding.hooks import Part
from nemo_chameleon.method.embeddings import HEAVIEST, HeaviestTokens, ShardedEmbedding
from nemo_chameleon.utils.arrays import Floats
from nemo_chameleon.utils.errors import UserError

# Four bins to a factor of two. Norms below 2^-11 are in the first bin, and above 2^21 in the last.
_BINS, _PER_DOUBLING, _FIRST_EXPONENT = 128, 4, -11
# States with smaller norms than this stay small; dividing by less could overflow.
_LEAST_NORM = 1e-20


class DomainSums:
    """Sums of a domain's hidden states, by layer, shard and norm; every rank must use one alike."""

    def __init__(
        self,
        name: str,
        layers: Sequence[int],
        windows: range,
        *,
        shards: int,
        hidden_size: int,
        normalize_states: bool,
        device: torch.device,
    ) -> None:
        """Begin with no tokens.

        Args:
            name: the domain's name; errors name it.
            layers: numbers of the layers that are summed.
            windows: indices of the domain's windows.
            shards: number of shards b of the windows; a window's shard is its index modulo b.
            hidden_size: width h of the hidden states.
            normalize_states: whether each token's state is divided by its root mean square.
            device: where the sums are kept.
        """
        self._name, self._layers, self._shards = name, list(layers), shards
        self._normalize = normalize_states
        # Each row has a sum of states and, in the last column, the number of its tokens. The rows
        # of the shards come first, then those of the bins.
        size = (len(layers), shards + _BINS, hidden_size + 1)
        self._total = torch.zeros(size, dtype=torch.float64, device=device)
        # The largest norm of a token, its id, and its position in its window.
        self._heaviest = torch.zeros(len(layers), 3, dtype=torch.float64, device=device)
        self._end = windows.stop
        self._broken = torch.full((), windows.stop, device=device)

    def add(
        self, part: Part, indices: torch.Tensor, tokens: torch.Tensor, counting: torch.Tensor
    ) -> None:
        """Add the part of a layer's output that this rank holds; nothing is sent.

        Args:
            part: hidden states (n, b, h) of n positions of b windows.
            indices: indices of the windows (b,).
            tokens: token ids of the windows (b, s).
            counting: whether each token counts (b, s).
        """
        layer = self._layers.index(part.layer)
        hidden = part.hidden.float()
        counted = counting[:, part.positions].t().float()
        norms = torch.linalg.vector_norm(hidden, dim=-1)
        weights = counted
        if self._normalize:
            root = hidden.shape[-1] ** 0.5
            weights = counted * root / norms.clamp_min(_LEAST_NORM)
        sums = torch.einsum("sbh,sb->bh", hidden, weights)
        sums = torch.cat([sums, counted.sum(0)[:, None]], dim=1)
        # An infinite norm would hide behind the division.
        finite = sums.isfinite().all(dim=1) & (norms * counted).isfinite().all(dim=0)
        self._broken = torch.minimum(self._broken, torch.where(finite, self._end, indices).min())
        # This is a product because CUDA adds up an indexed sum in no fixed order.
        places = F.one_hot(indices % self._shards, self._shards).t().double()
        self._total[layer, : self._shards] += places @ sums.double()
        places_in_bins = (norms.clamp_min(_LEAST_NORM).log2() - _FIRST_EXPONENT) * _PER_DOUBLING
        in_bin = F.one_hot(places_in_bins.nan_to_num().clamp(0, _BINS - 1).long(), _BINS).float()
        by_bin = torch.einsum("sbk,sbh->kh", in_bin * weights[..., None], hidden)
        numbers = torch.einsum("sbk,sb->k", in_bin, counted)
        self._total[layer, self._shards :] += torch.cat([by_bin, numbers[:, None]], dim=1).double()
        self._note_heaviest(layer, norms * counted, part.positions, tokens)

    def _note_heaviest(
        self, layer: int, norms: torch.Tensor, positions: torch.Tensor, tokens: torch.Tensor
    ) -> None:
        norm, place = norms.flatten().max(dim=0)
        position = positions[place // norms.shape[1]]
        token = tokens[place % norms.shape[1], position]
        found = torch.stack([norm.double(), token.double(), position.double()])
        if_heavier = norm > self._heaviest[layer, 0]
        self._heaviest[layer] = torch.where(if_heavier, found, self._heaviest[layer])

    def require_finite(self) -> None:
        """Check the hidden states that were added so far; every rank must call it.

        Raises:
            UserError: one is not finite; the message names the domain and the first such window.
        """
        dist.all_reduce(self._broken, op=dist.ReduceOp.MIN)
        if int(self._broken) < self._end:
            raise UserError(
                f"domain {self._name!r}: the hidden state of window {int(self._broken)} is not "
                "finite"
            )

    def embeddings(self) -> list[ShardedEmbedding]:
        """Add up the sums of all ranks; every rank must call it.

        Returns:
            For each layer the embedding of the domain, equal on every rank.

        Raises:
            UserError: some windows have tokens that count, but those of a whole shard have none.
            RuntimeError: no rank gave a hidden state, because of a fault in the extractor.
        """
        dist.all_reduce(self._total)
        everyones = [torch.empty_like(self._heaviest) for _ in range(dist.get_world_size())]
        dist.all_gather(everyones, self._heaviest)
        heaviest = torch.stack(everyones).cpu()
        result = []
        for layer, total in enumerate(self._total.cpu().numpy()):
            tokens = total[: self._shards, -1]
            if not tokens.any():
                raise RuntimeError(f"no rank gave a hidden state of domain {self._name!r}")
            if not tokens.all():
                raise UserError(
                    f"domain {self._name!r} has too few windows with tokens that count: raise "
                    "chameleon.samples"
                )
            means = (total[: self._shards, :-1] / tokens[:, None]).astype("float32")
            norm, token, position = heaviest[int(heaviest[:, layer, 0].argmax()), layer].tolist()
            share = _share_of_heaviest(total[self._shards :])
            heavy = HeaviestTokens(share, norm, int(token), int(position))
            result.append(ShardedEmbedding(means, tokens.astype("int64"), heavy))
        return result


def _share_of_heaviest(bins: Floats) -> float:
    """Return the share of the mean's squared norm that its heaviest tokens give.

    Args:
        bins: for each bin the sum of its states and the number of its tokens (128, h + 1), in the
            order of their norms.
    """
    mean = bins[:, :-1].sum(axis=0)
    left = HEAVIEST * bins[:, -1].sum()
    heavy = 0.0 * mean
    for row in bins[::-1]:
        if row[-1] > 0:
            heavy += row[:-1] * min(1.0, left / row[-1])
            left -= min(left, row[-1])
    squared = float(mean @ mean)
    return float(heavy @ mean) / squared if squared else 0.0
