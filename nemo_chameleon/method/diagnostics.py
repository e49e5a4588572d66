"""Where the method is blind: what its weights cannot be trusted to say, in words."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from nemo_chameleon.method.intervals import WeightErrors
from nemo_chameleon.method.leverage import affinity_matrix

# Two embeddings nearer than this share of the mean distance of a domain to the centre are alike,
# however well they are known.
ALIKE = 0.01
# Scores that spread by less than this share of their mean tell little apart.
EQUAL = 0.02
# A weight above this share is a run on one domain.
DOMINANT = 0.5
# So many of a kind are named one by one.
_NAMED = 3
# Pairs are looked at one by one up to this many domains.
_PAIRS = 2000


def caveats(
    names: Sequence[str],
    embeddings: ArrayLike,
    scores: ArrayLike,
    weights: ArrayLike,
    noise: ArrayLike = 0.0,
) -> list[str]:
    """Warnings about a computed mixture; none where nothing stands out.

    Args:
        names: (k,), for the warnings.
        embeddings: (k, d).
        scores: (k,), leverage scores.
        weights: (k,).
        noise: (k,), expected squared error of each embedding.

    Returns:
        Sentences that say what can be done, and name domains where it is about some of them.
    """
    x, s, w = (np.asarray(part, dtype=np.float64) for part in (embeddings, scores, weights))
    k = len(names)
    error = np.broadcast_to(np.asarray(noise, dtype=np.float64), (k,))
    if k == 2:
        return [
            "two domains are as far from their mean as each other, whatever is in them: weights of "
            "two domains say nothing; split the domains further, or set weights by hand"
        ]
    found = []
    if np.ptp(s) < EQUAL * s.mean():
        found.append(
            f"all scores lie within {np.ptp(s) / s.mean():.1%} of each other: little tells the "
            "domains apart; train the proxy longer or take another layer"
        )
    if w.max() > DOMINANT:
        found.append(
            f"{names[int(w.argmax())]!r} alone has {w.max():.0%} of the samples; "
            "raise min_effective, pin its share or cap its epochs to hold it back"
        )
    if k <= _PAIRS:
        affinity = affinity_matrix(x)
        own = np.diagonal(affinity)
        squared = own[:, None] + own[None, :] - 2 * affinity
        # Windows of one domain drawn twice are as far apart as their errors.
        near = np.maximum(ALIKE**2 * own.mean(), error[:, None] + error[None, :])
        alike = [
            f"{names[i]!r} and {names[j]!r}" for i, j in np.argwhere(np.triu(squared < near, 1))
        ]
        if alike:
            found.append(
                f"one and the same to the proxy: {_some(alike)}. Together they get more than they "
                "would as one domain: merge them"
            )
        else:
            # What noise alone would span, and what is below float32's rounding, is no dimension.
            singular = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
            of_noise = math.sqrt(error.mean()) * (1 + math.sqrt(k / x.shape[1]))
            of_rounding = singular[0] * max(x.shape) * np.finfo(np.float32).eps
            rank, most = int((singular > max(of_noise, of_rounding)).sum()), min(k - 1, x.shape[1])
            if rank < most:
                found.append(
                    f"the embeddings span {rank} dimensions, {most} are possible: some domains are "
                    "mixtures of others, or too few samples were drawn to see what is not"
                )
    return found


def doubts(
    names: Sequence[str], errors: WeightErrors, samples: Sequence[int | None], tolerance: float
) -> list[str]:
    """What the windows that were drawn, and the proxies, do not settle.

    Args:
        names: (k,).
        errors: of their weights.
        samples: (k,), windows drawn, or None where more would be of no use.
        tolerance: half-width of an interval that is good enough.

    Returns:
        Sentences: which weight is known worst and what would help, and neighbours in the order of
        weights that could as well be the other way round.
    """
    found = []
    half_widths = errors.half_widths()
    widest = int(half_widths.argmax())
    if half_widths[widest] > tolerance:
        of_windows = errors.of_windows().half_widths()[widest]
        drawn, advice = samples[widest], ""
        if of_windows > tolerance and drawn:
            # The error falls with the root of the number of windows.
            needed = drawn * (of_windows / tolerance) ** 2
            unit = 10 ** math.floor(math.log10(needed))
            advice = (
                f"; about {math.ceil(needed / unit) * unit:,} samples a domain would bring what "
                f"they leave open down to {tolerance} (samples=auto draws as many as it "
                "takes)"
            )
        elif of_windows <= tolerance:
            advice = "; more proxies would tell, more samples would not"
        found.append(
            f"the weight of {names[widest]!r} is known to {half_widths[widest]:.4f} only{advice}"
        )
    order = np.argsort(-errors.weights, kind="stable")
    pairs = [
        f"{names[i]!r} or {names[j]!r}" for i, j in pairwise(order) if not errors.tell_apart(i, j)
    ]
    if pairs:
        found.append(f"the samples do not tell which has the larger weight: {_some(pairs)}")
    return found


def _some(things: Sequence[str]) -> str:
    """The first few, and how many more."""
    rest = [f"and {len(things) - _NAMED} more pairs"] if len(things) > _NAMED else []
    return ", ".join([*things[:_NAMED], *rest])
