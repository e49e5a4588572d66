"""The Megatron datasets of a mixture's domains: one prefix, or several with the tokens of each."""

import math
import os
from collections.abc import Mapping
from typing import Any

from nemo_chameleon.utils.errors import UserError

MOST_DATASETS = 2**15 - 2
"""How many datasets Megatron's blend can number."""

Datasets = str | Mapping[str, float]
"""The prefix of a domain's only dataset, or the training tokens of each of several by prefix."""


def blend_of(
    weights: Mapping[str, float], datasets: Mapping[str, Datasets]
) -> tuple[list[str], list[float]]:
    """Return Megatron's blend: each dataset has its domain's weight times its share of the tokens.

    Args:
        weights: by domain name.
        datasets: each domain's datasets, by name.

    Returns:
        The prefixes and their weights, both in the order of `datasets`.

    Raises:
        UserError: a prefix stands twice, or there are more prefixes than Megatron can blend.
    """
    prefixes: list[str] = []
    blended: list[float] = []
    known: dict[str, str] = {}
    for name, given in datasets.items():
        tokens = {given: 1.0} if isinstance(given, str) else given
        total = math.fsum(tokens.values())
        for prefix, amount in tokens.items():
            if not amount:  # nothing is drawn from it, and Megatron takes no weight of 0
                continue
            if (place := os.path.normpath(prefix)) in known:
                raise UserError(
                    f"{prefix} is there twice, for domain {known[place]!r} and for {name!r}: "
                    "remove one of the two"
                )
            known[place] = name
            prefixes.append(prefix)
            blended.append(float(weights[name]) * (amount / total))
    require_countable(len(prefixes))
    return prefixes, blended


def recorded_datasets(name: str, facts: Mapping[str, Any]) -> dict[str, float]:
    """Return the datasets of a domain that a mixture file records.

    Args:
        name: of the domain; errors name it.
        facts: what the file records about the domain.

    Returns:
        The training tokens of each dataset by prefix, or any number where there is one dataset;
        nothing where the file records no path.

    Raises:
        UserError: the file has several paths, but not the tokens of each.
    """
    paths = facts.get("path") or []
    if isinstance(paths, str) or len(paths) == 1:
        return {paths if isinstance(paths, str) else paths[0]: 1.0}
    if not paths:
        return {}
    tokens = facts.get("part_tokens")
    if tokens is None or not any(tokens):
        raise UserError(
            f"domain {name!r} has {len(paths)} paths, but the mixture has no 'part_tokens', the "
            "training tokens of each: add the list, or compute the mixture again"
        )
    return dict(zip(paths, map(float, tokens), strict=True))


def require_countable(datasets: int) -> None:
    """Check that Megatron's blend can number as many datasets.

    Args:
        datasets: number of datasets of all domains.

    Raises:
        UserError: there are too many.
    """
    if datasets > MOST_DATASETS:
        raise UserError(
            f"the domains have {datasets:,} datasets, but Megatron's blend can number only "
            f"{MOST_DATASETS:,}: merge datasets of the same domain"
        )
