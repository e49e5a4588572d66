"""Keys and values that may decide what is trained on, and so are never left out without a word."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_TRAINING = frozenset(
    "weight weights label labels loss losses train training trainable trained".split()
)
_LEAVING_OUT = frozenset("mask masks masked ignore ignored skip skipped exclude excluded".split())
# Objects of metadata in which people keep settings of their own.
_OBJECTS = frozenset(
    "metadata meta meta_data metainfo info extra extras extra_info additional_info misc".split()
)
_YES_AND_NO = frozenset("true false yes no".split())


def words_of(key: str) -> list[str]:
    """Divide a key into its words.

    Args:
        key: for instance lossMask or loss_mask.

    Returns:
        The words in lower case.
    """
    return [word.lower() for word in _WORD.findall(key)]


def decides_loss(key: str) -> bool:
    """Return whether a key has a word that decides the loss.

    Args:
        key: the key of a line or of a message.

    Returns:
        Whether it has.
    """
    return not (_TRAINING | _LEAVING_OUT).isdisjoint(words_of(key))


def leaves_nothing_out(key: str, value: Any) -> bool:
    """Return whether a key that begins with skip, mask and so on is switched off.

    Args:
        key: the key of a line or of a message.
        value: its value.

    Returns:
        Whether it is. A mask of 0 is not: it may be the mask of the loss.
    """
    first, *others = words_of(key) or [""]
    if first not in _LEAVING_OUT:
        return False
    of_loss = first in ("mask", "masks") and not others
    return value is False or (_is_number(value, 0) and not of_loss)


def is_flag(value: Any) -> bool:
    """Return whether a value says yes or no, and so may say whether to train.

    Args:
        value: the value of a key that is not understood.

    Returns:
        Whether it is true, false, 0, 1, one of the words for these, or a list of such values.
    """
    if isinstance(value, list):
        return bool(value) and all(map(is_flag, value))
    if isinstance(value, str):
        return value.strip().lower() in _YES_AND_NO
    return isinstance(value, bool) or _is_number(value, 0) or _is_number(value, 1)


def deciding_metadata(said: Mapping[str, Any]) -> list[str]:
    """Return the keys within objects of metadata that leave something out of the loss.

    Args:
        said: the keys of a line or of a message with their values.

    Returns:
        The keys, each after a dot, for instance metadata.train, unless they say to train.
    """
    return [
        name
        for key, value in said.items()
        if key.lower() in _OBJECTS
        for name in _deciding(key, _object(value))
    ]


def _deciding(path: str, value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from _deciding(path, each)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if inner is not None and decides_loss(key) and not _says_to_train(key, inner):
                yield f"{path}.{key}"
            elif isinstance(inner, dict | list):
                yield from _deciding(f"{path}.{key}", inner)


def _says_to_train(key: str, value: Any) -> bool:
    if leaves_nothing_out(key, value):
        return True
    return _LEAVING_OUT.isdisjoint(words_of(key)) and (value is True or _is_number(value, 1))


def _object(value: Any) -> Any:
    """Decode the JSON text of an object."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _is_number(value: Any, number: int) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == number
