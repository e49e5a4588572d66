"""The shapes in which tools write datasets with their weights.

They are those of Megatron's options and of the configurations made from them: a flat list of
weights and prefixes in turn, a list of pairs, prefixes beside weights, and a dictionary of any of
these by split.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

from nemo_chameleon.mixture.formats.blend import Blend, as_number, left_out, number, short
from nemo_chameleon.utils.errors import UserError

_OF_A_SHELL = re.compile(r"[\[({]*[\"']")
_SEVERAL = re.compile(r"[0-9.]+([eE][-+]?[0-9]+)?[\s,]")
_LIKE_A_WEIGHT = re.compile(r"[0-9.,]+ ?%|[0-9]+,[0-9]+")
_REFERENCE = re.compile(r"^\$|\$\{.*\}")
# ??? is OmegaConf's value of a key that must be set, which configurations of NeMo ship.
_LEFT_OPEN = re.compile(r"\?+|\.\.\.|<.*>|\{\{.*\}\}|TODO|TBD|FIXME|null|none|~", re.IGNORECASE)
_SUFFIXES = (".bin", ".idx")  # of the two files of one dataset
_TRAINING = ("train", "training")
_OTHERS = ("validation", "valid", "val", "dev", "eval", "test")


def read_blend(value: Any, unweighted: str) -> Blend:
    """Read a blend in any shape.

    Args:
        value: dicts, lists and texts, as a parser gives them.
        unweighted: what the tool does with prefixes that have no weights, as the end of an error.

    Returns:
        The blend; domains are named by the ends of their paths.

    Raises:
        UserError: it is not a blend; the error names the entry.
    """
    value, notes = _training_split(value)
    entries = _entries(value, unweighted)
    weights: dict[str, float] = {}
    first: dict[str, str] = {}
    for path, weight in entries:
        same = _normal(path)
        if path.endswith(_SUFFIXES):
            notes.append(f"{path} is a file of the dataset {same}, which is recorded")
            path = same
        if same in weights:
            notes.append(f"the prefix {path} stands more than once: its weights are added up")
        weights[same] = weights.get(same, 0.0) + weight
        first.setdefault(same, path)
    notes += left_out([first[same] for same, weight in weights.items() if weight == 0])
    kept = [same for same, weight in weights.items() if weight > 0]
    names = _names([first[same] for same in kept])
    return Blend(
        {name: weights[same] for name, same in zip(names, kept, strict=True)},
        {name: {"path": first[same]} for name, same in zip(names, kept, strict=True)},
        list(dict.fromkeys(notes)),
    )


def _training_split(value: Any) -> tuple[Any, list[str]]:
    """Return the training part of a dictionary by split, and a note about the others."""
    if not isinstance(value, dict):
        return value, []
    there = [key for key in _TRAINING if key in value]
    unknown = [key for key in value if key not in (*_TRAINING, *_OTHERS)]
    if len(there) != 1 or unknown:
        raise UserError(
            f"a dictionary must have the splits train, validation and test as its keys, not "
            f"{', '.join(map(str, list(value)[:5])) or 'nothing'}"
        )
    others = [key for key in value if key in _OTHERS and value[key]]
    left = f"only the split {there[0]} is read; left out {', '.join(others)}"
    return value[there[0]], [left] if others else []


def _entries(value: Any, unweighted: str) -> list[tuple[str, float]]:
    """Return each prefix with its weight, in order."""
    if isinstance(value, str):
        value = value.split()
    if not isinstance(value, list) or not value:
        raise UserError(f"there must be a list of weights and prefixes, not {short(value)}")
    if _is_columns(value):
        paths, weights = value
        if weights is None:
            return _without_weights([*enumerate(paths, 1)], unweighted)
        if len(paths) != len(weights):
            raise UserError(f"there are {len(paths)} prefixes, but {len(weights)} weights")
        return [
            (_path(path, i), number(weight, f"entry {i} of the weights"))
            for i, (path, weight) in enumerate(zip(paths, weights, strict=True), 1)
        ]
    if isinstance(value[0], list | dict):
        return [_pair(item, i) for i, item in enumerate(value, 1)]
    return _flat(value, unweighted)


def _is_columns(value: Sequence[Any]) -> bool:
    """Return whether a list is that of the prefixes and that of the weights or null."""
    if len(value) != 2 or not isinstance(value[0], list) or not isinstance(value[1], list | None):
        return False
    paths, weights = value
    # Each of two pairs has a weight, so a first list without one is that of the prefixes.
    numbers = [_like_a_weight(weight) for weight in weights or []]
    if len(paths) == 2 and any(numbers) and not numbers[0]:
        return False
    if weights and all(numbers):
        _require_text(value, paths)
    return not any(map(_like_a_weight, paths))


def _like_a_weight(value: Any) -> bool:
    """Return whether a value is a weight, or was meant as one, such as 30% and 0,3."""
    return as_number(value) is not None or (
        isinstance(value, str) and _LIKE_A_WEIGHT.fullmatch(value.strip()) is not None
    )


def _normal(path: str) -> str:
    """Return the prefix of a dataset, the same for all ways to write it."""
    path = os.path.normpath(path)
    if path.startswith("//"):
        path = path[1:]
    return path[:-4] if path.endswith(_SUFFIXES) else path


def _require_text(value: Any, items: Sequence[Any]) -> None:
    """Refuse numbers alone: any of them may be the name of a dataset, such as a year."""
    if all(as_number(item) is not None for item in items):
        raise UserError(
            f"{short(value)} has numbers alone, so prefixes cannot be told from weights: write the "
            "prefixes with their folders, as in ./2024"
        )


def _pair(item: Any, i: int) -> tuple[str, float]:
    """Read a weight and a prefix in either order, or a dictionary of both."""
    if isinstance(item, dict) and set(item) == {"path", "weight"}:
        return _path(item["path"], i), number(item["weight"], f"entry {i}")
    if not (isinstance(item, list) and len(item) == 2):
        raise UserError(f"entry {i} must be a weight and a prefix, not {short(item)}")
    _require_text(item, item)
    if not any(map(_like_a_weight, item)):
        raise UserError(
            f"entry {i}, {short(item)}, has no weight that is a decimal number: write "
            "[WEIGHT, PREFIX], or all prefixes and all weights as [[PREFIX, ...], [WEIGHT, ...]]"
        )
    weight, path = item if _like_a_weight(item[0]) else item[::-1]
    return _path(path, i), number(weight, f"entry {i}, {short(item)}")


def _flat(value: Sequence[Any], unweighted: str) -> list[tuple[str, float]]:
    """Read weights and prefixes in turn."""
    numbered = list(enumerate(value, 1))
    weighted = [as_number(item) is not None for item in value]
    for i, item in numbered[::2]:
        if _like_a_weight(item):
            number(item, f"entry {i}")
    if not any(weighted):
        return _without_weights(numbered, unweighted)
    for i, item in numbered[::2]:
        if not weighted[i - 1]:
            raise UserError(
                f"entry {i} must be the weight of the prefix after it, not {short(item)}: weights "
                "and prefixes must come in pairs"
            )
    if len(value) % 2:
        raise UserError(
            f"entry {len(value)}, {short(value[-1])}, has no prefix after it: weights and prefixes "
            "must come in pairs"
        )
    _require_text(value, value)
    return [
        (_path(path, i + 1), number(weight, f"entry {i}"))
        for (i, weight), path in zip(numbered[::2], value[1::2], strict=True)
    ]


def _without_weights(
    numbered: Sequence[tuple[int, Any]], unweighted: str
) -> list[tuple[str, float]]:
    paths = [_path(path, i) for i, path in numbered]
    if len(paths) == 1:
        return [(paths[0], 1.0)]
    raise UserError(
        f"the weights are missing: entry 1 is {short(paths[0])}, and a weight must come before "
        f"each prefix. {unweighted}"
    )


def _path(path: Any, i: int) -> str:
    if not (isinstance(path, str) and path.strip()):
        raise UserError(f"entry {i} must be a prefix, which is text, not {short(path)}")
    if _OF_A_SHELL.match(path.strip()):
        raise UserError(
            f"entry {i}, {short(path)}, has quotes that are no part of the prefix: take them away"
        )
    if _SEVERAL.match(path.strip()) or path.strip().endswith(","):
        raise UserError(
            f"entry {i}, {short(path)}, has commas or several values in one text: write each "
            "weight and each prefix as an entry of its own, in a text with blanks between them "
            "and without commas; a folder whose name begins so needs ./ in front"
        )
    if _LEFT_OPEN.fullmatch(path.strip()):
        raise UserError(
            f"entry {i}, {short(path)}, stands for a prefix that is still to be set: write the "
            "prefix itself, or import the configuration that the run has resolved"
        )
    if _REFERENCE.search(path):
        raise UserError(
            f"entry {i}, {short(path)}, refers to a variable, whose value is not in this file: "
            "write the prefix itself"
        )
    return path.strip()


def _names(paths: Sequence[str]) -> list[str]:
    """Name each domain by as much of the end of its path as distinguishes it from the others."""
    parts = [[part for part in os.path.normpath(path).split("/") if part] for path in paths]
    depth, longest = 1, max(map(len, parts), default=1)
    while depth < longest and len({tuple(own[-depth:]) for own in parts}) < len(parts):
        depth += 1
    names = ["/".join(own[-depth:]) or "/" for own in parts]
    # Only a relative and an absolute path can still be alike.
    return list(paths) if len(set(names)) < len(names) else names
