"""Implement RegMix (Liu et al. 2024, arXiv 2407.01492), which regresses losses on mixtures.

As published, the mixtures of the small runs are drawn from Dirichlet distributions of many
strengths around the domains' tokens to the power 0.5. A regression, LightGBM or linear, predicts
the losses of 100,000 simulated mixtures, and the result is the mean of the best 100. The target is
the mean loss over the domains. Cross-validation on the runs chooses the regression with the higher
rank correlation: with a few dozen runs, trees often find nothing to split.
"""

from collections.abc import Callable

import lightgbm
import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

Array = NDArray[np.float64]
Regression = Callable[[Array], Array]
SIMULATED, BEST = 100_000, 100


def mixtures(tokens: Array, count: int, generator: np.random.Generator) -> Array:
    """Draw mixtures (count, k) around the domains' tokens (k,)."""
    prior = tokens**0.5 / (tokens**0.5).sum()
    # For equal domains, a strength of 1 gives Dirichlet(1, ..., 1).
    strengths = np.exp(generator.uniform(np.log(0.1), np.log(5.0), count)) * len(tokens)
    drawn = np.stack([generator.dirichlet(prior * strength) for strength in strengths])
    drawn = np.maximum(drawn, 1e-4)
    shares: Array = drawn / drawn.sum(1, keepdims=True)
    return shares


def linear(x: Array, y: Array) -> Regression:
    """Fit by least squares; the weights sum to 1 and so include a constant."""
    coefficients, *_ = np.linalg.lstsq(x, y, rcond=None)
    return lambda new: new @ coefficients


def trees(x: Array, y: Array) -> Regression:
    """Fit LightGBM with the paper's settings, and with smaller leaves for few runs."""
    settings = {
        "objective": "regression",
        "metric": "l2",
        "learning_rate": 1e-2,
        "num_iterations": 1000,
        "min_data_in_leaf": 3,
        "verbosity": -1,
        "seed": 42,
        "num_threads": 1,
    }
    booster = lightgbm.train(settings, lightgbm.Dataset(x, y))
    return lambda new: np.asarray(booster.predict(new))


def cross_validated(fit: Callable[[Array, Array], Regression], x: Array, y: Array) -> float:
    """Return Spearman's correlation of predicted and measured losses, over eight folds."""
    predicted = np.empty(len(y))
    for fold in np.array_split(np.arange(len(y)), min(8, len(y))):
        rest = np.setdiff1d(np.arange(len(y)), fold)
        predicted[fold] = fit(x[rest], y[rest])(x[fold])
    return float(spearmanr(predicted, y).statistic)


def best(x: Array, y: Array, tokens: Array, seed: int) -> tuple[Array, Regression, str]:
    """Return the weights (k,) with the lowest predicted loss, the regression and its name.

    Args:
        x: mixtures of the runs (runs, k).
        y: their losses (runs,).
        tokens: tokens of the domains (k,).
        seed: seed of the simulation.
    """
    regressions = {"linear": linear, "LightGBM": trees}
    name = max(regressions, key=lambda name: cross_validated(regressions[name], x, y))
    predict = regressions[name](x, y)
    simulated = mixtures(tokens, SIMULATED, np.random.default_rng(seed))
    top = simulated[np.argsort(predict(simulated))[:BEST]]
    return top.mean(0), predict, name
