"""Objects of JSON without a key that stands twice."""

from typing import Any


def distinct_keys(error: type[ValueError], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary of a JSON object, as `object_pairs_hook` of `json` if `error` is bound.

    Args:
        error: the exception to raise.
        pairs: the keys and values of the object.

    Returns:
        The dictionary.

    Raises:
        ValueError: `error`, if a key stands twice, so that one of its values would be lost.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise error(f"duplicate key {twice!r}")
    return found
