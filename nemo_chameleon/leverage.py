"""Embeddings to affinity, leverage scores and weights: the Chameleon method itself.

Source: "Chameleon: A Flexible Data-mixing Framework for Language Model Pretraining and
Finetuning", arXiv 2505.24844. With k domains and embeddings X in R^(k x d), centred:

    affinity          K = X Xᵀ
    leverage score    S_i = [K (K + kλI)⁻¹]_ii      in [0, 1)
    pretraining       weights fall with S: common domains are drawn more
    finetuning        weights rise with S: distinct domains are drawn more

Two presets say how λ is set and how scores become weights:

    "paper"        λ = 10, absolute; S is divided by its sum; softmax(1/S / 5) for pretraining,
                   softmax(S / 0.2) for finetuning.
    "calibrated"   λ = 0.3 of the mean self-affinity trace(K)/k; weights in proportion to S^(-γ)
                   or S^(γ), γ = 1; exp(entropy) of the weights at least half of k. Neither the
                   scale of the embeddings nor k then changes the character of the weights. The
                   default.

numpy alone, float64 throughout.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_BLOCK = 2**21  # numbers read at once, 16 MiB

OBJECTIVES = ("pretrain", "finetune")


@dataclass(frozen=True)
class Preset:
    """How scores become weights; `None` where a preset has no use for a setting.

    Exactly one of `ridge` (λ itself) and `relative_ridge` (λ over the mean self-affinity) is set,
    and exactly one of `exponent` (γ) and `temperatures` (by objective).
    """

    ridge: float | None = None
    relative_ridge: float | None = None
    exponent: float | None = None
    temperatures: dict[str, float] | None = None
    min_effective: float = 0.0


PRESETS = {
    "calibrated": Preset(relative_ridge=0.3, exponent=1.0, min_effective=0.5),
    "paper": Preset(ridge=10.0, temperatures={"pretrain": 5.0, "finetune": 0.2}),
}


def choose_preset(
    preset: str = "calibrated",
    *,
    ridge: float | None = None,
    exponent: float | None = None,
    min_effective: float | None = None,
) -> Preset:
    """A preset by name, with what is given in place of its own figures.

    Args:
        preset: "calibrated" or "paper".
        ridge: in the preset's own unit: λ for "paper", λ over the mean self-affinity for
            "calibrated". Positive.
        exponent: γ of "calibrated"; "paper" has none. Positive.
        min_effective: floor on exp(entropy)/k, in [0, 1).

    Raises:
        ValueError: unknown preset, a setting that it has no use for, or one out of range.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r} is not one of {', '.join(PRESETS)}")
    chosen = PRESETS[preset]
    if ridge is not None:
        _check_positive("ridge", ridge)
        if chosen.ridge is None:
            chosen = replace(chosen, relative_ridge=float(ridge))
        else:
            chosen = replace(chosen, ridge=float(ridge))
    if exponent is not None:
        if chosen.exponent is None:
            raise ValueError(f"preset={preset!r} has no exponent; use preset='calibrated'")
        _check_positive("exponent", exponent)
        chosen = replace(chosen, exponent=float(exponent))
    if min_effective is not None:
        if not 0.0 <= min_effective < 1.0:
            raise ValueError(f"min_effective={min_effective} is outside [0, 1)")
        chosen = replace(chosen, min_effective=float(min_effective))
    return chosen


def affinity_matrix(embeddings: ArrayLike, center: bool = True) -> Array:
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
    x = rows[0 : rows.shape[0]] * rows.scale
    return x @ x.T


def leverage_scores(
    embeddings: ArrayLike,
    *,
    ridge: float | None = None,
    relative_ridge: float | None = None,
    center: bool = True,
) -> Array:
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
        (k,), each in [0, 1), unnormalised; their sum is the effective rank of K at kλ.

    Raises:
        ValueError: embeddings not finite, a ridge that is not positive or given twice, or a
            relative ridge over embeddings that are all the same.
    """
    rows = _Rows(embeddings, center)
    k, d = rows.shape
    penalty = k * _ridge(rows.mean_square(), ridge, relative_ridge, rows.scale)
    if k <= d:
        x = rows[0:k]
        return _scores(x @ x.T, penalty)
    gram = np.zeros((d, d))
    for block in rows.blocks():
        gram += block.T @ block
    # S_i = x_iᵀ (G + kλI)⁻¹ x_i, the squared length of x_i under the factor's inverse.
    whiten = np.linalg.inv(np.linalg.cholesky(gram + penalty * np.eye(d))).T
    return np.concatenate([np.sum((block @ whiten) ** 2, axis=1) for block in rows.blocks()])


def scores_from_affinity(
    affinity: ArrayLike, *, ridge: float | None = None, relative_ridge: float | None = None
) -> Array:
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
    return _scores(matrix, k * _ridge(np.trace(matrix) / k, ridge, relative_ridge, np.sqrt(scale)))


def weights_from_scores(
    scores: ArrayLike,
    objective: str = "pretrain",
    preset: str | Preset = "calibrated",
) -> Array:
    """Mixture weights from leverage scores.

    Args:
        scores: (k,), at least 0, normalised or not.
        objective: "pretrain" (weights fall with the score) or "finetune" (rise with it).
        preset: a name, or what `choose_preset` gave.

    Returns:
        (k,), positive, summing to 1.

    Raises:
        ValueError: scores that are negative, not finite or all zero; unknown names.
    """
    weights, _ = tempered_weights(scores, objective, preset)
    return weights


def tempered_weights(
    scores: ArrayLike,
    objective: str = "pretrain",
    preset: str | Preset = "calibrated",
) -> tuple[Array, float]:
    """`weights_from_scores`, and how much the floor on effective domains tempered them.

    Returns:
        The weights (k,), and the power in (0, 1] that they were raised to so that
        exp(entropy)/k >= min_effective holds; 1 where the floor did not bite.
    """
    chosen = choose_preset(preset) if isinstance(preset, str) else preset
    if objective not in OBJECTIVES:
        raise ValueError(f"objective={objective!r} is not one of {', '.join(OBJECTIVES)}")
    s = np.asarray(scores, dtype=np.float64)
    if s.ndim != 1 or not len(s):
        raise ValueError(f"scores are one number a domain, not an array of shape {s.shape}")
    if not np.all(np.isfinite(s)) or np.any(s < 0):
        raise ValueError("scores must be finite and not negative")
    if not np.any(s > 0):
        raise ValueError("all scores are zero: the domains' embeddings cannot be told apart")
    # A domain exactly at the centroid scores 0, and its inverse has no value: a score of 1e-12
    # of the largest is as near to it as float64 embeddings can be measured.
    s = np.maximum(s / s.sum(), 1e-12 * (s / s.sum()).max())
    if chosen.temperatures is not None:
        temperature = chosen.temperatures[objective]
        logits = (1.0 / s if objective == "pretrain" else s) / temperature
    else:
        gamma = chosen.exponent or 1.0
        logits = np.log(s) * (-gamma if objective == "pretrain" else gamma)
    return _temper(logits, chosen.min_effective)


def chameleon_weights(
    embeddings: ArrayLike,
    *,
    objective: str = "pretrain",
    preset: str | Preset = "calibrated",
    center: bool = True,
) -> Array:
    """Embeddings (k, d) to weights (k,): affinity, leverage scores and weights in one call."""
    chosen = choose_preset(preset) if isinstance(preset, str) else preset
    scores = leverage_scores(
        embeddings, ridge=chosen.ridge, relative_ridge=chosen.relative_ridge, center=center
    )
    return weights_from_scores(scores, objective, chosen)


def effective_domains(weights: ArrayLike) -> float:
    """exp(entropy) of weights (k,): how many equally weighted domains would be as spread out."""
    w = np.asarray(weights, dtype=np.float64)
    w = w[w > 0]
    return float(np.exp(-np.sum(w * np.log(w))))


class _Rows:
    """Checked embeddings, centred and divided by one scale, float64, in blocks of rows.

    Scores depend on X and sqrt(λ) only through their ratio: with one scale for both, nothing
    under- or overflows however small or large the embeddings are.
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
        if center:
            self._mean = sum((block.sum(axis=0) for block in self.blocks()), self._mean) / seen

    def __getitem__(self, rows: slice) -> Array:
        return np.asarray(self._x[rows], dtype=np.float64) / self.scale - self._mean

    def blocks(self) -> Iterator[Array]:
        size = max(1, _BLOCK // self.shape[1])
        for start in range(0, self.shape[0], size):
            yield self[start : start + size]

    def mean_square(self) -> float:
        """trace(K)/k, in units of the scale."""
        return sum(float(np.sum(block * block)) for block in self.blocks()) / self.shape[0]


def _check_positive(name: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value} must be a positive number")


def _ridge(
    mean_self_affinity: float, ridge: float | None, relative_ridge: float | None, scale: float
) -> float:
    """λ for a kernel that was divided by scale²."""
    if (ridge is None) == (relative_ridge is None):
        raise ValueError("give one of ridge and relative_ridge")
    if relative_ridge is not None:
        _check_positive("relative_ridge", relative_ridge)
        if not mean_self_affinity > 0:
            raise ValueError("the domains' embeddings are all the same: nothing to weigh")
        return relative_ridge * mean_self_affinity
    assert ridge is not None
    _check_positive("ridge", ridge)
    return ridge / scale / scale


def _scores(kernel: Array, penalty: float) -> Array:
    ridged = kernel + penalty * np.eye(len(kernel))
    return np.diagonal(np.linalg.solve(ridged, kernel)).copy()


def _temper(logits: Array, min_effective: float) -> tuple[Array, float]:
    """softmax(power · logits) with the largest power <= 1 that keeps the floor."""
    logits = logits - logits.max()
    floor = min_effective * len(logits)

    def softmax(power: float) -> Array:
        unnormalised = np.exp(power * logits)
        return unnormalised / unnormalised.sum()

    if effective_domains(softmax(1.0)) >= floor:
        return softmax(1.0), 1.0
    # The entropy falls as the power rises; power 0 is uniform and keeps every floor below 1.
    low, high = 0.0, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        if effective_domains(softmax(middle)) >= floor:
            low = middle
        else:
            high = middle
    return softmax(low), low
