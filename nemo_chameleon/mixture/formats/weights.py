"""JSON with weights by domain name alone, as people and most tools for mixtures write them."""

import json

from nemo_chameleon.mixture.formats.blend import Blend, MixtureFormat, named_blend, number, short
from nemo_chameleon.mixture.formats.text import parse_json
from nemo_chameleon.mixture.mixture import Mixture
from nemo_chameleon.utils.errors import UserError


def _write(mixture: Mixture) -> str:
    return json.dumps(mixture.weights, indent=2, ensure_ascii=False) + "\n"


def _read(text: str) -> Blend:
    body = parse_json(text)
    if isinstance(body, list):  # Olmix writes its weights as such a list
        for i, entry in enumerate(body, 1):
            if not (isinstance(entry, dict) and {"domain", "weight"} <= set(entry)):
                raise UserError(f"entry {i} must have a domain and a weight, not {short(entry)}")
        body_items = [(entry["domain"], entry["weight"]) for entry in body]
    elif not isinstance(body, dict):
        raise UserError('it must be an object {"DOMAIN": WEIGHT, ...}')
    elif "format" in body and isinstance(body.get("weights"), dict):
        raise UserError("it is a mixture file already: use it as it is")
    else:
        body_items = list(body.items())
    return named_blend(
        (f"entry {i}, {short(name)}", name, number(weight, f"entry {i}, {short(name)}"), {})
        for i, (name, weight) in enumerate(body_items, 1)
    )


JSON = MixtureFormat(
    'an object {"domain": weight}, for people and scripts. A weight is the share of training '
    "samples and of their tokens.",
    _write,
    _read,
)
