"""Mixtures in the file formats of other tools: export and import.

A weight of a mixture is a domain's share of the training samples and, because all samples have the
same length, of the tokens. The numbers of other tools may mean something else; each format says
what its numbers mean.
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
    """A file format for mixtures.

    Attributes:
        meaning: what its numbers mean, and which tool or option takes the file.
        write: makes the text of a mixture.
        read: reads weights by domain name, and paths by domain name, from a text.
    """

    meaning: str
    write: Callable[[Mixture], str]
    read: Callable[[str], tuple[dict[str, float], dict[str, str]]]


def export_mixture(mixture: Mixture, form: str) -> str:
    """Write a mixture as text in the format of another tool.

    Args:
        mixture: the mixture.
        form: one of `FORMATS`.

    Returns:
        The text of the file.

    Raises:
        UserError: the mixture lacks facts about the domains that the format needs.
    """
    return FORMATS[form].write(mixture)


def import_mixture(text: str, form: str, source: str = "text") -> Mixture:
    """Read a mixture from text in the format of another tool.

    If the format has no names of domains, a domain is named by the end of its path.

    Args:
        text: of the file.
        form: one of `FORMATS`.
        source: the name of the text in errors.

    Returns:
        The mixture, named "static".

    Raises:
        UserError: the text does not have this format, or its weights are not positive and finite.
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
        raise UserError(f"{source} does not have the format {form}: {error!r}") from error


def _pairs(mixture: Mixture) -> list[str]:
    """Return weight, prefix, weight, prefix, ... as Megatron's command line takes them."""
    pairs = []
    for name, weight in mixture.weights.items():
        path = _fact(mixture, name, "path")
        if not path or path != "".join(str(path).split()):
            raise UserError(
                f"the path of domain {name!r}, {path!r}, must not have blanks: rename the files"
            )
        pairs += [repr(weight), str(path)]
    return pairs


def _from_pairs(pairs: Sequence[Any]) -> tuple[dict[str, float], dict[str, str]]:
    if not isinstance(pairs, list) or not pairs or len(pairs) % 2:
        raise UserError("weights and prefixes must come in pairs")
    return _by_path(pairs[1::2], [float(weight) for weight in pairs[::2]])


def _by_path(
    paths: Sequence[str], weights: Sequence[float]
) -> tuple[dict[str, float], dict[str, str]]:
    """Name each domain by as much of the end of its path as distinguishes it from the others."""
    if not (isinstance(paths, list) and paths and all(isinstance(p, str) and p for p in paths)):
        raise UserError("the prefixes must be a list of paths")
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
    seen = set()
    for name in names:
        if not (isinstance(name, str) and name):
            raise UserError(f"a domain must have a name, not {name!r}")
        if name in seen:
            raise UserError(f"duplicate domain {name!r}")
        seen.add(name)
    return dict(zip(names, values, strict=True))


FORMATS: Mapping[str, MixtureFormat] = {
    "megatron": MixtureFormat(
        "weight and prefix of each domain, for Megatron-LM's --data-args-path. A weight is the "
        "share of training samples, each of --seq-length tokens. The weights apply to validation "
        "too.",
        _write_megatron,
        lambda text: _from_pairs(text.split()),
    ),
    "megatron-per-split": MixtureFormat(
        "weights and prefixes of the training split, for Megatron-LM's "
        "--per-split-data-args-path. A weight is the share of training samples. In this format a "
        "split consists of whole datasets, not of shares of their documents: add the datasets of "
        "valid and test yourself, and train on files that do not contain them.",
        _write_per_split,
        _read_per_split,
    ),
    "nemo": MixtureFormat(
        "weights and prefixes for NeMo 2's PreTrainingDataModule(paths=...) and, as data_prefix, "
        "for NeMo 1. A weight is the share of training samples. The weights apply to validation "
        "too.",
        _write_nemo,
        lambda text: _from_pairs(yaml.safe_load(text)["paths"]),
    ),
    "bridge": MixtureFormat(
        "prefixes, then weights, for Megatron-Bridge's dataset.blend. A weight is the share of "
        "training samples. The weights apply to validation too.",
        _write_bridge,
        _read_bridge,
    ),
    "hf": MixtureFormat(
        "names and probabilities for datasets.interleave_datasets. A probability is that of "
        "drawing a document next. Documents differ in length, so the probability is in proportion "
        "to the weight divided by the mean number of tokens per document of the domain. Training "
        "on whole documents then gives the mixture's shares of tokens. Use "
        "stopping_strategy='all_exhausted'; otherwise the shares hold only until the smallest "
        "domain is used up.",
        _write_hf,
        _read_hf,
    ),
    "csv": MixtureFormat(
        "one row per domain: weight, the share of training samples and of their tokens; path; "
        "number of tokens and of documents to train on; leverage score; low and high, the ends of "
        "the weight's 95 % interval. A run's epochs of a domain are the run's tokens x weight / "
        "tokens.",
        _write_csv,
        _read_csv,
    ),
}
"""The formats of `export_mixture` and `import_mixture`, by name."""


def _fact(mixture: Mixture, name: str, key: str) -> Any:
    value = mixture.domains.get(name, {}).get(key)
    if not value:
        raise UserError(f"the mixture has no {key!r} for domain {name!r}")
    return value


def _yaml(body: dict[str, Any], form: str) -> str:
    meaning = textwrap.wrap(FORMATS[form].meaning, 97, initial_indent="# ", subsequent_indent="# ")
    return "\n".join([*meaning, yaml.safe_dump(body, sort_keys=False, allow_unicode=True)])
