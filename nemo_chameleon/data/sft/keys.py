"""The keys of a line and of its messages: those that say nothing to train on, and all others.

A key that is neither understood nor known as metadata is refused by its name, because it may hold
a part of the text.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from nemo_chameleon.data.sft.deciding import deciding_metadata, leaves_nothing_out
from nemo_chameleon.data.sft.meanings import Meaning, is_metadata, meaning_of, words_of
from nemo_chameleon.data.sft.unknown import UnknownKeysError


def present(value: Mapping[str, Any], ignored: Iterable[str]) -> dict[str, Any]:
    """Return the keys that say something: null counts as absent.

    Args:
        value: an object of a line.
        ignored: keys to leave out.

    Returns:
        The other keys with their values.
    """
    ignored = frozenset(ignored)
    return {key: said for key, said in value.items() if said is not None and key not in ignored}


def says_nothing(value: Any) -> bool:
    """Return whether a value is empty: null, an empty text, an empty list or an empty object.

    Args:
        value: the value.

    Returns:
        Whether it is.
    """
    return value is None or value in ("", [], {})


def unknown_keys(said: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    """Return the keys that are neither understood nor metadata, and whose values say something.

    Args:
        said: the keys with their values.
        known: the keys that are understood.

    Returns:
        The keys.
    """
    known = frozenset(known)
    return [
        key
        for key, value in said.items()
        if not (
            key in known
            or is_metadata(key)
            or says_nothing(value)
            or leaves_nothing_out(key, value)
        )
    ]


def require_known(said: Mapping[str, Any], known: Iterable[str], of: str) -> None:
    """Check that every key is understood, is metadata, or has a value that says nothing.

    Args:
        said: the keys with their values.
        known: the keys that are understood.
        of: what has the keys; the error names it.

    Raises:
        UnknownKeysError: a key is not understood, or one within metadata decides the loss.
    """
    unknown = {key: said[key] for key in unknown_keys(said, known)}
    if found := unknown | deciding_metadata(said):
        raise UnknownKeysError(found, of)


def require_metadata(said: Mapping[str, Any], of: str) -> None:
    """Check that no key within metadata decides the loss.

    Args:
        said: the keys with their values.
        of: what has the keys; the error names it.

    Raises:
        UnknownKeysError: one does.
    """
    if found := deciding_metadata(said):
        raise UnknownKeysError(found, of)


def unread_keys(said: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    """Return the metadata that say something; plain ids are not among them.

    Args:
        said: the keys with their values.
        known: the keys that are understood.

    Returns:
        The keys. A key within an object follows a dot, for instance metadata.system, if it has no
        name of metadata itself.
    """
    found = []
    for key, value in said.items():
        if key in known or says_nothing(value) or not is_metadata(key):
            continue
        if meaning_of(key) is Meaning.ID and _is_id(value):
            continue
        inner = unknown_keys(value, ()) if isinstance(value, dict) else []
        found += [f"{key}.{name}" for name in inner] or [key]
    return found


def split_of(said: Mapping[str, Any]) -> str | None:
    """Return the split that a line says it is of.

    Args:
        said: the keys with their values.

    Returns:
        The value of split, data_split and so on, in the line or in an object of it; None if there
        is none.
    """
    inner = [value for value in said.values() if isinstance(value, dict)]
    for each in (said, *inner):
        for key, value in each.items():
            if words_of(key)[-1:] == ["split"] and isinstance(value, str | int):
                return str(value).strip() or None
    return None


def _is_id(value: Any) -> bool:
    """Return whether a value is one word, or a list of such values."""
    values = value if isinstance(value, list) else [value]
    return all(not isinstance(one, dict | list) and len(str(one).split()) < 2 for one in values)
