"""A line: the bytes of one JSON object, with the file and the number that it was read from.

Every format becomes lines, so that all that follows is the same for all formats.
"""

import functools
import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from nemo_chameleon.utils import json_objects
from nemo_chameleon.utils.errors import UserError

TOO_LONG = "not JSON that can be read: a number has too many digits; write it in quotes"
"""What is wrong with a number that Python does not read."""
_SHOWN = 8  # keys that a message lists
_LONG = 200  # characters of a text that is a document by itself


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


class _Repeated(dict[str, Any]):
    """An object of which keys stand more than once; it has the last value of each."""

    keys_twice: frozenset[str] = frozenset()


def _with_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated = _Repeated(found)
    names = Counter(name for name, _ in pairs)
    repeated.keys_twice = frozenset(name for name, count in names.items() if count > 1)
    return repeated


_DISTINCT = json.JSONDecoder(object_pairs_hook=distinct_keys)
_ANY = json.JSONDecoder(object_pairs_hook=_with_repeated_keys)


def parse_object(line: bytes, distinct: bool = False) -> dict[str, Any]:
    """Parse a line as a JSON object.

    Args:
        line: the bytes of the line.
        distinct: whether a key that stands twice in an object is refused; else its last value
            counts, and `text_at` refuses it where it leads to the text.

    Returns:
        The object.

    Raises:
        MalformedError: the line is not UTF-8, not JSON, not an object, or has a duplicate key.
    """
    try:
        value = (_DISTINCT if distinct else _ANY).decode(line.decode())
    except MalformedError:
        raise
    except UnicodeDecodeError as error:
        raise MalformedError("not valid UTF-8") from error
    except RecursionError as error:
        raise MalformedError("not JSON that can be read: nested too deep") from error
    except json.JSONDecodeError as error:
        raise MalformedError(f"not JSON{_remedy(error)}") from error
    except ValueError as error:
        raise MalformedError(TOO_LONG) from error
    if not isinstance(value, dict):
        raise MalformedError("not a JSON object")
    return value


def _remedy(error: json.JSONDecodeError) -> str:
    """Say what makes JSON of what follows the first value of a line."""
    if "double quotes" in error.msg and error.doc[error.pos :].startswith("'"):
        return ": names and texts stand in double quotes, as json.dumps of Python writes them"
    if error.msg != "Extra data":
        return ""
    rest = error.doc[error.pos :]
    if rest.rstrip() == ",":
        return ": a comma follows the object; sed 's/,[[:space:]]*$//' FILE > NEW takes such away"
    if "\r" in error.doc[: error.pos].rstrip("\n") and rest.startswith(("{", "[")):
        return (
            ": lines end in \\r alone, as on old Macs; tr '\\r' '\\n' < FILE > NEW writes the ends "
            "of lines that JSONL has"
        )
    if rest.startswith("{"):
        return ": another object follows on the same line; jq -c . FILE > NEW writes one a line"
    return ""


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
    value, seen = whole, list[str]()
    for part in [key] if key in whole else key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise MalformedError(_no_key(whole, key))
        if isinstance(value, _Repeated) and part in value.keys_twice:
            raise MalformedError(
                f"duplicate key {part!r}, so that one of two texts would be lost: rename one of "
                "the two, or leave the line out"
            )
        value = value[part]
        seen.append(part)
    if value is None:
        raise MalformedError(f"{key!r} is null: leave such lines out of the file")
    if isinstance(value, list) and value:
        raise MalformedError(f"{key!r} is a list, not text: {_records_of(seen, value)}")
    return require_text(value, repr(key))


def _no_key(whole: dict[str, Any], key: str) -> str:
    keys = ", ".join(repr(name) for name in list(whole)[:_SHOWN]) or "none"
    said = f"the JSON object has no key {key!r}; its keys are {keys}: "
    lists = [name for name, value in whole.items() if isinstance(value, list) and value]
    records = [name for name in lists if isinstance(whole[name][0], dict)]
    if records and not any(
        isinstance(value, str) and len(value) > _LONG for value in whole.values()
    ):
        return (
            f"{said}if the records are in its list, {_records_of(records[:1], whole[records[0]])}"
        )
    return f"{said}name the document's key with --key"


def _records_of(path: Sequence[str], values: Sequence[Any]) -> str:
    """Return the command that writes the items of a list as lines."""
    place = "".join(
        f".{part}" if re.fullmatch(r"[A-Za-z_]\w*", part, re.ASCII) else f"[{json.dumps(part)}]"
        for part in path
    )
    place = place if place.startswith(".") else f".{place}"
    item = "" if isinstance(values[0], dict) else " | {text: .}"
    return f"{shlex.join(['jq', '-c', f'{place}[]{item}'])} FILE > NEW writes them, one a line"
