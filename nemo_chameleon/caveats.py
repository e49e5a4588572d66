"""Where the method is blind: what its weights cannot be trusted to say, in words."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from nemo_chameleon.leverage import affinity_matrix
from nemo_chameleon.uncertainty import Bootstrap

# Two embeddings nearer than this share of the mean distance of a domain to the centre are alike:
# their domains are one and the same to the proxy.
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
    names: Sequence[str], embeddings: ArrayLike, scores: ArrayLike, weights: ArrayLike
) -> list[str]:
    """Warnings about a computed mixture; none where nothing stands out.

    Args:
        names: (k,), for the warnings.
        embeddings: (k, d).
        scores: (k,), leverage scores.
        weights: (k,).

    Returns:
        Sentences, each naming the domains it is about and what can be done.
    """
    x, s, w = (np.asarray(part, dtype=np.float64) for part in (embeddings, scores, weights))
    k = len(names)
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
            "chameleon.min_effective, data.pin or data.max_epochs hold it back"
        )
    if k <= _PAIRS:
        affinity = affinity_matrix(x)
        own = np.diagonal(affinity)
        distance = np.sqrt(np.maximum(own[:, None] + own[None, :] - 2 * affinity, 0.0))
        alike = np.argwhere(np.triu(distance < ALIKE * np.sqrt(own.mean()), 1))
        found += [
            f"{names[i]!r} and {names[j]!r} are one and the same to the proxy, and together get "
            "more than they would as one domain: merge them"
            for i, j in alike
        ]
        if not len(alike):
            # Embeddings are made in float32: what is below its rounding is no dimension.
            singular = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
            rank = int((singular > singular[0] * max(x.shape) * np.finfo(np.float32).eps).sum())
            if rank < min(k - 1, x.shape[1]):
                found.append(
                    f"the embeddings span {rank} dimensions, {min(k - 1, x.shape[1])} are "
                    "possible: some domains are mixtures of others"
                )
    return found


def doubts(
    names: Sequence[str], errors: Bootstrap, samples: Sequence[int | None], tolerance: float
) -> list[str]:
    """What the windows that were drawn do not settle.

    Args:
        names: (k,).
        errors: of their weights.
        samples: (k,), windows drawn, or None where more would be of no use.
        tolerance: half-width of an interval that is good enough.
    """
    found = []
    half_widths = errors.half_widths()
    widest = int(half_widths.argmax())
    if half_widths[widest] > tolerance:
        advice = ""
        if drawn := samples[widest]:
            # The error falls with the root of the number of windows.
            needed = float(f"{drawn * (half_widths[widest] / tolerance) ** 2:.1g}")
            advice = (
                f"; about {needed:,.0f} samples a domain would bring that down to {tolerance} "
                "(chameleon.samples=auto draws as many as it takes)"
            )
        found.append(
            f"the weight of {names[widest]!r} is known to {half_widths[widest]:.3f} only{advice}"
        )
    order = np.argsort(-errors.weights, kind="stable")
    pairs = [
        f"{names[i]!r} or {names[j]!r}" for i, j in pairwise(order) if not errors.tell_apart(i, j)
    ]
    if pairs:
        more = [f"and {len(pairs) - _NAMED} more pairs"] if len(pairs) > _NAMED else []
        found.append(
            "the samples do not tell which has the larger weight: "
            + ", ".join([*pairs[:_NAMED], *more])
        )
    return found
