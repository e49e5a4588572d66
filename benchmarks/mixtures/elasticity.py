"""What a domain's share is worth, from all base models that were trained.

Of every loss, domains' and unseen ones', on every mixture:

    L_i(w) - L_i(uniform) = - sum_j c_ij (log(w_j + s) - log(1/k + s)),    c_ij >= 0

c_ij is an elasticity, and none is negative: what one domain costs another beyond the share it takes
cannot be told. It is the nats that i gains when j's share grows by a factor of e. On the diagonal
stands what a domain's own tokens are worth to it, elsewhere what it gets from others'. s keeps a
share of nothing from costing infinitely much. The mixture with the least mean loss is w_j + s in
proportion to the sum of c_ij over i, as far as shares stay above 0: so the fit also says what there
was to be won, for any aim, and what a mixture that was never run would do.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]

SMOOTHING = 0.02


@dataclass(frozen=True)
class Elasticities:
    """c_ij (targets, domains)."""

    values: Array

    @classmethod
    def fit(cls, weights: Array, differences: Array) -> "Elasticities":
        """Of runs' weights (runs, domains) and losses less uniform's (runs, targets)."""
        x = features(weights)
        return cls(np.stack([nnls(x, target)[0] for target in differences.T]))

    def predicted(self, weights: Array) -> Array:
        """Losses less uniform's (..., targets) of weights (..., domains)."""
        result: Array = features(weights) @ self.values.T
        return result

    def best(self) -> Array:
        """The weights (domains,) with the least mean loss over the targets."""
        worth = self.values.mean(0)
        if not worth.max() > 0:
            return np.full(len(worth), 1 / len(worth))
        low, high = 0.0, worth.max() / SMOOTHING
        while (middle := (low + high) / 2) not in (low, high):
            # Shares fall as the price of a share rises.
            total = np.maximum(worth / middle - SMOOTHING, 0).sum()
            low, high = (middle, high) if total > 1 else (low, middle)
        shares: Array = np.maximum(worth / low - SMOOTHING, 0)
        shares /= shares.sum()
        return shares


def features(weights: Array) -> Array:
    """(..., domains) what a unit of elasticity costs."""
    k = weights.shape[-1]
    result: Array = np.log(1 / k + SMOOTHING) - np.log(weights + SMOOTHING)
    return result


def left_out(weights: Array, differences: Array, groups: list[str]) -> Array:
    """Predictions (runs, targets) of each group's runs by a fit to all others."""
    names, predicted = np.array(groups), np.empty_like(differences)
    for name in set(groups):
        inside = names == name
        fitted = Elasticities.fit(weights[~inside], differences[~inside])
        predicted[inside] = fitted.predicted(weights[inside])
    return predicted
