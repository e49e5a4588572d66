"""Weights within bounds: caps on epochs, floors and fixed shares, solved exactly.

Weights that are not at a bound keep their proportions: w_i becomes clip(s·w_i, lower_i, upper_i)
with the one s for which the weights sum to 1. The sum is piecewise linear in s: the right piece is
searched for, and s is solved for within it, so that no tolerance is needed.
"""

import numpy as np
from numpy.typing import ArrayLike

from nemo_chameleon.utils.arrays import Floats


def bounded_weights(weights: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> Floats:
    """Return the weights within bounds that keep the proportions of the given weights.

    Args:
        weights: (k,), positive.
        lower: (k,), at least 0.
        upper: (k,), at least `lower`; may be infinite.

    Returns:
        (k,), with a sum of 1.

    Raises:
        ValueError: a weight is not positive and finite, a lower bound is negative or above its
            upper bound, or no weights with a sum of 1 are within the bounds.
    """
    w, low, high = (np.asarray(part, dtype=np.float64) for part in (weights, lower, upper))
    if not np.all((w > 0) & np.isfinite(w)):
        raise ValueError("weights must be positive and finite")
    if not np.all((low >= 0) & (low <= high)):
        raise ValueError("a lower bound is negative or above its upper bound")
    if low.sum() > 1 + 1e-12 or high.sum() < 1 - 1e-12:
        raise ValueError(
            f"the lower bounds sum to {low.sum()} and the upper bounds to {high.sum()}, but the "
            "weights must sum to 1"
        )
    if high.sum() <= 1 + 1e-12:
        return _normalised(high)
    if low.sum() >= 1 - 1e-12:
        return _normalised(low)
    # A weight leaves its floor at scale low/w and reaches its cap at high/w. Between two of these
    # corners the sum is linear. Find the last corner at which the sum is not above 1.
    corners = np.unique(np.concatenate([[0.0], low / w, high / w]))
    corners = corners[np.isfinite(corners)]
    first, last = 0, len(corners)
    while last - first > 1:
        middle = (first + last) // 2
        if np.clip(corners[middle] * w, low, high).sum() <= 1.0:
            first = middle
        else:
            last = middle
    start = corners[first]
    free = (low / w <= start) & (high / w > start)
    held = np.where(free, 0.0, np.clip(start * w, low, high))
    if not free.any():  # the sum is constant up to the next corner, so it is 1
        return _normalised(held)
    scale = (1.0 - held.sum()) / w[free].sum()
    return np.where(free, scale * w, held)


def _normalised(amounts: Floats) -> Floats:
    shares: Floats = amounts / amounts.sum()
    return shares
