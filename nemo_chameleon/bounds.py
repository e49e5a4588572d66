"""Weights kept between bounds: caps on epochs, floors and fixed shares in one exact solve.

The weights that a bound does not hold stay in proportion to what they were: w_i becomes
clip(s·w_i, lower_i, upper_i) with the one s for which they sum to 1. That sum rises with s in
straight pieces, so s is found without iterating to a tolerance.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def bounded_weights(weights: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> Array:
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
    # At scale low/w a weight leaves its floor and the sum begins to rise by w, at high/w it reaches
    # its cap and stops. Between two such corners the sum is linear: find the last corner at which
    # it is not yet 1.
    corners, slopes = np.concatenate([low / w, high / w]), np.concatenate([w, -w])
    order = np.argsort(corners, kind="stable")
    order = order[np.isfinite(corners[order])]
    corners, slopes = corners[order], np.cumsum(slopes[order])
    sums = low.sum() + np.concatenate([[0.0], np.cumsum(slopes[:-1] * np.diff(corners))])
    start = corners[np.searchsorted(sums, 1.0, side="right") - 1]
    free = (low / w <= start) & (high / w > start)
    held = np.where(free, 0.0, np.clip(start * w, low, high))
    if not free.any():
        return held / held.sum()
    scale = (1.0 - held.sum()) / w[free].sum()
    return np.where(free, scale * w, held)
