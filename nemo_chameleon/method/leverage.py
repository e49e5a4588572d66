"""Domain embeddings to affinity and leverage scores: the first half of the Chameleon method.

Source: "Chameleon: A Flexible Data-mixing Framework for Language Model Pretraining and
Finetuning", arXiv 2505.24844. With k domains and embeddings X in R^(k x d), centred:

    affinity          K = X Xᵀ
    leverage score    S_i = [K (K + kλI)⁻¹]_ii      in [0, 1)

A domain that the others span scores low, one far from them high. weights.py makes weights of
scores. numpy alone, float64 throughout.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nemo_chameleon.utils.arrays import Floats

_BLOCK = 2**21  # numbers read at once, 16 MiB


def affinity_matrix(embeddings: ArrayLike, center: bool = True) -> Floats:
    """Inner products of domain embeddings, centred on their mean unless told otherwise.

    Args:
        embeddings: (k, d), one row a domain.
        center: subtract the mean row first, which is the same as centring the kernel.

    Returns:
        (k, k), symmetric, positive semi-definite.

    Raises:
        ValueError: not a finite (k, d) matrix with k >= 1.
    """
    rows = _Rows(embeddings, center)
    x = rows.in_given_order(rows[0 : rows.shape[0]] * rows.scale)
    return x @ x.T


def leverage_scores(
    embeddings: ArrayLike,
    *,
    ridge: float | None = None,
    relative_ridge: float | None = None,
    center: bool = True,
) -> Floats:
    """Kernel ridge leverage scores S_i = [K (K + kλI)⁻¹]_ii of the linear kernel K = X Xᵀ.

    Computed through the smaller of the two Gram matrices, in O(k·d·min(k, d)). With more domains
    than dimensions the embeddings are read in blocks of rows and the k × k matrix is never formed:
    memory is O(d² + k), so a memory-mapped array of millions of domains will do.

    Args:
        embeddings: (k, d), one row a domain.
        ridge: λ, in the units of the affinity.
        relative_ridge: λ as a share of the mean self-affinity trace(K)/k; give one of the two.
        center: subtract the mean row first.

    Returns:
        (k,), each in [0, 1), unnormalised; their sum is the effective rank of K at kλ. The order of
        the domains changes no bit of a domain's score as long as they fit into one block, 2²¹
        numbers.

    Raises:
        ValueError: embeddings not finite, a ridge that is not positive or given twice, or a
            relative ridge over embeddings that are all the same.
    """
    rows = _Rows(embeddings, center)
    k, d = rows.shape
    penalty = k * _ridge(rows.mean_square(), ridge, relative_ridge, rows.scale)
    if k <= d:
        x = rows[0:k]
        values, vectors = np.linalg.eigh(x @ x.T)
        return rows.in_given_order(vectors**2 @ _shrunk(values, penalty))
    gram = np.zeros((d, d))
    for block in rows.blocks():
        gram += block.T @ block
    # S_i = x_iᵀ (G + kλI)⁻¹ x_i, in the axes of G.
    values, vectors = np.linalg.eigh(gram)
    axes = vectors * np.sqrt(_shrunk(values, penalty) / np.where(values > 0, values, 1.0))
    return rows.in_given_order(
        np.concatenate([np.sum((block @ axes) ** 2, axis=1) for block in rows.blocks()])
    )


def scores_from_affinity(
    affinity: ArrayLike, *, ridge: float | None = None, relative_ridge: float | None = None
) -> Floats:
    """Leverage scores from an affinity matrix that is there already, for instance a published one.

    Args:
        affinity: (k, k), symmetric; taken as it is, neither centred nor scaled.
        ridge: λ, in the units of the affinity.
        relative_ridge: λ as a share of trace(K)/k; give one of the two.

    Returns:
        (k,), unnormalised. In [0, 1) if the matrix is positive semi-definite; a matrix read off
        a figure is so only up to rounding.

    Raises:
        ValueError: not a finite, symmetric (k, k) matrix, or a ridge as in `leverage_scores`.
    """
    matrix = np.asarray(affinity, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.shape[0]:
        raise ValueError(f"an affinity matrix is square, not {matrix.shape}")
    if not np.all(np.isfinite(matrix)):
        raise ValueError("the affinity matrix has a NaN or an infinity in it")
    scale = float(np.max(np.abs(matrix)))
    if scale > 0:
        matrix = matrix / scale
    if not np.allclose(matrix, matrix.T, rtol=0, atol=1e-8):
        raise ValueError("an affinity matrix is symmetric")
    k = len(matrix)
    penalty = k * _ridge(np.trace(matrix) / k, ridge, relative_ridge, np.sqrt(scale))
    return np.diagonal(np.linalg.solve(matrix + penalty * np.eye(k), matrix)).copy()


class _Rows:
    """Checked embeddings, centred and divided by one scale, float64, in blocks of rows.

    Scores depend on X and sqrt(λ) only through their ratio: with one scale for both, nothing
    under- or overflows however small or large the embeddings are. What fits into one block is
    sorted by its bytes, so that sums over domains do not depend on the order they are given in.
    """

    def __init__(self, embeddings: ArrayLike, center: bool) -> None:
        x = np.asanyarray(embeddings)
        if x.ndim != 2 or 0 in x.shape:
            raise ValueError(f"embeddings are a (domains, width) matrix, not of shape {x.shape}")
        self.shape: tuple[int, int] = x.shape
        self._x, self.scale, self._mean = x, 1.0, np.zeros(x.shape[1])
        largest, seen = 0.0, 0
        for block in self.blocks():
            finite = np.isfinite(block).all(axis=1)
            if not finite.all():
                row = seen + int(np.argmin(finite))
                raise ValueError(f"the embedding of domain {row} is not finite")
            largest, seen = max(largest, float(np.abs(block).max())), seen + len(block)
        self.scale = largest or 1.0
        self._order: NDArray[np.intp] | None = None
        if x.size <= _BLOCK:
            keys = [row.tobytes() for row in x]
            self._order = np.array(sorted(range(len(keys)), key=keys.__getitem__))
            self._x = x[self._order]
        if center:
            self._mean = sum((block.sum(axis=0) for block in self.blocks()), self._mean) / seen

    def __getitem__(self, rows: slice) -> Floats:
        return np.asarray(self._x[rows], dtype=np.float64) / self.scale - self._mean

    def blocks(self) -> Iterator[Floats]:
        size = max(1, _BLOCK // self.shape[1])
        for start in range(0, self.shape[0], size):
            yield self[start : start + size]

    def in_given_order(self, by_row: Floats) -> Floats:
        """What was computed row by row, in the order that the embeddings came in."""
        if self._order is None:
            return by_row
        result = np.empty_like(by_row)
        result[self._order] = by_row
        return result

    def mean_square(self) -> float:
        """trace(K)/k, in units of the scale."""
        return sum(float(np.sum(block * block)) for block in self.blocks()) / self.shape[0]


def check_positive(name: str, value: float) -> None:
    """Raise a ValueError unless a setting is a positive, finite number."""
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value} must be a positive number")


def _ridge(
    mean_self_affinity: float, ridge: float | None, relative_ridge: float | None, scale: float
) -> float:
    """λ for a kernel that was divided by scale²."""
    if (ridge is None) == (relative_ridge is None):
        raise ValueError("give one of ridge and relative_ridge")
    if relative_ridge is not None:
        check_positive("relative_ridge", relative_ridge)
        if not mean_self_affinity > 0:
            raise ValueError("the domains' embeddings are all the same: nothing to weigh")
        return relative_ridge * mean_self_affinity
    assert ridge is not None
    check_positive("ridge", ridge)
    return ridge / scale / scale


def _shrunk(eigenvalues: Floats, penalty: float) -> Floats:
    """Each in [0, 1): what the ridge leaves of the directions of a positive kernel."""
    out = np.zeros_like(eigenvalues)
    return np.divide(eigenvalues, eigenvalues + penalty, out=out, where=eigenvalues > 0)
