"""Warnings about weights that say little about the data, in words."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nemo_chameleon.method.embeddings import HeaviestTokens
from nemo_chameleon.method.intervals import PROXIES, WeightErrors
from nemo_chameleon.method.leverage import affinity_matrix

SETTINGS = {
    name: name
    for name in (
        "samples",
        "min_effective",
        "pin",
        "max_epochs",
        "normalize_states",
        "train_iters",
    )
}
"""The names of settings that a warning advises; a caller gives the names that work when typed."""

# Two embeddings count as the same if their distance is below this share of the domains' root mean
# square distance from the centre, however small their errors are.
ALIKE = 0.01
# Scores whose range is below this share of their mean hardly tell the domains apart.
EQUAL = 0.02
# A weight above this share is reported.
DOMINANT = 0.5
# The share of a mean's squared norm that its heaviest 1 % of tokens may give without a warning.
HEAVY = 0.1
# The total variation that the weights of a proxy that is trained enough may move over the last
# quarter of its training, and the power of the length that it falls with. Both come from
# benchmarks/proxy_coverage.py: eight of nine proxies of 60 to 200 iterations move farther (0.13 to
# 0.16 between seeds), and one of nine of 400 and 800 iterations does (0.055 between seeds).
DRIFT, DRIFT_EXPONENT = 0.03, 0.7
# How many pairs of domains are named before the rest is only counted.
_NAMED = 3
# Pairs of domains are compared only if there are at most this many domains.
_PAIRS = 2000


def caveats(
    names: Sequence[str],
    embeddings: ArrayLike,
    scores: ArrayLike,
    weights: ArrayLike,
    noise: ArrayLike = 0.0,
    settings: Mapping[str, str] = SETTINGS,
) -> list[str]:
    """Return warnings about a computed mixture.

    Args:
        names: (k,), the domains.
        embeddings: (k, d), one row per domain.
        scores: (k,), leverage scores.
        weights: (k,), with a sum of 1.
        noise: (k,), the expected squared error of each embedding, or one number for all.
        settings: as `SETTINGS`, with the caller's names.

    Returns:
        Sentences that name the domains in question and say what can be done; none if nothing is
        suspicious.
    """
    x, s, w = (np.asarray(part, dtype=np.float64) for part in (embeddings, scores, weights))
    k = len(names)
    error = np.broadcast_to(np.asarray(noise, dtype=np.float64), (k,))
    if k == 2:
        return [
            "two domains are always equally far from their mean, so their weights say nothing "
            "about the data; split the domains further, or set the weights by hand"
        ]
    found = []
    if np.ptp(s) < EQUAL * s.mean():
        found.append(
            f"all scores are within {np.ptp(s) / s.mean():.1%} of each other, so they hardly tell "
            "the domains apart; train the proxy longer or use another layer"
        )
    if w.max() > DOMINANT:
        found.append(
            f"{names[int(w.argmax())]!r} alone has {w.max():.0%} of the samples; "
            f"raise {settings['min_effective']}, or set {settings['pin']} or "
            f"{settings['max_epochs']}, to reduce that"
        )
    if k <= _PAIRS:
        affinity = affinity_matrix(x)
        own = np.diagonal(affinity)
        squared = own[:, None] + own[None, :] - 2 * affinity
        # Two draws of windows from one domain are as far apart as their errors.
        near = np.maximum(ALIKE**2 * own.mean(), error[:, None] + error[None, :])
        alike = [
            f"{names[i]!r} and {names[j]!r}" for i, j in np.argwhere(np.triu(squared < near, 1))
        ]
        if alike:
            found.append(
                f"the proxy cannot tell these domains apart: {_some(alike)}. Together they get "
                "more weight than they would as one domain: merge them"
            )
        else:
            # Directions as small as the noise or as float32's rounding do not count as dimensions.
            singular = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
            of_noise = math.sqrt(error.mean()) * (1 + math.sqrt(k / x.shape[1]))
            of_rounding = singular[0] * max(x.shape) * np.finfo(np.float32).eps
            rank, most = int((singular > max(of_noise, of_rounding)).sum()), min(k - 1, x.shape[1])
            if rank < most:
                found.append(
                    f"the embeddings span {rank} dimensions of {most} possible ones: some "
                    "domains are mixtures of others, or too few samples were drawn to show that "
                    "they are not"
                )
    return found


def heavy_tokens(
    heaviest: Mapping[str, HeaviestTokens],
    method: Mapping[str, Any],
    texts: Mapping[str, str],
    settings: Mapping[str, str] = SETTINGS,
) -> list[str]:
    """Return a warning if a few tokens decide the domains' embeddings.

    Args:
        heaviest: the heaviest tokens of each domain, by name; may lack domains.
        method: how the embeddings were made, with `layer` and `normalize_states`; may lack both.
        texts: the text of the heaviest token of each domain, by name; may lack domains.
        settings: as `SETTINGS`, with the caller's names.

    Returns:
        One sentence that names the layer, the domain with the largest share and its heaviest token,
        and says what can be done; none if there is no such domain.
    """
    above = [name for name, tokens in heaviest.items() if tokens.share > HEAVY]
    if not above:
        return []
    worst = max(above, key=lambda name: heaviest[name].share)
    heavy = heaviest[worst]
    text = f"{texts[worst]!r} " if worst in texts else ""
    others = f", and more than {HEAVY:.0%} in {len(above) - 1} more" if len(above) > 1 else ""
    meaning = (
        f"Such states measure how long the windows are, not what they say: set "
        f"{settings['normalize_states']}=true"
    )
    if method.get("normalize_states"):
        meaning = "The states of these tokens agree more than others do: use another layer"
    return [
        f"in the output of layer {method.get('layer')}, 1 % of the tokens give {heavy.share:.0%} "
        f"of the squared norm of {worst!r}'s mean{others}; the heaviest one is token "
        f"{heavy.token} {text}at position {heavy.position} of its window. {meaning}"
    ]


def undertrained(
    proxies: Sequence[Mapping[str, Any]], settings: Mapping[str, str] = SETTINGS
) -> list[str]:
    """Return a warning about proxies whose weights still moved when their training ended.

    Args:
        proxies: facts about each proxy, as a mixture file has them: `drift`, the total variation
            between the weights before and after the last quarter of the training, and `iterations`,
            the length of the training. Proxies without them are skipped.
        settings: as `SETTINGS`, with the caller's names.

    Returns:
        One sentence that says how many iterations would do; none if the proxies are trained enough.
    """
    known = [proxy for proxy in proxies if {"drift", "iterations"} <= proxy.keys()]
    if not known:
        return []
    drift = sum(proxy["drift"] for proxy in known) / len(known)
    if drift <= DRIFT:
        return []
    iterations = max(proxy["iterations"] for proxy in known)
    needed = _rounded_up(iterations * (drift / DRIFT) ** (1 / DRIFT_EXPONENT))
    return [
        f"the proxy is trained too little to trust its weights: over the last quarter of its "
        f"{iterations:,} iterations, {drift:.1%} of the samples moved to another domain; "
        f"{settings['train_iters']}={needed} would bring that to {DRIFT:.0%}"
    ]


def doubts(
    names: Sequence[str],
    errors: WeightErrors,
    samples: Sequence[int | None],
    tolerance: float,
    settings: Mapping[str, str] = SETTINGS,
    trained: bool = True,
) -> list[str]:
    """Return warnings about weights that the windows and proxies do not determine well.

    Args:
        names: (k,), the domains.
        errors: their weights, with errors.
        samples: (k,), the number of windows drawn, or None for a domain whose data is used up.
        tolerance: half-width of an interval that is narrow enough.
        settings: as `SETTINGS`, with the caller's names.
        trained: whether the proxies are trained enough; more samples are no remedy if they are not.

    Returns:
        Sentences: which weight has the widest interval and what would help, and which domains next
        to each other in the order of weights may be in the wrong order.
    """
    found = []
    half_widths = errors.half_widths()
    widest = int(half_widths.argmax())
    if half_widths[widest] > tolerance:
        of_windows = errors.of_windows().half_widths()[widest]
        drawn, by, advice = samples[widest], "", ""
        if errors.cover == PROXIES and of_windows < half_widths[widest] / 2:
            by = " for another proxy"
            advice = "; more samples would not help, but the mean of more proxies varies less"
        elif of_windows > tolerance and drawn and trained:
            # The error falls with the square root of the number of windows.
            needed = _rounded_up(drawn * (of_windows / tolerance) ** 2)
            advice = (
                f"; about {needed:,} samples per domain would bring the error from sampling down "
                f"to {tolerance} ({settings['samples']}=auto draws as many as needed)"
            )
        found.append(
            f"the weight of {names[widest]!r} is known only to within {half_widths[widest]:.4f}"
            f"{by}{advice}"
        )
    order = np.argsort(-errors.weights, kind="stable")
    pairs = [
        f"{names[i]!r} or {names[j]!r}" for i, j in pairwise(order) if not errors.tell_apart(i, j)
    ]
    if pairs:
        which = "proxies" if errors.cover == PROXIES else "samples"
        found.append(f"the {which} do not show which domain has the larger weight: {_some(pairs)}")
    return found


def _rounded_up(number: float) -> int:
    """Return a number rounded up to one digit that is not zero."""
    unit: int = 10 ** math.floor(math.log10(number))
    return math.ceil(number / unit) * unit


def _some(things: Sequence[str]) -> str:
    """Return the first few pairs, and how many more there are."""
    rest = [f"and {len(things) - _NAMED} more pairs"] if len(things) > _NAMED else []
    return ", ".join([*things[:_NAMED], *rest])
