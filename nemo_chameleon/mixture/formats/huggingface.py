"""Probabilities for datasets.interleave_datasets, which draws whole documents."""

import json
from collections.abc import Sequence
from typing import Any

from nemo_chameleon.mixture.formats.blend import (
    Blend,
    MixtureFormat,
    fact,
    named_blend,
    number,
    short,
)
from nemo_chameleon.mixture.formats.text import parse_json, parse_yaml
from nemo_chameleon.mixture.mixture import Mixture
from nemo_chameleon.utils.errors import UserError


def _write(mixture: Mixture) -> str:
    lengths = {
        name: fact(mixture, name, "tokens") / fact(mixture, name, "documents")
        for name in mixture.weights
    }
    # This tool draws whole documents, so a domain with longer documents is drawn less often.
    documents = Mixture.static(
        {name: weight / lengths[name] for name, weight in mixture.weights.items()}
    )
    body = {
        "names": list(mixture.weights),
        "probabilities": list(documents.weights.values()),
        "tokens_per_document": list(lengths.values()),
    }
    return json.dumps(body, indent=2, ensure_ascii=False) + "\n"


def _read(text: str) -> Blend:
    body = parse_json(text) if text.lstrip().startswith("{") else parse_yaml(text)
    if not isinstance(body, dict):
        raise UserError("it must have the keys names, probabilities and tokens_per_document")
    shares = body.get("probabilities")
    names = list(shares) if isinstance(shares, dict) else body.get("names")
    if not (isinstance(names, list) and names):
        raise UserError("it has no list 'names' with the names of the domains")
    notes = []
    if shares is None:  # the tool then takes documents from all datasets in turn
        shares = [1.0] * len(names)
        notes = ["without probabilities, documents of all domains are drawn equally often"]
    if body.get("tokens_per_document") is None:
        raise UserError(
            "it has no 'tokens_per_document': the probabilities are those of documents, and become "
            "shares of tokens only with the mean number of tokens of each domain's documents; if "
            "they are shares of tokens already, use --format json, which reads this file"
        )
    columns = {
        "probabilities": _column("probabilities", shares, names),
        "tokens_per_document": _column("tokens_per_document", body["tokens_per_document"], names),
    }
    entries: list[tuple[str, Any, float, dict[str, Any]]] = []
    for i, name in enumerate(names, 1):
        share, length = (
            number(values[i - 1], f"entry {i} of {key}") for key, values in columns.items()
        )
        entries.append((f"entry {i} of names", name, share * length, {}))
    blend = named_blend(entries)
    return Blend(blend.weights, {}, [*notes, *blend.notes])


def _column(key: str, values: Any, names: Sequence[Any]) -> list[Any]:
    """Return one value for each name, from a list or from a dictionary by name."""
    if isinstance(values, dict):
        missing = [name for name in names if not isinstance(name, str) or name not in values]
        if missing or len(values) != len(names):
            raise UserError(f"{key!r} must have one number for each of {short(names)}")
        return [values[name] for name in names]
    if not isinstance(values, list):
        raise UserError(f"{key!r} must be a list of numbers, not {short(values)}")
    if len(values) != len(names):
        raise UserError(f"there are {len(names)} names, but {len(values)} {key}")
    return values


HF = MixtureFormat(
    "names and probabilities for datasets.interleave_datasets. A probability is that of "
    "drawing a document next. Documents differ in length, so the probability is in proportion "
    "to the weight divided by the mean number of tokens per document of the domain. Training "
    "on whole documents then gives the mixture's shares of tokens. Use "
    "stopping_strategy='all_exhausted'; otherwise the shares hold only until the smallest "
    "domain is used up.",
    _write,
    _read,
)
