"""From leverage scores to mixture weights: the second half of the Chameleon method.

Source: arXiv 2505.24844. For pretraining, a domain's weight falls with its score, so that common
domains are drawn more; for finetuning it rises with the score, so that distinct domains are drawn
more. `Preset` has the formulas; all numbers are float64.
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
    """How the ridge λ is set and how scores S become weights, for either objective.

    "paper" has an absolute λ = 10. S is divided by its sum; weights are softmax(1/S / 5) for
    pretraining and softmax(S / 0.2) for finetuning.

    "calibrated", the default, has λ = 0.3 times the mean self-affinity trace(K)/k. Weights are in
    proportion to L^(-γ) for pretraining and L^γ for finetuning, with L = S/(1 - S) and γ = 0.5, and
    exp(entropy) of the weights is at least half of k.

    L is the leverage of a domain against the other domains only. If the domain's own row x_i is
    taken out of G = XᵀX + kλI, then x_iᵀ (G - x_i x_iᵀ)⁻¹ x_i = S_i / (1 - S_i) (Sherman and
    Morrison). S itself is damped by the domain's own share of G, which is large among seven domains
    and negligible among a thousand. Weights that are computed from S are therefore flatter when
    there are fewer domains; those computed from L are not. (A fifth of the spread is still missing
    for seven domains, because their centre is their own mean.) L does not depend on the scale of
    the embeddings either, and a relative error in L is multiplied by γ, whereas softmax(1/S / T)
    multiplies a relative error in S by 1/(T·S), which has no bound.

    On the affinity matrix that the paper published, weights at γ = 0.5 have a total variation
    distance of .012 from the paper's finetuning weights and of .111 from its pretraining weights.
    The latter are steeper (γ = 1: .040), and lose more on the mixture's domains than they gain on
    unseen ones (docs/results.md).

    Attributes:
        name: of the preset.
        ridge: λ, in the units of the affinity. Either this or `relative_ridge` is set.
        relative_ridge: λ over the mean self-affinity.
        exponent: γ. Either this or `temperatures` is set.
        temperatures: T of the softmax, by objective.
        min_effective: the least exp(entropy of the weights)/k.
        normalize_states: whether embeddings for this preset are means over normalised token states.
        cross_documents: whether the windows of these embeddings continue into the next document.
    """

    name: str
    ridge: float | None = None
    relative_ridge: float | None = None
    exponent: float | None = None
    temperatures: dict[str, float] | None = None
    min_effective: float = 0.0
    normalize_states: bool = True
    cross_documents: bool = True

    def leverage_scores(self, embeddings: ArrayLike, *, center: bool = True) -> Floats:
        """Compute leverage scores at the preset's ridge.

        Args:
            embeddings: (k, d), one row per domain.
            center: whether to subtract the mean row first.

        Returns:
            (k,), as `leverage_scores` returns them.
        """
        return leverage_scores(
            embeddings, ridge=self.ridge, relative_ridge=self.relative_ridge, center=center
        )

    def settings(self) -> dict[str, Any]:
        """Return the arguments from which `choose_preset` makes this preset."""
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
        Preset(
            "paper",
            ridge=10.0,
            temperatures={"pretrain": 5.0, "finetune": 0.2},
            normalize_states=False,
            cross_documents=False,
        ),
    )
}


def choose_preset(
    preset: str = "calibrated",
    *,
    ridge: float | None = None,
    exponent: float | None = None,
    min_effective: float | None = None,
) -> Preset:
    """Return a preset by name, with some of its settings replaced.

    Args:
        preset: "calibrated" or "paper".
        ridge: λ for "paper", λ over the mean self-affinity for "calibrated"; positive.
        exponent: γ of "calibrated"; positive. "paper" has none.
        min_effective: the least exp(entropy of the weights)/k, in [0, 1).

    Returns:
        The preset; a setting that is None has the preset's own value.

    Raises:
        ValueError: the preset is unknown, it has no such setting, or the setting is out of range.
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
            raise ValueError(f"min_effective={min_effective} must be at least 0 and less than 1")
        chosen = replace(chosen, min_effective=float(min_effective))
    return chosen


def weights_from_scores(
    scores: ArrayLike,
    objective: str = "pretrain",
    preset: str | Preset = "calibrated",
) -> Floats:
    """Compute mixture weights from leverage scores.

    Source: Chameleon, arXiv 2505.24844, for preset "paper"; `Preset` has the formulas.

    Args:
        scores: (k,), in [0, 1], as `leverage_scores` returns them: not divided by their sum.
        objective: "pretrain" (weights fall with the score) or "finetune" (weights rise with it).
        preset: the name of a preset, or a `Preset`.

    Returns:
        (k,), positive, with a sum of 1. The order of the scores does not change a weight, not even
        in its last bit.

    Raises:
        ValueError: the scores are outside [0, 1], not finite or all zero, or a name is unknown.

    Example:
        >>> weights_from_scores([0.2, 0.5, 0.8]).round(4).tolist()
        [0.5714, 0.2857, 0.1429]
        >>> weights_from_scores([0.2, 0.5, 0.8], "finetune").round(4).tolist()
        [0.1429, 0.2857, 0.5714]
    """
    weights, _ = tempered_weights(scores, objective, preset)
    return weights


def tempered_weights(
    scores: ArrayLike,
    objective: str = "pretrain",
    preset: str | Preset = "calibrated",
) -> tuple[Floats, float]:
    """Compute `weights_from_scores`, and how much `min_effective` changed them.

    Args:
        scores: (k,), in [0, 1], not divided by their sum.
        objective: "pretrain" or "finetune".
        preset: the name of a preset, or a `Preset`.

    Returns:
        The weights (k,), and the power in (0, 1] that they were raised to, so that
        exp(entropy)/k >= min_effective holds; 1 if it held without that.

    Raises:
        ValueError: as `weights_from_scores`.
    """
    chosen = choose_preset(preset) if isinstance(preset, str) else preset
    if objective not in OBJECTIVES:
        raise ValueError(f"objective={objective!r} is not one of {', '.join(OBJECTIVES)}")
    s = np.asarray(scores, dtype=np.float64)
    if s.ndim != 1 or not len(s):
        raise ValueError(f"scores must be one number per domain, not an array of shape {s.shape}")
    if not np.all(np.isfinite(s)) or np.any((s < 0) | (s > 1)):
        raise ValueError("leverage scores must be between 0 and 1")
    if not np.any(s > 0):
        raise ValueError("all scores are zero: the domains' embeddings cannot be told apart")
    order = np.argsort(s)  # makes sums over domains independent of the order of the domains
    # A domain exactly at the centroid has a score of 0, which has no inverse. Float64 embeddings
    # cannot tell it from 1e-12 of the largest score.
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
    """Compute mixture weights from domain embeddings: affinity, scores and weights in one call.

    Source: Chameleon, arXiv 2505.24844.

    Args:
        embeddings: (k, d), one row per domain.
        objective: "pretrain" (common domains are drawn more) or "finetune" (distinct ones are).
        preset: the name of a preset, or a `Preset`.
        center: whether to subtract the mean row first.

    Returns:
        (k,), positive, with a sum of 1.

    Raises:
        ValueError: as `leverage_scores` and `weights_from_scores`.

    Example:
        >>> embeddings = [[1.0, 0.0], [0.9, 0.1], [0.0, 2.0]]  # the last domain is unlike the rest
        >>> chameleon_weights(embeddings).round(4).tolist()
        [0.3772, 0.466, 0.1568]
        >>> chameleon_weights(embeddings, objective="finetune").round(4).tolist()
        [0.2372, 0.192, 0.5708]
    """
    chosen = choose_preset(preset) if isinstance(preset, str) else preset
    return weights_from_scores(chosen.leverage_scores(embeddings, center=center), objective, chosen)


def effective_domains(weights: ArrayLike) -> float:
    """Compute the effective number of domains, exp(entropy of the weights).

    Args:
        weights: (k,), with a sum of 1.

    Returns:
        A number from 1 to k; k equal weights have k.
    """
    w = np.asarray(weights, dtype=np.float64)
    w = w[w > 0]
    return float(np.exp(-np.sum(w * np.log(w))))


def _temper(logits: Floats, min_effective: float) -> tuple[Floats, float]:
    """Return softmax(power · logits) for the largest power <= 1 that keeps the floor."""
    logits = logits - logits.max()
    floor = min_effective * len(logits)

    def softmax(power: float) -> Floats:
        # A mixture's weights are above zero, so no weight may underflow to 0.
        unnormalised = np.maximum(np.exp(power * logits), np.finfo(np.float64).tiny)
        weights: Floats = unnormalised / unnormalised.sum()
        return weights

    if effective_domains(softmax(1.0)) >= floor:
        return softmax(1.0), 1.0
    # The entropy falls as the power rises, and power 0 gives uniform weights, which keep any floor.
    low, high = 0.0, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        if effective_domains(softmax(middle)) >= floor:
            low = middle
        else:
            high = middle
    return softmax(low), low
