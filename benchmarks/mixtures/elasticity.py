"""Fit how much each loss depends on each domain's weight, to all base models that were trained.

The model is, for the loss on every domain, mixed or unseen, and for every mixture:

    L_i(w) - L_i(uniform) = - sum_j c_ij (log(w_j + s) - log(1/k + s)),    c_ij >= 0

c_ij is an elasticity: the nats that loss i falls when the weight of domain j grows by a factor of
e. On the diagonal it is the effect of a domain's own tokens, elsewhere that of other domains'
tokens. None is negative: the data cannot tell what harm one domain does to another beyond taking
its share. s keeps the cost of a weight of zero finite. At the least mean loss, w_j + s is
proportional to the sum of c_ij over i, as long as weights stay above 0. The fit therefore also
gives the best mixture for any set of losses, and predicts the losses of mixtures that were never
run.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]

SMOOTHING = 0.02


@dataclass(frozen=True)
class Elasticities:
    """Elasticities c_ij (targets, domains)."""

    values: Array

    @classmethod
    def fit(cls, weights: Array, differences: Array) -> "Elasticities":
        """Fit weights (runs, domains) to losses minus uniform's (runs, targets)."""
        x = features(weights)
        return cls(np.stack([nnls(x, target)[0] for target in differences.T]))

    def predicted(self, weights: Array) -> Array:
        """Predict losses minus uniform's (..., targets) of weights (..., domains)."""
        result: Array = features(weights) @ self.values.T
        return result

    def best(self) -> Array:
        """Return the weights (domains,) with the least mean loss over the targets."""
        worth = self.values.mean(0)
        if not worth.max() > 0:
            return np.full(len(worth), 1 / len(worth))
        low, high = 0.0, worth.max() / SMOOTHING
        while (middle := (low + high) / 2) not in (low, high):
            # The shares fall as the price of a share rises.
            total = np.maximum(worth / middle - SMOOTHING, 0).sum()
            low, high = (middle, high) if total > 1 else (low, middle)
        shares: Array = np.maximum(worth / low - SMOOTHING, 0)
        shares /= shares.sum()
        return shares


def features(weights: Array) -> Array:
    """Return the change in loss (..., domains) per unit of elasticity."""
    k = weights.shape[-1]
    result: Array = np.log(1 / k + SMOOTHING) - np.log(weights + SMOOTHING)
    return result


def left_out(weights: Array, differences: Array, groups: list[str]) -> Array:
    """Predict the losses (runs, targets) of each group by a fit to all other groups."""
    names, predicted = np.array(groups), np.empty_like(differences)
    for name in set(groups):
        inside = names == name
        fitted = Elasticities.fit(weights[~inside], differences[~inside])
        predicted[inside] = fitted.predicted(weights[inside])
    return predicted
