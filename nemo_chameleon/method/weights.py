"""Leverage scores to mixture weights: the second half of the Chameleon method.

    pretraining       weights fall with the score: common domains are drawn more
    finetuning        weights rise with it: distinct domains are drawn more

Two presets say how λ is set and how scores S become weights:

    "paper"        λ = 10, absolute; S is divided by its sum; softmax(1/S / 5) for pretraining,
                   softmax(S / 0.2) for finetuning.
    "calibrated"   λ = 0.3 of the mean self-affinity trace(K)/k; weights in proportion to L^(-γ)
                   or L^(γ) of L = S/(1-S), γ = 0.5; exp(entropy) of the weights at least half of
                   k. The default.

L is a domain's leverage against the others alone: with G = XᵀX + kλI and the domain's own row taken
out of it, x_iᵀ (G - x_i x_iᵀ)⁻¹ x_i = S_i / (1 - S_i) (Sherman and Morrison). S itself is damped
by the domain's own share of G, which is large among seven domains and nothing among a thousand:
weights made of S are the flatter the fewer domains there are. Those made of L are not, nor does the
scale of the embeddings matter (what is left, a fifth less for seven, is geometry: their centre is
made of themselves); a relative error in L is multiplied by γ, where softmax(1/S / T)
multiplies one in S by 1/(T·S), without bound. On the affinity matrix that the paper published,
γ = 0.5 lies .012 in total variation from its finetuning weights and .111 from its pretraining
weights, which are steeper (γ = 1: .040) and lose more on the domains than they win on unseen ones
(docs/results.md).

numpy alone, float64 throughout.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nemo_chameleon.method.leverage import check_positive, leverage_scores
from nemo_chameleon.utils.arrays import Floats

OBJECTIVES = ("pretrain", "finetune")


@dataclass(frozen=True)
class Preset:
    """From embeddings to weights, but for the objective; `None` for what a preset has no use for.

    Exactly one of `ridge` (λ itself) and `relative_ridge` (λ over the mean self-affinity) is set,
    and exactly one of `exponent` (γ) and `temperatures` (by objective).
    """

    name: str
    ridge: float | None = None
    relative_ridge: float | None = None
    exponent: float | None = None
    temperatures: dict[str, float] | None = None
    min_effective: float = 0.0

    def leverage_scores(self, embeddings: ArrayLike, *, center: bool = True) -> Floats:
        """Leverage scores (k,) of embeddings (k, d) at the preset's ridge."""
        return leverage_scores(
            embeddings, ridge=self.ridge, relative_ridge=self.relative_ridge, center=center
        )

    def settings(self) -> dict[str, Any]:
        """What `choose_preset` makes this preset from."""
        return {
            "preset": self.name,
            "ridge": self.relative_ridge if self.ridge is None else self.ridge,
            "exponent": self.exponent,
            "min_effective": self.min_effective,
        }


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("calibrated", relative_ridge=0.3, exponent=0.5, min_effective=0.5),
        Preset("paper", ridge=10.0, temperatures={"pretrain": 5.0, "finetune": 0.2}),
    )
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
        check_positive("ridge", ridge)
        if chosen.ridge is None:
            chosen = replace(chosen, relative_ridge=float(ridge))
        else:
            chosen = replace(chosen, ridge=float(ridge))
    if exponent is not None:
        if chosen.exponent is None:
            raise ValueError(f"preset={preset!r} has no exponent; use preset='calibrated'")
        check_positive("exponent", exponent)
        chosen = replace(chosen, exponent=float(exponent))
    if min_effective is not None:
        if not 0.0 <= min_effective < 1.0:
            raise ValueError(f"min_effective={min_effective} is outside [0, 1)")
        chosen = replace(chosen, min_effective=float(min_effective))
    return chosen


def weights_from_scores(
    scores: ArrayLike,
    objective: str = "pretrain",
    preset: str | Preset = "calibrated",
) -> Floats:
    """Mixture weights from leverage scores.

    Args:
        scores: (k,), in [0, 1], as `leverage_scores` gives them: not divided by their sum.
        objective: "pretrain" (weights fall with the score) or "finetune" (rise with it).
        preset: a name, or what `choose_preset` gave.

    Returns:
        (k,), positive, summing to 1. The order of the scores changes no bit of a domain's weight.

    Raises:
        ValueError: scores outside [0, 1], not finite or all zero; unknown names.
    """
    weights, _ = tempered_weights(scores, objective, preset)
    return weights


def tempered_weights(
    scores: ArrayLike,
    objective: str = "pretrain",
    preset: str | Preset = "calibrated",
) -> tuple[Floats, float]:
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
    if not np.all(np.isfinite(s)) or np.any((s < 0) | (s > 1)):
        raise ValueError("leverage scores must lie between 0 and 1")
    if not np.any(s > 0):
        raise ValueError("all scores are zero: the domains' embeddings cannot be told apart")
    order = np.argsort(s)  # sums over domains then do not depend on the order they are given in
    # A domain exactly at the centroid scores 0, and its inverse has no value: a score of 1e-12
    # of the largest is as near to it as float64 embeddings can be measured.
    largest = s.max()
    s = np.maximum(s[order] / largest, 1e-12)
    if chosen.temperatures is not None:
        s /= s.sum()
        logits = (1.0 / s if objective == "pretrain" else s) / chosen.temperatures[objective]
    else:
        assert chosen.exponent is not None
        alone = np.log(s) - np.log1p(-np.minimum(s * largest, 1 - 1e-12))
        logits = chosen.exponent * (-alone if objective == "pretrain" else alone)
    weights = np.empty_like(s)
    weights[order], tempering = _temper(logits, chosen.min_effective)
    return weights, tempering


def chameleon_weights(
    embeddings: ArrayLike,
    *,
    objective: str = "pretrain",
    preset: str | Preset = "calibrated",
    center: bool = True,
) -> Floats:
    """Embeddings (k, d) to weights (k,): affinity, leverage scores and weights in one call."""
    chosen = choose_preset(preset) if isinstance(preset, str) else preset
    return weights_from_scores(chosen.leverage_scores(embeddings, center=center), objective, chosen)


def effective_domains(weights: ArrayLike) -> float:
    """exp(entropy) of weights (k,): how many equally weighted domains would be as spread out."""
    w = np.asarray(weights, dtype=np.float64)
    w = w[w > 0]
    return float(np.exp(-np.sum(w * np.log(w))))


def _temper(logits: Floats, min_effective: float) -> tuple[Floats, float]:
    """softmax(power · logits) with the largest power <= 1 that keeps the floor."""
    logits = logits - logits.max()
    floor = min_effective * len(logits)

    def softmax(power: float) -> Floats:
        # However unlikely, no domain is left out: a mixture has weights above zero.
        unnormalised = np.maximum(np.exp(power * logits), np.finfo(np.float64).tiny)
        weights: Floats = unnormalised / unnormalised.sum()
        return weights

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
