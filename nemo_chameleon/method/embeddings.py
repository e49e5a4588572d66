"""Domain embeddings: means over shards of each domain's windows.

A domain's embedding is the mean over the tokens of all its shards. How much the shards differ tells
how far another draw of windows could have moved the embedding.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nemo_chameleon.utils.arrays import Floats, Ints

SHARDS = 32
"""The most shards that the windows of a domain are divided into."""
HEAVIEST = 0.01
"""The share of a domain's tokens that `HeaviestTokens` is about."""


@dataclass(frozen=True)
class HeaviestTokens:
    """The tokens with the largest hidden states among those that an embedding is a mean over.

    Attributes:
        share: of the squared norm of the mean, what the heaviest 1 % of the tokens give: 0.01 if
            all tokens are alike.
        norm: the largest norm of a token's hidden state, before it is normalised.
        token: id of the token that has it.
        position: position of that token in its window, counted from 0.
    """

    share: float
    norm: float
    token: int
    position: int


@dataclass(frozen=True)
class ShardedEmbedding:
    """The embedding of one domain by one proxy, in shards of the domain's windows.

    Attributes:
        means: (b, d) float32, the mean hidden state over the tokens of each shard.
        tokens: (b,) int64, the number of tokens in each shard.
        heaviest: the tokens with the largest hidden states; None if it was not recorded.
    """

    means: NDArray[np.float32]
    tokens: Ints
    heaviest: HeaviestTokens | None = None

    @property
    def embedding(self) -> Floats:
        """The mean hidden state over all tokens, (d,)."""
        mean: Floats = self.tokens @ self.means.astype(np.float64) / self.tokens.sum()
        return mean

    def digest(self) -> str:
        """Return the first 16 hexadecimal digits of a SHA-256 of means and tokens."""
        numbers = self.means.astype("<f4").tobytes() + self.tokens.astype("<i8").tobytes()
        return hashlib.sha256(numbers).hexdigest()[:16]

    def noise(self) -> float:
        """Estimate the squared error of the embedding that comes from drawing some windows only.

        Returns:
            The expected squared distance from the embedding of infinitely many windows; 0 if there
            is one shard.
        """
        shards = len(self.tokens)
        if shards < 2:
            return 0.0
        apart = self.means - self.embedding
        return float(np.mean(np.sum(apart**2, axis=1)) / (shards - 1))

    def joined(self, others: "ShardedEmbedding") -> "ShardedEmbedding":
        """Return these shards with the windows of others added, shard by shard.

        Args:
            others: embedding of other windows of the domain, with as many shards.

        Returns:
            As many shards as before, with the tokens of both. The share of the heaviest tokens is
            the mean of both shares by tokens.
        """
        tokens = self.tokens + others.tokens
        sums = self.means * self.tokens[:, None].astype(np.float64) + others.means * others.tokens[
            :, None
        ].astype(np.float64)
        heaviest = None
        if self.heaviest is not None and others.heaviest is not None:
            own = float(self.tokens.sum() / tokens.sum())
            share = own * self.heaviest.share + (1 - own) * others.heaviest.share
            heaviest = max(self.heaviest, others.heaviest, key=lambda tokens: tokens.norm)
            heaviest = replace(heaviest, share=share)
        return ShardedEmbedding((sums / tokens[:, None]).astype(np.float32), tokens, heaviest)


Embeddings = Mapping[str, ShardedEmbedding]
"""The embeddings of one proxy, by domain name."""


def shard_count(samples: int) -> int:
    """Return the number of shards for windows; a window's shard is its index modulo this number.

    Args:
        samples: number of windows.

    Returns:
        At most `SHARDS`.
    """
    return min(SHARDS, samples)
