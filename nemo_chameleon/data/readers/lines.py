"""A line: the bytes of one JSON object, with the file and the number that it was read from.

Every format becomes lines, so that all that follows is the same for all formats.
"""

import functools
import json
from typing import Any, NamedTuple

from nemo_chameleon.utils import json_objects
from nemo_chameleon.utils.errors import UserError

_SHOWN = 8  # keys that a message lists


class MalformedError(ValueError):
    """Raised for a line that cannot be used; the message says why."""


class UnusableLineError(UserError):
    """Raised for a line that ends the reading of its file; the message names its place."""


class Line(NamedTuple):
    """One line that is not blank, or one record of a file that has no lines.

    Attributes:
        file: position of its file among the files that are read, from 0.
        number: number of the line or of the record in its file, from 1.
        text: the bytes of one JSON object.
    """

    file: int
    number: int
    text: bytes


distinct_keys = functools.partial(json_objects.distinct_keys, MalformedError)
"""Makes a dictionary of a JSON object, as `object_pairs_hook` of `json`."""

_DISTINCT = json.JSONDecoder(object_pairs_hook=distinct_keys)


def parse_object(line: bytes, distinct: bool = False) -> dict[str, Any]:
    """Parse a line as a JSON object.

    Args:
        line: the bytes of the line.
        distinct: whether a key that stands twice in an object is refused; else its last value
            counts.

    Returns:
        The object.

    Raises:
        MalformedError: the line is not UTF-8, not JSON, not an object, or has a duplicate key.
    """
    try:
        text = line.decode()
        value = _DISTINCT.decode(text) if distinct else json.loads(text)
    except MalformedError:
        raise
    except UnicodeDecodeError as error:
        raise MalformedError("not valid UTF-8") from error
    except RecursionError as error:
        raise MalformedError("not JSON that can be read: nested too deep") from error
    except ValueError as error:
        raise MalformedError("not JSON") from error
    if not isinstance(value, dict):
        raise MalformedError("not a JSON object")
    return value


def require_text(value: Any, what: str) -> str:
    """Check that a value is text that UTF-8 can encode.

    Args:
        value: the value.
        what: what the value is; the error begins with it.

    Returns:
        The same value.

    Raises:
        MalformedError: the value is not text, or it has a lone surrogate, which JSON allows.
    """
    if not isinstance(value, str):
        raise MalformedError(f"{what} is not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise MalformedError(f"{what} is not valid Unicode") from error
    return value


def text_at(line: bytes, key: str) -> str:
    """Return the text that a line has under a key.

    Args:
        line: the bytes of one JSON object.
        key: the key. Where the object has no such key, dots lead into inner objects: `meta.text` is
            the key `text` of the object under `meta`.

    Returns:
        The text.

    Raises:
        MalformedError: the line is no JSON object, has no such key, or has no text there.
    """
    whole: Any = parse_object(line)
    value = whole
    for part in [key] if key in whole else key.split("."):
        if not isinstance(value, dict) or part not in value:
            keys = ", ".join(repr(name) for name in list(whole)[:_SHOWN]) or "none"
            raise MalformedError(
                f"the JSON object has no key {key!r}; its keys are {keys}: name the document's key "
                "with --key"
            )
        value = value[part]
    if value is None:
        raise MalformedError(f"{key!r} is null: leave such lines out of the file")
    return require_text(value, repr(key))
