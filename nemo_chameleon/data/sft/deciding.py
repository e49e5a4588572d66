"""Values that may decide what is trained on, and so are never left out without a word."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from nemo_chameleon.data.sft.meanings import Meaning, decides_loss, meaning_of, words_of


def leaves_nothing_out(key: str, value: Any) -> bool:
    """Return whether a key that begins with skip, mask and so on is switched off.

    Args:
        key: the key of a line or of a message.
        value: its value.

    Returns:
        Whether it is. A mask of 0 is not: it may be the mask of the loss.
    """
    first, *others = words_of(key) or [""]
    if meaning_of(first) is not Meaning.LEAVING_OUT:
        return False
    of_loss = first in ("mask", "masks") and not others
    return value is False or (_is_number(value, 0) and not of_loss)


def deciding_metadata(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys within metadata that leave something out of the loss.

    Settings of a generation are not among them: they decided about another text.

    Args:
        said: the keys of a line or of a message with their values.

    Returns:
        The keys, each after a dot, for instance metadata.train, with their values, unless these say
        to train.
    """
    return {
        name: inner
        for key, value in said.items()
        if meaning_of(key) in (Meaning.ID, Meaning.METADATA)
        for name, inner in _deciding(key, _object(value))
    }


def _deciding(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        for each in value:
            yield from _deciding(path, each)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if inner is not None and decides_loss(key, inner) and not _says_to_train(key, inner):
                yield f"{path}.{key}", inner
            elif isinstance(inner, dict | list):
                yield from _deciding(f"{path}.{key}", inner)


def _says_to_train(key: str, value: Any) -> bool:
    if leaves_nothing_out(key, value):
        return True
    leaving = any(meaning_of(word) is Meaning.LEAVING_OUT for word in words_of(key))
    return not leaving and (value is True or _is_number(value, 1))


def _object(value: Any) -> Any:
    """Decode the JSON text of an object or of a list."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _is_number(value: Any, number: int) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == number
