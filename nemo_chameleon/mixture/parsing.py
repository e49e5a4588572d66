"""Read the text of a mixture file into the fields of a Mixture, and check every entry."""

import functools
import json
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from nemo_chameleon.utils import json_objects
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.names import require_unicode

without_duplicates = functools.partial(json_objects.distinct_keys, UserError)
"""Makes a dictionary of a JSON object, as `object_pairs_hook` of `json`."""


def parse_mixture(text: str, version: int, known: Collection[str]) -> dict[str, Any]:
    """Parse the text of a mixture file and check its entries.

    Args:
        text: of the file.
        version: what the entry "format" must be.
        known: names of the entries that a file may have.

    Returns:
        The entries by name, without "format".

    Raises:
        UserError: the file has another version, or an entry is missing, unknown or wrong.
        ValueError: a number is not one that JSON has.
    """
    try:
        body = json.loads(text, object_pairs_hook=without_duplicates, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise UserError(
            f"not JSON, as a mixture file is ({error}): nemo-chameleon mixture import makes one of "
            "other tools' files"
        ) from error
    if not isinstance(body, dict) or "format" not in body:
        raise UserError("it has no 'format': is it a mixture file?")
    if body.pop("format") != version:
        raise UserError(f"its format is not {version}: another version of nemo_chameleon wrote it")
    unknown = sorted(set(body) - set(known))
    if unknown:
        raise UserError(f"unknown entry {unknown[0]!r}")
    if not isinstance(body.get("weights"), dict):
        raise UserError("it has no 'weights'")
    for entry in ("domains", "method", "proxy", "uncertainty", "created"):
        if not isinstance(body.get(entry, {}), dict):
            raise UserError(f"{entry!r} must be an object")
    _require_types(body)
    require_unicode(body)
    return body


def _require_types(body: Mapping[str, Any]) -> None:
    """Check the types of the entries that code relies on."""
    for name, facts in body.get("domains", {}).items():
        if not isinstance(facts, dict):
            raise UserError(f"the entry of domain {name!r} must be an object")
        for key in ("tokens", "documents", "samples", "score"):
            if not (_is_number(facts.get(key, 0)) and facts.get(key, 0) >= 0):
                raise UserError(f"{key!r} of domain {name!r} must be a number of at least 0")
        share = facts.get("heaviest_share", 0)
        if not _is_number(share):
            raise UserError(f"'heaviest_share' of domain {name!r} must be a number")
        for key in ("fingerprint", "embedding", "heaviest_token"):
            if not isinstance(facts.get(key, ""), str):
                raise UserError(f"{key!r} of domain {name!r} must be text")
        require_datasets(name, facts)
    for name, ends in body.get("uncertainty", {}).items():
        if not (
            isinstance(ends, list)
            and len(ends) == 2
            and all(map(_is_number, ends))
            and ends[0] <= ends[1]
        ):
            raise UserError(f"the uncertainty of domain {name!r} must be the ends of an interval")
    objective = body.get("objective")
    if objective is not None and not (isinstance(objective, str) and objective):
        raise UserError("'objective' must be text, or null")
    method, proxy = body.get("method", {}), body.get("proxy", {})
    for what, values, kind in (
        ("'caveats' must be a list of texts", method.get("caveats", []), str),
        ("'averaged' must be a list of proxies", proxy.get("averaged", []), dict),
    ):
        if not (isinstance(values, list) and all(isinstance(value, kind) for value in values)):
            raise UserError(what)
    for facts in (proxy, *proxy.get("averaged", [])):
        if not all(_is_number(facts.get(key, 1)) for key in ("drift", "iterations")):
            raise UserError("'drift' and 'iterations' of a proxy must be numbers")
    if not isinstance(method.get("intervals", ""), str):
        raise UserError("'intervals' must say what the intervals cover, in text")
    if not _is_layers(method.get("layers", {}), body["weights"]):
        raise UserError("'layers' must have a weight for each domain in each layer")


def require_datasets(name: str, facts: Mapping[str, Any]) -> None:
    """Check the paths of a domain, and the tokens of each.

    Args:
        name: of the domain.
        facts: what a mixture records about it.

    Raises:
        UserError: they are not text, or there is not a number of tokens for each.
    """
    path = facts.get("path", "")
    paths = path if isinstance(path, list) else [path]
    if not (paths and all(isinstance(part, str) for part in paths)):
        raise UserError(f"'path' of domain {name!r} must be text, or a list of texts")
    if len(set(paths)) < len(paths):
        raise UserError(f"'path' of domain {name!r} has a path twice: remove one of the two")
    tokens = facts.get("part_tokens", [0] * len(paths))
    if not (
        isinstance(tokens, list)
        and len(tokens) == len(paths)
        and all(_is_number(count) and count >= 0 for count in tokens)
    ):
        raise UserError(
            f"'part_tokens' of domain {name!r} must have a number of at least 0 for each path"
        )


def _is_layers(value: Any, names: Iterable[str]) -> bool:
    return isinstance(value, dict) and all(
        isinstance(weights, dict) and all(_is_number(weights.get(name)) for name in names)
        for weights in value.values()
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def _no_number(constant: str) -> None:
    raise UserError(f"{constant} is not a finite number")


def normalised(amounts: Mapping[str, float]) -> dict[str, float]:
    """Return shares in proportion to amounts.

    Args:
        amounts: by domain name; positive.

    Returns:
        The amounts divided by their sum.

    Raises:
        UserError: an amount is not positive and finite; the error names the domain.
    """
    for name, amount in amounts.items():
        if not (math.isfinite(amount) and amount > 0):
            raise UserError(
                f"the weight of domain {name!r} is {amount}, but must be positive and finite"
            )
    total = math.fsum(amounts.values())
    return {name: amount / total for name, amount in amounts.items()}
