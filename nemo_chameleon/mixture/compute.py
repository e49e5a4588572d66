"""Domain embeddings to a Mixture: scores, weights, how far they could be off, and caveats.

Knows neither torch nor megatron nor configuration: weights can be computed again wherever the
embeddings are.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nemo_chameleon.method.diagnostics import caveats, doubts
from nemo_chameleon.method.embeddings import Embeddings
from nemo_chameleon.method.intervals import WeightErrors, resample
from nemo_chameleon.method.weights import Preset, tempered_weights, weights_from_scores
from nemo_chameleon.mixture import Mixture
from nemo_chameleon.utils.arrays import Floats
from nemo_chameleon.utils.errors import UserError

TOLERANCE = 0.005
"""Half-width of a weight's interval that is good enough."""


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
) -> Mixture:
    """The mixture of domains that a proxy embedded, or several.

    Args:
        embeddings: by domain name, for each proxy.
        domains: facts about each domain, by name, in the mixture's order. `samples`, if there, is
            how many windows its embedding is the mean of, `tokens` how many there are in all.
        objective: "pretrain" or "finetune".
        preset: how scores become weights.
        tolerance: half-width of a weight's interval from which on a caveat asks for more samples.
        method: how the embeddings were made, for the file.
        proxy: which proxy made them, for the file.
        created: versions and time, for the file.

    Raises:
        UserError: no domains, an embedding missing, not finite or of another width, naming the
            domain; or embeddings that have no weights.
    """
    names = list(domains)
    require_embeddings(embeddings, names)
    if len(names) == 1:
        raise UserError(f"{names[0]!r} is the only domain: there is nothing to weigh it against")
    x = combined([_matrix(proxy, names) for proxy in embeddings])
    try:
        scores = preset.leverage_scores(x)
        weights, tempering = tempered_weights(scores, objective, preset)
    except ValueError as error:
        raise UserError(f"no weights from these embeddings: {error}") from error
    # Two domains have the same weight, whatever is drawn.
    errors = None if len(names) == 2 else errors_of(embeddings, names, objective, preset)
    # Of several proxies' embeddings together there is no one scale to give it in.
    noise = [embeddings[0][name].noise() for name in names] if len(embeddings) == 1 else 0.0
    found = caveats(names, x, scores, weights, noise)
    if errors is not None:
        drawn = [embeddings[0][name].tokens.sum() for name in names]
        samples = [
            facts.get("samples") if tokens < facts.get("tokens", math.inf) else None
            for facts, tokens in zip(domains.values(), drawn, strict=True)
        ]
        found += doubts(names, errors, samples, tolerance)
    return Mixture(
        weights=dict(zip(names, weights.tolist(), strict=True)),
        objective=objective,
        domains={
            name: {**domains[name], "embedding": digest(embeddings, name), "score": score}
            for name, score in zip(names, scores.tolist(), strict=True)
        },
        method={
            "name": "chameleon",
            **preset.settings(),
            **(method or {}),
            "tolerance": tolerance,
            "tempering": tempering,
            "caveats": found,
        },
        proxy=dict(proxy or {}),
        uncertainty=(
            {} if errors is None else dict(zip(names, errors.intervals().tolist(), strict=True))
        ),
        created=dict(created or {}),
    )


def digest(embeddings: Sequence[Embeddings], name: str) -> str:
    """Of a domain's embeddings, to know whether a file of them belongs to a mixture."""
    return "-".join(proxy[name].digest() for proxy in embeddings)


def errors_of(
    embeddings: Sequence[Embeddings], names: Sequence[str], objective: str, preset: Preset
) -> WeightErrors | None:
    """How far the weights of these domains could be off; None where there is but one shard.

    Raises:
        UserError: embeddings that have no weights.
    """
    return resample(embeddings, names, lambda by_proxy: weigh(by_proxy, objective, preset))


def weigh(by_proxy: Sequence[Floats], objective: str, preset: Preset) -> Floats:
    """Weights (k,) of one embedding matrix (k, d) a proxy.

    Raises:
        UserError: embeddings that have no weights.
    """
    try:
        scores = preset.leverage_scores(combined(by_proxy))
        return weights_from_scores(scores, objective, preset)
    except ValueError as error:
        raise UserError(f"no weights from these embeddings: {error}") from error


def combined(by_proxy: Sequence[Floats]) -> Floats:
    """One matrix (k, sum of widths) whose affinity is the mean of the proxies' own.

    Two proxies' hidden states have no axes in common, so embeddings cannot be averaged; inner
    products can. Each proxy's are brought to the mean self-affinity of them all first, so that none
    counts for more because its hidden states are longer.
    """
    if len(by_proxy) == 1:
        return by_proxy[0]
    centred = [x - x.mean(axis=0) for x in by_proxy]
    sizes = np.array([np.mean(np.sum(x * x, axis=1)) for x in centred])
    if not np.all(sizes > 0):
        raise UserError("through one of the proxies the domains' embeddings are all the same")
    scales = np.sqrt(sizes.mean() / sizes / len(sizes))
    return np.concatenate([scale * x for scale, x in zip(scales, centred, strict=True)], axis=1)


def require_embeddings(embeddings: Sequence[Embeddings], names: Sequence[str]) -> None:
    """Raise a UserError, naming the domain, unless weights can be computed of these."""
    if not names or not embeddings:
        raise UserError("no domains: there is nothing to weigh")
    for proxy in embeddings:
        for name in names:
            if name not in proxy:
                raise UserError(f"domain {name!r} has no embedding")
            first, means = proxy[names[0]].means, proxy[name].means
            if not np.all(np.isfinite(means)):
                raise UserError(f"the embedding of domain {name!r} is not finite")
            if means.shape[1] != first.shape[1]:
                raise UserError(
                    f"the embedding of domain {name!r} has {means.shape[1]} numbers, that of "
                    f"{names[0]!r} {first.shape[1]}: made through another proxy?"
                )
    shards = {len(proxy[name].tokens) for proxy in embeddings for name in names}
    if len(shards) > 1:
        raise UserError(
            f"embeddings are of {min(shards)} and of {max(shards)} shards: embed all domains with "
            "the same number of samples"
        )


def _matrix(proxy: Embeddings, names: Sequence[str]) -> Floats:
    return np.stack([proxy[name].embedding for name in names])
