"""Compute weights from a forecast of the base model's losses.

This method comes from no paper and is tried here alone. A proxy's run on uniform weights gives a
loss curve for every domain at no extra cost. Let a_ij be the affinity of centred embeddings, scaled
to 1 on the diagonal and set to 0 where it is negative. The model is

    L_i(w, N) = E_i + B_i n_i^(-β_i),    n_i = N sum_j a_ij w_j

where n_i counts the tokens that help domain i: its own and those of related domains. E, B and β are
fitted to the curves. The weights minimise the mean loss at the base run's N tokens, under the
constraint that exp(entropy) is at least half of k, as in Chameleon's defaults. The problem is
convex.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, minimize

Array = NDArray[np.float64]

_UNIT = 1e6  # tokens; keeps B at the scale of the losses


def transfer(affinity: Array) -> Array:
    """Return a_ij (k, k) of an affinity matrix (k, k)."""
    norms = np.sqrt(np.diagonal(affinity))
    result: Array = np.maximum(affinity / np.outer(norms, norms), 0)
    return result


@dataclass(frozen=True)
class Forecast:
    """Loss curves of all domains, as functions of the weights.

    Attributes:
        curves: E, B and β of each domain (k, 3).
        passed: a_ij (k, k).
    """

    curves: Array
    passed: Array

    @classmethod
    def fit(cls, tokens: Array, losses: Array, passed: Array) -> "Forecast":
        """Fit the curves of a run on uniform weights.

        Args:
            tokens: tokens that the run had seen at each point (points,).
            losses: losses at these points (points, k).
            passed: a_ij (k, k), from `transfer`.
        """
        shares = passed.mean(1)
        curves = [
            _curve(tokens * share / _UNIT, of_domain)
            for share, of_domain in zip(shares, losses.T, strict=True)
        ]
        return cls(np.array(curves), passed)

    def losses(self, weights: Array, tokens: float) -> Array:
        """Return the losses (..., k) of weights (..., k) after a number of tokens."""
        least, scale, power = self.curves.T
        result: Array = least + scale * (weights @ self.passed.T * tokens / _UNIT) ** -power
        return result

    def best(self, tokens: float, min_effective: float) -> Array:
        """Return the weights (k,) with the least mean loss and exp(entropy) >= min_effective * k.

        Raises:
            RuntimeError: the solver does not converge.
        """
        k = len(self.curves)
        floor = np.log(min_effective * k)
        found = minimize(
            lambda w: self.losses(w, tokens).mean(),
            np.full(k, 1 / k),
            method="SLSQP",
            bounds=[(1e-6, 1)] * k,
            constraints=[
                {"type": "eq", "fun": lambda w: w.sum() - 1},
                {"type": "ineq", "fun": lambda w: -(w * np.log(w)).sum() - floor},
            ],
            options={"maxiter": 1000, "ftol": 1e-10},
        )
        if not found.success:
            raise RuntimeError(f"the solver found no weights for the forecast: {found.message}")
        weights: Array = found.x / found.x.sum()
        return weights


def _curve(tokens: Array, losses: Array) -> Array:
    """Fit E, B and β to the points of one domain."""
    fits = [
        least_squares(
            lambda p: p[0] + p[1] * tokens ** -p[2] - losses,
            [losses.min() * start, losses.max() - losses.min() * start, 0.3],
            bounds=([0, 0, 0.01], [losses.min(), np.inf, 2]),
        )
        for start in (0.1, 0.5, 0.9)
    ]
    best: Array = min(fits, key=lambda fit: fit.cost).x
    return best


def loss_curves(run: Path, domains: Sequence[str]) -> tuple[Array, Array]:
    """Read iterations (points,) and losses (points, k) from the TensorBoard files of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    points = [events.Scalars(f"loss by domain/{name}") for name in domains]
    losses = [[point.value for point in of_domain] for of_domain in points]
    return np.array([point.step for point in points[0]], dtype=float), np.array(losses).T
