"""Megatron-LM's blends, as --data-args-path and --per-split-data-args-path take them."""

import json

from nemo_chameleon.mixture.formats.blend import Blend, MixtureFormat, entries_of
from nemo_chameleon.mixture.formats.shapes import read_blend
from nemo_chameleon.mixture.formats.text import parse_json
from nemo_chameleon.mixture.mixture import Mixture
from nemo_chameleon.utils.errors import UserError

UNWEIGHTED = (
    "Without weights Megatron draws from all prefixes in proportion to their sizes, as a run on "
    "the mixture 'proportional' does"
)


def pairs_of(mixture: Mixture) -> list[str]:
    """Return weight, prefix, weight, prefix, ... in one list.

    Args:
        mixture: the mixture.

    Returns:
        The list; weights are texts that read back to the same bits.
    """
    return [text for path, weight in entries_of(mixture) for text in (repr(weight), path)]


def _write(mixture: Mixture) -> str:
    return "".join(f"{weight!r} {path}\n" for path, weight in entries_of(mixture, blanks=False))


def _read(text: str) -> Blend:
    if text.lstrip().startswith("["):
        raise UserError("it is a list in JSON or YAML: use --format nemo")
    if text.lstrip().startswith("{"):
        raise UserError(
            "it is an object in JSON: use a mixture file as it is, and --format megatron-per-split "
            "for a file with splits or --format json for weights by name"
        )
    return read_blend(text.split(), UNWEIGHTED)


def _write_per_split(mixture: Mixture) -> str:
    splits = {"train": pairs_of(mixture), "valid": None, "test": None}
    return json.dumps(splits, indent=2, ensure_ascii=False) + "\n"


def _read_per_split(text: str) -> Blend:
    splits = parse_json(text)
    if not isinstance(splits, dict):
        raise UserError("it must be an object with the keys train, valid and test")
    return read_blend(splits, UNWEIGHTED)


MEGATRON = MixtureFormat(
    "weight and prefix of each domain, for Megatron-LM's --data-args-path. A weight is the "
    "share of training samples, each of --seq-length tokens. The weights apply to validation "
    "too.",
    _write,
    _read,
)
MEGATRON_PER_SPLIT = MixtureFormat(
    "weights and prefixes of the training split, for Megatron-LM's "
    "--per-split-data-args-path. A weight is the share of training samples. In this format a "
    "split consists of whole datasets, not of shares of their documents: add the datasets of "
    "valid and test yourself, and train on files that do not contain them.",
    _write_per_split,
    _read_per_split,
)
