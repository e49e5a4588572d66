"""From domain embeddings to leverage scores: the first half of the Chameleon method.

For k domains with centred embeddings X in R^(k x d) and a ridge λ (arXiv 2505.24844):

    affinity          K = X Xᵀ
    leverage score    S_i = [K (K + kλI)⁻¹]_ii      in [0, 1)

A domain that the other domains span has a low score, and a domain far from them a high one. All
numbers are float64.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nemo_chameleon.utils.arrays import Floats

_BLOCK = 2**21  # numbers that are read at once: 16 MiB


def affinity_matrix(embeddings: ArrayLike, center: bool = True) -> Floats:
    """Compute the affinity of domains: the inner products of their embeddings.

    Source: the domain affinity matrix of Chameleon, arXiv 2505.24844.

    Args:
        embeddings: (k, d), one row per domain.
        center: whether to subtract the mean row first, which is the same as centring the kernel.

    Returns:
        (k, k), symmetric and positive semi-definite.

    Raises:
        ValueError: the embeddings are not a finite (k, d) matrix with k >= 1.

    Example:
        >>> affinity_matrix([[3.0, 1.0], [1.0, 1.0], [2.0, 1.0]]).tolist()
        [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
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
    """Compute the kernel ridge leverage scores S_i = [K (K + kλI)⁻¹]_ii, with K = X Xᵀ.

    Source: Chameleon, arXiv 2505.24844. The scores are computed from the smaller of the two Gram
    matrices in O(k·d·min(k, d)) operations. With more domains than dimensions, the embeddings are
    read in blocks of rows and the k × k matrix is never formed. Memory is then O(d² + k), so that a
    memory-mapped array can hold millions of domains.

    Args:
        embeddings: (k, d), one row per domain.
        ridge: λ, in the units of the affinity.
        relative_ridge: λ as a share of the mean self-affinity trace(K)/k. Give either this or
            `ridge`.
        center: whether to subtract the mean row first.

    Returns:
        (k,), each in [0, 1) and not divided by their sum, which is the effective rank of K at kλ.
        As long as the embeddings fit into one block of 2²¹ numbers, the order of the domains does
        not change a score, not even in its last bit.

    Raises:
        ValueError: the embeddings are not finite, the ridge is not positive, neither or both
            ridges are given, or a relative ridge is given for embeddings that are all the same.

    Example:
        >>> leverage_scores([[1.0], [0.0], [-1.0]], ridge=2 / 3).round(6).tolist()
        [0.25, 0.0, 0.25]
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
    # S_i = x_iᵀ (G + kλI)⁻¹ x_i, computed in the eigenvectors of G.
    values, vectors = np.linalg.eigh(gram)
    axes = vectors * np.sqrt(_shrunk(values, penalty) / np.where(values > 0, values, 1.0))
    return rows.in_given_order(
        np.concatenate([np.sum((block @ axes) ** 2, axis=1) for block in rows.blocks()])
    )


def scores_from_affinity(
    affinity: ArrayLike, *, ridge: float | None = None, relative_ridge: float | None = None
) -> Floats:
    """Compute leverage scores from an affinity matrix, for instance a published one.

    Source: Chameleon, arXiv 2505.24844.

    Args:
        affinity: (k, k), symmetric; used as it is, neither centred nor scaled.
        ridge: λ, in the units of the affinity.
        relative_ridge: λ as a share of trace(K)/k. Give either this or `ridge`.

    Returns:
        (k,), not divided by their sum. They are in [0, 1) if the matrix is positive semi-definite;
        a matrix with rounded entries may not be.

    Raises:
        ValueError: the matrix is not finite, square and symmetric, or a ridge is wrong as in
            `leverage_scores`.

    Example:
        >>> scores_from_affinity([[1.0, -1.0], [-1.0, 1.0]], ridge=1.0).round(6).tolist()
        [0.25, 0.25]
    """
    matrix = np.asarray(affinity, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.shape[0]:
        raise ValueError(f"an affinity matrix must be square, not of shape {matrix.shape}")
    if not np.all(np.isfinite(matrix)):
        raise ValueError("the affinity matrix contains a NaN or an infinity")
    scale = float(np.max(np.abs(matrix)))
    if scale > 0:
        matrix = matrix / scale
    if not np.allclose(matrix, matrix.T, rtol=0, atol=1e-8):
        raise ValueError("an affinity matrix must be symmetric")
    k = len(matrix)
    penalty = k * _ridge(np.trace(matrix) / k, ridge, relative_ridge, np.sqrt(scale))
    return np.diagonal(np.linalg.solve(matrix + penalty * np.eye(k), matrix)).copy()


class _Rows:
    """Embeddings that are checked, centred and divided by one scale, in blocks of float64 rows.

    Scores depend on X and sqrt(λ) only through their ratio. Dividing both by one scale keeps small
    and large embeddings from under- and overflowing. Embeddings that fit into one block are sorted
    by their bytes, so that sums over domains do not depend on the order of the domains.
    """

    def __init__(self, embeddings: ArrayLike, center: bool) -> None:
        x = np.asanyarray(embeddings)
        if x.ndim != 2 or 0 in x.shape:
            raise ValueError(
                f"embeddings must be a (domains, width) matrix, not of shape {x.shape}"
            )
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
        """Return values that were computed per row in the order of the given embeddings."""
        if self._order is None:
            return by_row
        result = np.empty_like(by_row)
        result[self._order] = by_row
        return result

    def mean_square(self) -> float:
        """Return trace(K)/k, in units of the squared scale."""
        return sum(float(np.sum(block * block)) for block in self.blocks()) / self.shape[0]


def check_positive(name: str, value: float) -> None:
    """Check that a setting is a positive, finite number.

    Args:
        name: the setting's name, for the error.
        value: its value.

    Raises:
        ValueError: it is not.
    """
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value} must be a positive number")


def _ridge(
    mean_self_affinity: float, ridge: float | None, relative_ridge: float | None, scale: float
) -> float:
    """Return λ for a kernel that was divided by scale²."""
    if (ridge is None) == (relative_ridge is None):
        raise ValueError("give exactly one of ridge and relative_ridge")
    if relative_ridge is not None:
        check_positive("relative_ridge", relative_ridge)
        if not mean_self_affinity > 0:
            raise ValueError(
                "the domains' embeddings are all the same, so scores cannot tell them apart"
            )
        return relative_ridge * mean_self_affinity
    assert ridge is not None
    check_positive("ridge", ridge)
    return ridge / scale / scale


def _shrunk(eigenvalues: Floats, penalty: float) -> Floats:
    """Return e/(e + penalty) for each positive eigenvalue e, and 0 for the others."""
    out = np.zeros_like(eigenvalues)
    return np.divide(eigenvalues, eigenvalues + penalty, out=out, where=eigenvalues > 0)
