"""Mixtures in the forms that other tools read, and back.

A mixture's weight is the share of training samples, all of one length, that a domain gets: of
tokens too, then. What other tools take is not always that; each form says what its numbers mean.
"""

import csv
import io
import json
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, TypeVar

import yaml

from nemo_chameleon.mixture import Mixture
from nemo_chameleon.mixture.mixture import SUM_TOLERANCE
from nemo_chameleon.utils.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class MixtureFormat:
    """One way to write a mixture down.

    Attributes:
        meaning: of its numbers, and what to give the file to.
        write: a mixture to text.
        read: text to weights by domain name and paths by domain name.
    """

    meaning: str
    write: Callable[[Mixture], str]
    read: Callable[[str], tuple[dict[str, float], dict[str, str]]]


def export_mixture(mixture: Mixture, form: str) -> str:
    """A mixture as text in one of `FORMATS`.

    Raises:
        UserError: the form needs facts about the domains that the mixture does not have.
    """
    return FORMATS[form].write(mixture)


def import_mixture(text: str, form: str, source: str = "text") -> Mixture:
    """A mixture, called static, from text in one of `FORMATS`; `source` names it in errors.

    Domains are called by the ends of their paths where the form has no names.

    Raises:
        UserError: text that is not of this form, or weights that are not a mixture's.
    """
    try:
        weights, paths = FORMATS[form].read(text)
        if abs(sum(weights.values()) - 1.0) > SUM_TOLERANCE:
            weights = Mixture.static(weights).weights
        return Mixture(
            weights,
            domains={name: {"path": path} for name, path in paths.items() if path},
            method={"name": "static"},
        )
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    except (
        *(ValueError, KeyError, TypeError, OverflowError, RecursionError),
        *(yaml.YAMLError, csv.Error),
    ) as error:
        raise UserError(f"{source} is not of the form {form}: {error!r}") from error


def _pairs(mixture: Mixture) -> list[str]:
    """Weight, prefix, weight, prefix, ... as Megatron's command line takes them."""
    pairs = []
    for name, weight in mixture.weights.items():
        path = _fact(mixture, name, "path")
        if not path or path != "".join(str(path).split()):
            raise UserError(f"the path of domain {name!r}, {path!r}, is empty or has blanks in it")
        pairs += [repr(weight), str(path)]
    return pairs


def _from_pairs(pairs: Sequence[Any]) -> tuple[dict[str, float], dict[str, str]]:
    if not isinstance(pairs, list) or not pairs or len(pairs) % 2:
        raise UserError("weights and prefixes do not come in pairs")
    return _by_path(pairs[1::2], [float(weight) for weight in pairs[::2]])


def _by_path(
    paths: Sequence[str], weights: Sequence[float]
) -> tuple[dict[str, float], dict[str, str]]:
    """Named by as much of the end of each path as tells it from the others."""
    if not (isinstance(paths, list) and paths and all(isinstance(p, str) and p for p in paths)):
        raise UserError("the prefixes are not a list of paths")
    if len({os.path.normpath(path) for path in paths}) < len(paths):
        raise UserError("a prefix is given twice")
    for depth in range(1, 1 + max(len(PurePath(path).parts) for path in paths)):
        names = ["/".join(PurePath(path).parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return _named(names, weights), _named(names, paths)


def _write_megatron(mixture: Mixture) -> str:
    pairs = _pairs(mixture)
    lines = (f"{weight} {path}" for weight, path in zip(pairs[::2], pairs[1::2], strict=True))
    return "\n".join(lines) + "\n"


def _write_per_split(mixture: Mixture) -> str:
    splits = {"train": _pairs(mixture), "valid": None, "test": None}
    return json.dumps(splits, indent=2) + "\n"


def _read_per_split(text: str) -> tuple[dict[str, float], dict[str, str]]:
    train = json.loads(text)["train"]
    return _from_pairs(train.split() if isinstance(train, str) else train)


def _write_nemo(mixture: Mixture) -> str:
    return _yaml({"paths": _pairs(mixture)}, "nemo")


def _write_bridge(mixture: Mixture) -> str:
    pairs = _pairs(mixture)
    return _yaml(
        {"dataset": {"blend": [pairs[1::2], [float(weight) for weight in pairs[::2]]]}}, "bridge"
    )


def _read_bridge(text: str) -> tuple[dict[str, float], dict[str, str]]:
    paths, weights = yaml.safe_load(text)["dataset"]["blend"]
    return _by_path(paths, [float(weight) for weight in weights])


def _write_hf(mixture: Mixture) -> str:
    lengths = {
        name: _fact(mixture, name, "tokens") / _fact(mixture, name, "documents")
        for name in mixture.weights
    }
    # A document is drawn at once, however long it is.
    documents = Mixture.static(
        {name: weight / lengths[name] for name, weight in mixture.weights.items()}
    )
    body = {
        "names": list(mixture.weights),
        "probabilities": list(documents.weights.values()),
        "tokens_per_document": list(lengths.values()),
    }
    return json.dumps(body, indent=2, ensure_ascii=False) + "\n"


def _read_hf(text: str) -> tuple[dict[str, float], dict[str, str]]:
    body = json.loads(text)
    columns = zip(body["probabilities"], body["tokens_per_document"], strict=True)
    return _named(body["names"], [float(p) * float(length) for p, length in columns]), {}


_COLUMNS = ("domain", "weight", "path", "tokens", "documents", "score", "low", "high")


def _write_csv(mixture: Mixture) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for name, weight in mixture.weights.items():
        facts = mixture.domains.get(name, {})
        ends = mixture.uncertainty.get(name, ["", ""])
        known = [facts.get(key, "") for key in ("path", "tokens", "documents", "score")]
        writer.writerow([name, repr(weight), *known, *ends])
    return out.getvalue()


def _read_csv(text: str) -> tuple[dict[str, float], dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(text)))
    names = [row["domain"] for row in rows]
    weights = _named(names, [float(row["weight"]) for row in rows])
    return weights, _named(names, [row.get("path") or "" for row in rows])


def _named(names: Sequence[Any], values: Sequence[T]) -> dict[str, T]:
    for name in names:
        if not (isinstance(name, str) and name):
            raise UserError(f"a domain's name is {name!r}")
        if names.count(name) > 1:
            raise UserError(f"domain {name!r} is given twice")
    return dict(zip(names, values, strict=True))


FORMATS: Mapping[str, MixtureFormat] = {
    "megatron": MixtureFormat(
        "weight and prefix of each domain, for Megatron-LM's --data-args-path: a weight is the "
        "share of training samples, each of --seq-length tokens. Validation is blended by it too.",
        _write_megatron,
        lambda text: _from_pairs(text.split()),
    ),
    "megatron-per-split": MixtureFormat(
        "weights and prefixes of the training split, for Megatron-LM's "
        "--per-split-data-args-path: a weight is the share of training samples. Here a split is "
        "whole datasets, no share of their documents: name those of valid and test yourself, and "
        "train on files that do not hold them.",
        _write_per_split,
        _read_per_split,
    ),
    "nemo": MixtureFormat(
        "weights and prefixes for NeMo 2's PreTrainingDataModule(paths=...) and, as data_prefix, "
        "NeMo 1: a weight is the share of training samples. Validation is blended by it too.",
        _write_nemo,
        lambda text: _from_pairs(yaml.safe_load(text)["paths"]),
    ),
    "bridge": MixtureFormat(
        "prefixes, then weights, for Megatron-Bridge's dataset.blend: a weight is the share of "
        "training samples. Validation is blended by it too.",
        _write_bridge,
        _read_bridge,
    ),
    "hf": MixtureFormat(
        "names and probabilities for datasets.interleave_datasets: a probability is that of "
        "drawing a document next. Documents differ in length, so it is the weight over the mean "
        "tokens of the domain's documents; trained on whole, they give the mixture's shares of "
        "tokens. Take stopping_strategy='all_exhausted', or the shares end with the smallest "
        "domain.",
        _write_hf,
        _read_hf,
    ),
    "csv": MixtureFormat(
        "a row a domain: weight, the share of training samples and of their tokens; path; tokens "
        "and documents that there are to train on; leverage score; ends of the weight's 95 % "
        "interval. Epochs of a run are its tokens x weight / tokens.",
        _write_csv,
        _read_csv,
    ),
}
"""By name, what `export_mixture` and `import_mixture` know."""


def _fact(mixture: Mixture, name: str, key: str) -> Any:
    value = mixture.domains.get(name, {}).get(key)
    if not value:
        raise UserError(f"the mixture does not know the {key} of domain {name!r}")
    return value


def _yaml(body: dict[str, Any], form: str) -> str:
    meaning = textwrap.wrap(FORMATS[form].meaning, 97, initial_indent="# ", subsequent_indent="# ")
    return "\n".join([*meaning, yaml.safe_dump(body, sort_keys=False, allow_unicode=True)])
