"""Weights from a forecast of the base model's losses: an idea of no paper, tried here alone.

A proxy's run on uniform weights holds a loss curve of every domain for nothing. With a_ij the
affinity of centred embeddings, 1 on the diagonal and 0 where it is negative,

    L_i(w, N) = E_i + B_i n_i^(-β_i),    n_i = N sum_j a_ij w_j

in which n_i counts the tokens that serve domain i, its own and its neighbours'. E, B and β are
fitted to the curves; the weights are those of the least mean loss at the base run's N tokens with
exp(entropy) at least half of k, as Chameleon's default has it: a convex problem.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, minimize

Array = NDArray[np.float64]

_UNIT = 1e6  # tokens; keeps B of the losses' size


def transfer(affinity: Array) -> Array:
    """(k, k) a_ij of an affinity matrix."""
    norms = np.sqrt(np.diagonal(affinity))
    result: Array = np.maximum(affinity / np.outer(norms, norms), 0)
    return result


@dataclass(frozen=True)
class Forecast:
    """Curves E, B, β as (k, 3), and what domains pass on to each other (k, k)."""

    curves: Array
    passed: Array

    @classmethod
    def fit(cls, tokens: Array, losses: Array, passed: Array) -> "Forecast":
        """Of a run on uniform weights.

        Args:
            tokens: (points,) of the whole run so far.
            losses: (points, k).
            passed: (k, k), of `transfer`.
        """
        shares = passed.mean(1)
        curves = [
            _curve(tokens * share / _UNIT, of_domain)
            for share, of_domain in zip(shares, losses.T, strict=True)
        ]
        return cls(np.array(curves), passed)

    def losses(self, weights: Array, tokens: float) -> Array:
        """(..., k) of weights (..., k) after so many tokens."""
        least, scale, power = self.curves.T
        result: Array = least + scale * (weights @ self.passed.T * tokens / _UNIT) ** -power
        return result

    def best(self, tokens: float, min_effective: float) -> Array:
        """The weights (k,) of the least mean loss with exp(entropy) >= min_effective * k.

        Raises:
            RuntimeError: the solver did not get there.
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
            raise RuntimeError(f"the forecast's weights: {found.message}")
        weights: Array = found.x / found.x.sum()
        return weights


def _curve(tokens: Array, losses: Array) -> Array:
    """E, B, β of one domain's points."""
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
    """Iterations (points,) and losses (points, k) of a run's folder, as TensorBoard has them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    points = [events.Scalars(f"loss by domain/{name}") for name in domains]
    losses = [[point.value for point in of_domain] for of_domain in points]
    return np.array([point.step for point in points[0]], dtype=float), np.array(losses).T
