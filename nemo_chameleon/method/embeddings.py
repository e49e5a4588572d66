"""Domain embeddings as they are kept: means over shards of each domain's windows, and their file.

A domain's embedding is the mean over all of its shards' tokens. The shards themselves are what
says how far another draw of windows could have moved it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_chameleon.utils.arrays import Floats, Ints

SHARDS = 32


@dataclass(frozen=True)
class ShardedEmbedding:
    """One domain's embedding through one proxy, in shards of its windows.

    Attributes:
        means: (b, d) float32, mean hidden state over the tokens of each shard.
        tokens: (b,) int64, tokens of each shard.
    """

    means: NDArray[np.float32]
    tokens: Ints

    @property
    def embedding(self) -> Floats:
        """(d,), the mean over all tokens."""
        mean: Floats = self.tokens @ self.means.astype(np.float64) / self.tokens.sum()
        return mean

    def digest(self) -> str:
        """Of the numbers, to know them again."""
        numbers = self.means.astype("<f4").tobytes() + self.tokens.astype("<i8").tobytes()
        return hashlib.sha256(numbers).hexdigest()[:16]

    def noise(self) -> float:
        """Expected squared distance of the embedding from that of any number of windows."""
        shards = len(self.tokens)
        if shards < 2:
            return 0.0
        apart = self.means - self.embedding
        return float(np.mean(np.sum(apart**2, axis=1)) / (shards - 1))

    def joined(self, others: "ShardedEmbedding") -> "ShardedEmbedding":
        """These shards with more windows in each."""
        tokens = self.tokens + others.tokens
        sums = self.means * self.tokens[:, None].astype(np.float64) + others.means * others.tokens[
            :, None
        ].astype(np.float64)
        return ShardedEmbedding((sums / tokens[:, None]).astype(np.float32), tokens)


Embeddings = Mapping[str, ShardedEmbedding]
"""By domain name, through one proxy."""


def shard_count(samples: int) -> int:
    """Into how many shards `samples` windows go, by their index modulo this."""
    return min(SHARDS, samples)
