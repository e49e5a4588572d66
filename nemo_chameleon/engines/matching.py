"""A host's prefixes, matched to the domains of a mixture.

A host gives a flat list, in which a domain of several datasets has several prefixes, or prefixes by
domain name.
"""

import math
import os
from collections.abc import Mapping, Sequence

from nemo_chameleon.mixture.datasets import Datasets
from nemo_chameleon.utils.errors import UserError

Prefixes = Sequence[str] | Mapping[str, str | Sequence[str]]
"""Prefixes as a list, or by domain name."""
_WHOLE = ""  # the place of a prefix in a list that is a domain's name, and stands for all of it
_SHOWN = 8  # places that a message lists


def named(paths: Prefixes) -> dict[str, Datasets]:
    """Return prefixes by name, where nothing but the prefixes is known.

    Args:
        paths: the host's prefixes; one in a list is its own name.

    Returns:
        Each domain's prefix by name.

    Raises:
        UserError: a prefix stands twice, or a domain has several.
    """
    if not isinstance(paths, Mapping):
        return dict(zip(paths, _distinct(paths), strict=True))
    return {name: _datasets(name, given, {}) for name, given in paths.items()}


def summed(paths: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    """Sum a host's weights by prefix, because a prefix may stand in its list more than once.

    Args:
        paths: the host's prefixes.
        weights: their weights.

    Returns:
        Weights by prefix.

    Raises:
        UserError: a weight is not positive and finite.
    """
    spelled: dict[str, str] = {}
    total: dict[str, float] = {}
    for path, weight in zip(paths, weights, strict=True):
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(
                f"the weight of {path} is {weight}, but must be positive and finite; leave the "
                "prefix out to draw nothing from it"
            )
        path = spelled.setdefault(os.path.realpath(path), path)
        total[path] = total.get(path, 0.0) + weight
    return total


def matched(own: Mapping[str, Mapping[str, float]], paths: Prefixes | None) -> dict[str, Datasets]:
    """Return a host's prefixes by domain name.

    Args:
        own: the tokens of each domain's own datasets, by name and prefix.
        paths: the host's prefixes; None for the domains' own. Those of a list are matched to the
            domains by where they lie.

    Returns:
        The datasets of each domain, in the order of `paths`. Several datasets of one domain have
        the order in which the domain has them.

    Raises:
        UserError: a prefix belongs to no domain or stands twice, or a domain lacks one of its own.
    """
    if paths is None:
        return dict(own)
    if isinstance(paths, Mapping):
        return {name: _datasets(name, given, own.get(name, {})) for name, given in paths.items()}
    places = {
        os.path.realpath(prefix): (name, prefix)
        for name, prefixes in own.items()
        for prefix in prefixes
    }
    found: dict[str, dict[str, str]] = {}
    for path in paths:
        name, prefix = places.get(os.path.realpath(path), (path, _WHOLE))
        if name not in own:
            more = ["..."] if len(places) > _SHOWN else []
            raise UserError(
                f"the mixture has no domain at {path}; its domains are at "
                f"{', '.join([*places][:_SHOWN] + more) or 'places that it does not name'}: give "
                "the paths by name"
            )
        of_domain = found.setdefault(name, {})
        if prefix in of_domain or _WHOLE in of_domain or (of_domain and prefix == _WHOLE):
            raise UserError(f"{path}: domain {name!r} is given twice")
        of_domain[prefix] = path
    return {name: _spelled(name, given, own[name]) for name, given in found.items()}


def _spelled(name: str, given: Mapping[str, str], own: Mapping[str, float]) -> Datasets:
    """Return a domain's datasets with the host's spelling of their prefixes."""
    if len(own) < 2 or _WHOLE in given:
        return next(iter(given.values()))
    lacking = [prefix for prefix in own if prefix not in given]
    if lacking:
        raise UserError(
            f"domain {name!r} has {len(own)} datasets, and the list lacks {len(lacking)} of them: "
            f"add {lacking[0]}"
        )
    return {given[prefix]: tokens for prefix, tokens in own.items()}


def _datasets(name: str, given: str | Sequence[str], own: Mapping[str, float]) -> Datasets:
    """Return the datasets that a host gives by name, each with the tokens of the domain's own."""
    if isinstance(given, str):
        return given
    if len(given) == 1:
        return given[0]
    if len(given) != len(own):
        known = f"the mixture has {len(own)}" if own else "nothing says how many tokens each has"
        raise UserError(
            f"domain {name!r} is given {len(given)} prefixes, but {known}: give as many, in the "
            "order of the mixture file"
        )
    return dict(zip(_distinct(given), own.values(), strict=True))


def _distinct(paths: Sequence[str]) -> Sequence[str]:
    known: set[str] = set()
    for path in paths:
        if (place := os.path.realpath(path)) in known:
            raise UserError(f"{path} is there twice: remove one of the two")
        known.add(place)
    return paths
