"""JSON with weights by domain name alone, as people and most tools for mixtures write them."""

import json
from typing import Any

from nemo_chameleon.mixture.formats.blend import (
    Blend,
    MixtureFormat,
    as_number,
    named_blend,
    number,
    short,
    with_sum,
)
from nemo_chameleon.mixture.formats.text import parse_json
from nemo_chameleon.mixture.mixture import Mixture
from nemo_chameleon.mixture.parsing import require_datasets
from nemo_chameleon.utils.errors import UserError

_DATASETS = ("path", "part_tokens")


def _write(mixture: Mixture) -> str:
    return json.dumps(mixture.weights, indent=2, ensure_ascii=False) + "\n"


def _read(text: str) -> Blend:
    body = parse_json(text)
    facts: list[dict[str, Any]] = []
    if isinstance(body, list):  # Olmix writes its weights as such a list
        for i, entry in enumerate(body, 1):
            if not (isinstance(entry, dict) and {"domain", "weight"} <= set(entry)):
                raise UserError(f"entry {i} must have a domain and a weight, not {short(entry)}")
            if unknown := sorted(set(entry) - {"domain", "weight", *_DATASETS}):
                raise UserError(f"entry {i}: unknown key {unknown[0]!r}: take it out of the file")
            facts.append(
                {
                    key: _plain(entry[key]) if key == "part_tokens" else entry[key]
                    for key in _DATASETS
                    if key in entry
                }
            )
            try:
                require_datasets(str(entry["domain"]), facts[-1])
            except UserError as error:
                raise UserError(f"entry {i}: {error}") from error
        body_items = [(entry["domain"], entry["weight"]) for entry in body]
    elif not isinstance(body, dict):
        raise UserError('it must be an object {"DOMAIN": WEIGHT, ...}')
    elif "format" in body and isinstance(body.get("weights"), dict):
        raise UserError("it is a mixture file already: use it as it is")
    elif set(body) == {"names", "probabilities"} and all(
        isinstance(column, list) for column in body.values()
    ):  # as for Hugging Face's interleave_datasets
        names, shares = body["names"], body["probabilities"]
        if len(names) != len(shares):
            raise UserError(f"there are {len(names)} names, but {len(shares)} probabilities")
        body_items = list(zip(names, shares, strict=True))
    else:
        body_items = list(body.items())
    facts = facts or [{}] * len(body_items)
    blend = named_blend(
        (f"entry {i}, {short(name)}", name, number(weight, f"entry {i}, {short(name)}"), own)
        for i, ((name, weight), own) in enumerate(zip(body_items, facts, strict=True), 1)
    )
    return with_sum(blend)


def _plain(value: Any) -> Any:
    """Return the numbers of a list, which the parser keeps as text."""
    if not isinstance(value, list):
        return value
    numbers = [as_number(item) for item in value]
    return value if None in numbers else numbers


JSON = MixtureFormat(
    'an object {"domain": weight}, for people and scripts. A weight is the share of training '
    "samples and of their tokens.",
    _write,
    _read,
)
