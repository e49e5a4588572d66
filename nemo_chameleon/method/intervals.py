"""How far weights could be off: a bootstrap over shards of windows, a jackknife over proxies.

A replicate draws every domain's shards with replacement and computes the weights again. Errors are
of the weights' logarithms about the estimate, not about the replicates' mean: noise in an embedding
lengthens it, which pushes the weights to one side, and a replicate is pushed once more as far.
Measured so, an interval covers that bias too. In simulations intervals up to a tenth wide held the
true weight in 92 to 95 %; wider ones hold it less often, and say that too few windows were drawn in
any case.

Where a mixture is of several proxies, leaving each out in turn says how far another set of proxies
could have moved it. Few proxies say little about that, and the intervals are as wide as that takes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from nemo_chameleon.method.embeddings import Embeddings
from nemo_chameleon.utils.arrays import Floats
from nemo_chameleon.utils.seeding import key_of

REPLICATES = 200


@dataclass(frozen=True)
class WeightErrors:
    """Weights, and errors of their natural logarithms.

    Attributes:
        weights: (k,).
        windows: (replicates, k), had other windows been drawn.
        proxies: (proxies, k), whose sum of squares is the variance over sets of as many proxies;
            (0, k) for one proxy, which says nothing about others.
        shards: that the windows of each domain are in.
    """

    weights: Floats
    windows: Floats
    proxies: Floats
    shards: int

    def intervals(self) -> Floats:
        """(k, 2), 95 % intervals of the weights."""
        reach = np.exp(self._reach(self.windows, self.proxies))
        return np.stack([self.weights / reach, np.minimum(self.weights * reach, 1.0)], axis=1)

    def half_widths(self) -> Floats:
        """(k,), of the intervals."""
        half: Floats = np.diff(self.intervals(), axis=1)[:, 0] / 2
        return half

    def of_windows(self) -> "WeightErrors":
        """Without what other proxies would have changed."""
        return WeightErrors(self.weights, self.windows, self.proxies[:0], self.shards)

    def tell_apart(self, i: int, j: int) -> bool:
        """Whether the data says which of two domains has the larger weight."""
        difference = abs(np.log(self.weights[i] / self.weights[j]))
        windows, proxies = (e[:, i] - e[:, j] for e in (self.windows, self.proxies))
        return bool(difference > self._reach(windows, proxies))

    def _reach(self, windows: Floats, proxies: Floats) -> Floats:
        reach = students_t(self.shards - 1) * np.sqrt(np.mean(windows**2, axis=0))
        if len(proxies):
            of_proxies = students_t(len(proxies) - 1) * np.sqrt(np.sum(proxies**2, axis=0))
            reach = np.hypot(reach, of_proxies)
        result: Floats = reach
        return result


def resample(
    embeddings: Sequence[Embeddings],
    names: Sequence[str],
    weigh: Callable[[list[Floats]], Floats],
    replicates: int = REPLICATES,
) -> WeightErrors | None:
    """Weights computed again and again from windows drawn anew, and without each proxy.

    What is drawn for a domain follows from its name, so it does not depend on other domains. The
    proxies of a mixture saw the same windows, so one draw goes for all.

    Args:
        embeddings: by name, for each proxy; as many shards everywhere.
        names: (k,), the domains.
        weigh: from one embedding matrix (k, d) a proxy to weights (k,).
        replicates: how often.

    Returns:
        None where there is but one shard.
    """
    shards = len(embeddings[0][names[0]].tokens)
    if shards < 2:
        return None
    means = [np.stack([proxy[name].means for name in names]) for proxy in embeddings]
    tokens = [np.stack([proxy[name].tokens for name in names]) for proxy in embeddings]
    counts = np.stack([_draws(name, shards, replicates) for name in names], axis=1)

    def drawn(counted: NDArray[np.integer]) -> list[Floats]:
        return [_resampled(m, t, counted) for m, t in zip(means, tokens, strict=True)]

    whole = drawn(np.ones_like(counts[0]))
    weights = weigh(whole)
    windows = np.stack([np.log(weigh(drawn(counted)) / weights) for counted in counts])
    # Drawing n of n with replacement has (n - 1)/n of the variance of drawing n anew.
    windows *= np.sqrt(shards / (shards - 1))
    count = len(whole)
    proxies = np.zeros((0, len(names)))
    if count > 1:
        without = np.stack([np.log(weigh(whole[:p] + whole[p + 1 :])) for p in range(count)])
        proxies = (without - without.mean(axis=0)) * np.sqrt((count - 1) / count)
    return WeightErrors(weights, windows, proxies, shards)


def students_t(degrees: int) -> float:
    """The 97.5 % quantile of Student's t, to 1 % from 3 degrees of freedom on and exact below."""
    if degrees == 1:
        return 12.706
    if degrees == 2:
        return 4.303
    z, n = NormalDist().inv_cdf(0.975), degrees
    # Cornish and Fisher's expansion.
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def _draws(name: str, shards: int, replicates: int) -> NDArray[np.uint8]:
    """(replicates, shards), how often each shard of a domain is drawn."""
    seed = int.from_bytes(key_of(name), "little")
    generator = np.random.default_rng(seed)
    return generator.multinomial(shards, np.full(shards, 1 / shards), replicates).astype(np.uint8)


def _resampled(
    means: NDArray[np.float32], tokens: NDArray[np.int64], counts: NDArray[np.integer]
) -> Floats:
    """(k, d) embeddings of shards (k, b, d) that are drawn `counts` (k, b) times."""
    share = tokens * counts
    share = (share / share.sum(axis=1, keepdims=True)).astype(np.float32)
    mean: Floats = np.matmul(share[:, None, :], means)[:, 0].astype(np.float64)
    return mean
