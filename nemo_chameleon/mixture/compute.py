"""From domain embeddings to a Mixture: scores, weights, their intervals, and caveats.

Only the embeddings are needed, so that weights can be computed again anywhere without a model.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nemo_chameleon.method.diagnostics import (
    SETTINGS,
    caveats,
    doubts,
    heavy_tokens,
    undertrained,
)
from nemo_chameleon.method.embeddings import Embeddings, HeaviestTokens
from nemo_chameleon.method.intervals import WeightErrors, resample
from nemo_chameleon.method.weights import Preset, tempered_weights, weights_from_scores
from nemo_chameleon.mixture.mixture import Mixture, proxies_of
from nemo_chameleon.utils.arrays import Floats
from nemo_chameleon.utils.errors import UserError

TOLERANCE = 0.005
"""Half-width of a weight's 95 % interval that is narrow enough."""


def mixture_from_embeddings(
    embeddings: Sequence[Embeddings],
    domains: Mapping[str, Mapping[str, Any]],
    *,
    objective: str,
    preset: Preset,
    tolerance: float = TOLERANCE,
    method: Mapping[str, Any] | None = None,
    proxy: Mapping[str, Any] | None = None,
    created: Mapping[str, str] | None = None,
    settings: Mapping[str, str] = SETTINGS,
) -> Mixture:
    """Compute the mixture of domains that one proxy or several embedded.

    Args:
        embeddings: by domain name, one mapping per proxy.
        domains: facts about each domain, by name, in the mixture's order. `samples` is the number
            of windows that the domain's embedding is the mean of, `tokens` the number of tokens
            that the domain has, `heaviest_token` the text of its heaviest token; all may be
            missing.
        objective: "pretrain" or "finetune".
        preset: how scores are computed and become weights.
        tolerance: a caveat asks for more samples if an interval's half-width is above this.
        method: how the embeddings were made, for the file.
        proxy: which proxy made them, for the file, or the list `averaged` of several.
        created: versions and time, for the file.
        settings: the names of settings in caveats, as `diagnostics.SETTINGS`.

    Returns:
        The mixture, with intervals unless there are only two domains or one shard.

    Raises:
        UserError: there are fewer than two domains, an embedding is missing, not finite or of
            another width, or no weights follow from the embeddings.
    """
    names = list(domains)
    require_embeddings(embeddings, names)
    if len(names) == 1:
        raise UserError(f"{names[0]!r} is the only domain: computed weights need at least two")
    x = combined([_matrix(proxy, names) for proxy in embeddings])
    try:
        scores = preset.leverage_scores(x)
        weights, tempering = tempered_weights(scores, objective, preset)
    except ValueError as error:
        raise UserError(f"cannot compute weights from these embeddings: {error}") from error
    # Two domains have equal weights, whatever windows are drawn.
    errors = None if len(names) == 2 else errors_of(embeddings, names, objective, preset)
    # The embeddings of several proxies have no common scale to give the noise in.
    noise = [embeddings[0][name].noise() for name in names] if len(embeddings) == 1 else 0.0
    found = caveats(names, x, scores, weights, noise, settings)
    heaviest: dict[str, HeaviestTokens] = {}
    for name in names:
        by_proxy = [tokens for proxy in embeddings if (tokens := proxy[name].heaviest)]
        if by_proxy:
            heaviest[name] = max(by_proxy, key=lambda tokens: tokens.share)
    # Averaged proxies may have tokenizers of their own, and only one of them is recorded.
    texts = {
        name: facts["heaviest_token"]
        for name, facts in domains.items()
        if "heaviest_token" in facts and len(embeddings) == 1
    }
    found += heavy_tokens(heaviest, method or {}, texts, settings)
    too_little = undertrained(proxies_of(proxy or {}), settings)
    found += too_little
    if errors is not None:
        drawn = [embeddings[0][name].tokens.sum() for name in names]
        samples = [
            facts.get("samples") if tokens < facts.get("tokens", math.inf) else None
            for facts, tokens in zip(domains.values(), drawn, strict=True)
        ]
        found += doubts(names, errors, samples, tolerance, settings, trained=not too_little)
    return Mixture(
        weights=dict(zip(names, weights.tolist(), strict=True)),
        objective=objective,
        domains={
            name: {
                **domains[name],
                "embedding": digest(embeddings, name),
                **({"heaviest_share": heaviest[name].share} if name in heaviest else {}),
                "score": score,
            }
            for name, score in zip(names, scores.tolist(), strict=True)
        },
        method={
            "name": "chameleon",
            **preset.settings(),
            **(method or {}),
            "tolerance": tolerance,
            "tempering": tempering,
            **({} if errors is None else {"intervals": errors.cover}),
            "caveats": found,
        },
        proxy=dict(proxy or {}),
        uncertainty=(
            {} if errors is None else dict(zip(names, errors.intervals().tolist(), strict=True))
        ),
        created=dict(created or {}),
    )


def digest(embeddings: Sequence[Embeddings], name: str) -> str:
    """Return a digest of a domain's embeddings, which tells whether a file belongs to a mixture.

    Args:
        embeddings: by domain name, one mapping per proxy.
        name: the domain.

    Returns:
        The digests for all proxies, joined by "-".
    """
    return "-".join(proxy[name].digest() for proxy in embeddings)


def errors_of(
    embeddings: Sequence[Embeddings], names: Sequence[str], objective: str, preset: Preset
) -> WeightErrors | None:
    """Estimate the errors of these domains' weights.

    Args:
        embeddings: by domain name, one mapping per proxy.
        names: (k,), the domains.
        objective: "pretrain" or "finetune".
        preset: how scores are computed and become weights.

    Returns:
        The weights and their errors, or None if there is only one shard.

    Raises:
        UserError: no weights follow from the embeddings.
    """
    return resample(embeddings, names, lambda by_proxy: weigh(by_proxy, objective, preset))


def weigh(by_proxy: Sequence[Floats], objective: str, preset: Preset) -> Floats:
    """Compute weights from embedding matrices.

    Args:
        by_proxy: one matrix (k, d) per proxy; d may differ.
        objective: "pretrain" or "finetune".
        preset: how scores are computed and become weights.

    Returns:
        The weights, (k,).

    Raises:
        UserError: no weights follow from the embeddings.
    """
    try:
        scores = preset.leverage_scores(combined(by_proxy))
        return weights_from_scores(scores, objective, preset)
    except ValueError as error:
        raise UserError(f"cannot compute weights from these embeddings: {error}") from error


def combined(by_proxy: Sequence[Floats]) -> Floats:
    """Combine embedding matrices so that the affinity is the mean over the proxies.

    The hidden states of two proxies have no axes in common, so their embeddings cannot be averaged,
    but their inner products can. All embeddings are first scaled to the same mean self-affinity, so
    that a proxy with longer hidden states does not count for more.

    Args:
        by_proxy: one matrix (k, d) per proxy; d may differ.

    Returns:
        One matrix (k, sum of d); with one proxy, its matrix as it is.

    Raises:
        UserError: one of the proxies gave all domains the same embedding.
    """
    if len(by_proxy) == 1:
        return by_proxy[0]
    centred = [x - x.mean(axis=0) for x in by_proxy]
    sizes = np.array([np.mean(np.sum(x * x, axis=1)) for x in centred])
    if not np.all(sizes > 0):
        raise UserError("one of the proxies gave all domains the same embedding: leave it out")
    scales = np.sqrt(sizes.mean() / sizes / len(sizes))
    return np.concatenate([scale * x for scale, x in zip(scales, centred, strict=True)], axis=1)


def require_embeddings(embeddings: Sequence[Embeddings], names: Sequence[str]) -> None:
    """Check that weights can be computed from these embeddings.

    Args:
        embeddings: by domain name, one mapping per proxy.
        names: the domains.

    Raises:
        UserError: there are no domains, an embedding is missing, not finite or of another width, or
            the numbers of shards differ.
    """
    if not names or not embeddings:
        raise UserError("there are no domains to compute weights for")
    for proxy in embeddings:
        for name in names:
            if name not in proxy:
                raise UserError(f"domain {name!r} has no embedding")
            first, means = proxy[names[0]].means, proxy[name].means
            if not np.all(np.isfinite(means)):
                raise UserError(f"the embedding of domain {name!r} is not finite")
            if means.shape[1] != first.shape[1]:
                raise UserError(
                    f"the embedding of domain {name!r} has {means.shape[1]} numbers and that of "
                    f"{names[0]!r} has {first.shape[1]}: embed both with the same proxy"
                )
    shards = {len(proxy[name].tokens) for proxy in embeddings for name in names}
    if len(shards) > 1:
        raise UserError(
            f"domains have embeddings of {min(shards)} and of {max(shards)} shards: embed all "
            "domains with the same number of samples"
        )


def _matrix(proxy: Embeddings, names: Sequence[str]) -> Floats:
    return np.stack([proxy[name].embedding for name in names])
