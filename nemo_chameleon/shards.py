"""Domain embeddings as they are kept: means over shards of each domain's windows, and their file.

A domain's embedding is the mean over all of its shards' tokens. The shards themselves are what
says how far another draw of windows could have moved it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from nemo_chameleon.errors import UserError
from nemo_chameleon.files import write_atomically

SHARDS = 32


@dataclass(frozen=True)
class Shards:
    """One domain's embedding through one proxy, in shards of its windows.

    Attributes:
        means: (b, d) float32, mean hidden state over the tokens of each shard.
        tokens: (b,) int64, tokens of each shard.
    """

    means: NDArray[np.float32]
    tokens: NDArray[np.int64]

    @property
    def embedding(self) -> NDArray[np.float64]:
        """(d,), the mean over all tokens."""
        mean: NDArray[np.float64] = self.tokens @ self.means.astype(np.float64) / self.tokens.sum()
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

    def joined(self, others: "Shards") -> "Shards":
        """These shards with more windows in each."""
        tokens = self.tokens + others.tokens
        sums = self.means * self.tokens[:, None].astype(np.float64) + others.means * others.tokens[
            :, None
        ].astype(np.float64)
        return Shards((sums / tokens[:, None]).astype(np.float32), tokens)


Embeddings = Mapping[str, Shards]
"""By domain name, through one proxy."""


def shard_count(samples: int) -> int:
    """Into how many shards `samples` windows go, by their index modulo this."""
    return min(SHARDS, samples)


def embeddings_file(mixture_file: str | Path) -> Path:
    """Where a mixture's embeddings lie: beside its file, under its name."""
    return Path(mixture_file).with_suffix(".safetensors")


def save_embeddings(path: Path, embeddings: Sequence[Embeddings]) -> None:
    """Write embeddings through one proxy or several, in one step.

    Raises:
        UserError: the place cannot be written to.
    """
    tensors: dict[str, Any] = {}
    for proxy, domains in enumerate(embeddings):
        for name, shards in domains.items():
            tensors[f"{proxy}/means/{name}"] = shards.means
            tensors[f"{proxy}/tokens/{name}"] = shards.tokens
    try:
        write_atomically(path, save(tensors))
    except OSError as error:
        raise UserError(f"cannot write the embeddings {path}: {error}") from error


def load_embeddings(path: Path) -> list[dict[str, Shards]]:
    """Read embeddings by domain name, one mapping for each proxy.

    Raises:
        UserError: no such file, or not one of embeddings.
    """
    try:
        tensors: dict[str, Any] = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the embeddings {path}: {error}") from error
    embeddings: dict[int, dict[str, Shards]] = {}
    try:
        for key, means in tensors.items():
            proxy, what, name = key.split("/", 2)
            if what == "means":
                tokens = tensors[f"{proxy}/tokens/{name}"]
                if means.ndim != 2 or tokens.shape != means.shape[:1] or not np.all(tokens > 0):
                    raise UserError(f"{path}: the embedding of domain {name!r} is damaged")
                shards = Shards(means, tokens.astype(np.int64))
                embeddings.setdefault(int(proxy), {})[name] = shards
        return [embeddings[proxy] for proxy in range(max(1, len(embeddings)))]
    except (ValueError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} holds no domain embeddings of this version: remove it and the mixture file to "
            "compute them anew"
        ) from error
