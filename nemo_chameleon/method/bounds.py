"""Weights kept between bounds: caps on epochs, floors and fixed shares in one exact solve.

The weights that a bound does not hold stay in proportion to what they were: w_i becomes
clip(s·w_i, lower_i, upper_i) with the one s for which they sum to 1. That sum rises with s in
straight pieces: the right one is looked for, and s solved for in it, without a tolerance.
"""

import numpy as np
from numpy.typing import ArrayLike

from nemo_chameleon.utils.arrays import Floats


def bounded_weights(weights: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> Floats:
    """The nearest weights in proportion to the given ones that keep the bounds.

    Args:
        weights: (k,), positive.
        lower: (k,), at least 0.
        upper: (k,), at least `lower`; may be infinite.

    Returns:
        (k,), summing to 1.

    Raises:
        ValueError: bounds that cross, or that no weights summing to 1 can keep.
    """
    w, low, high = (np.asarray(part, dtype=np.float64) for part in (weights, lower, upper))
    if not np.all((w > 0) & np.isfinite(w)):
        raise ValueError("weights must be positive and finite")
    if not np.all((low >= 0) & (low <= high)):
        raise ValueError("a lower bound is negative or above its upper bound")
    if low.sum() > 1 + 1e-12 or high.sum() < 1 - 1e-12:
        raise ValueError(f"lower bounds sum to {low.sum()}, upper bounds to {high.sum()}")
    if high.sum() <= 1 + 1e-12:
        return _normalised(high)
    if low.sum() >= 1 - 1e-12:
        return _normalised(low)
    # At scale low/w a weight leaves its floor, at high/w it reaches its cap; between two of these
    # corners the sum is linear. Find the last corner at which it is not yet above 1.
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
    if not free.any():  # flat up to the next corner: the sum is 1 here
        return _normalised(held)
    scale = (1.0 - held.sum()) / w[free].sum()
    return np.where(free, scale * w, held)


def _normalised(amounts: Floats) -> Floats:
    shares: Floats = amounts / amounts.sum()
    return shares
