"""Values of a configuration, read from YAML as the schema wants them.

YAML takes unquoted words such as no, null, 2024_05_01 and 1:30 for other things than text. Here a
name, and a value that the schema wants as text, keep the text that was written. A number that YAML
and people read differently is refused, and so is every value of another type than the schema's.
"""

import json
import re
import types
import typing
from dataclasses import fields, is_dataclass
from decimal import Decimal
from typing import Any, NamedTuple, NoReturn

import yaml

from nemo_chameleon.config.keys import dotted, named_keys, typed
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.yaml_text import TAG, YamlReader, is_null, kind_of

_MISREAD = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9_]+(:[0-9_.]+)+")
_WORDS = {"1": True, "0": False, "y": True, "n": False}  # in addition to YAML's own


_THOUSANDS = re.compile(r"[-+]?\d{1,3}([, _']\d{3})+")
_WITH_UNIT = re.compile(r"([-+]?\d+(?:\.\d+)?)\s*([kKmMbBgG%])(i?)[bB]?")
_UNITS = {"k": 3, "m": 6, "b": 9, "g": 9, "%": -2}


def _meant(text: str, whole: bool) -> str | None:
    """Return the number that people read in a text such as 10k, 4Ki, 30% and 1,000."""
    if _THOUSANDS.fullmatch(text):
        return re.sub(r"\D", "", text) if text[0] != "-" else None
    if not (match := _WITH_UNIT.fullmatch(text)):
        return None
    exponent = _UNITS[match[2].lower()]
    if exponent < 0 and (whole or match[3]):
        return None
    unit = Decimal(2) ** (exponent // 3 * 10) if match[3] else Decimal(10) ** exponent
    number = Decimal(match[1]) * unit
    if number == number.to_integral_value():
        return str(int(number))
    return None if whole else f"{number.normalize():f}"


class _Place(NamedTuple):
    """Where a value belongs: the schema's type, the key, and whether it is an item of a list."""

    wanted: Any
    key: tuple[str, ...]
    item: bool = False


def read_yaml(text: str, wanted: Any, key: tuple[str, ...] = ()) -> Any:
    """Read a YAML document for a place in the schema.

    Args:
        text: of the document.
        wanted: the type that the schema has there, as an annotation.
        key: the parts of the key there.

    Returns:
        Dicts with text as keys, lists and values; None for null or an empty document.

    Raises:
        UserError: a value is not what the schema wants; the error names the key.
        yaml.YAMLError: it is not YAML.
    """
    return _Reader(text).document(_Place(wanted, key))


def read_override(text: str, wanted: Any, key: tuple[str, ...]) -> Any:
    """Read the value of `key=value`; what is not quoted or in brackets keeps its text.

    Args:
        text: of the value.
        wanted: the type that the schema has there, as an annotation.
        key: the parts of the key.

    Returns:
        The value.

    Raises:
        UserError: the value is not what the schema wants; the error names the key.
        yaml.YAMLError: it is not YAML.
    """
    as_typed = wants_text(wanted) and text.strip()[:1] not in ("", '"', "'", "[", "{")
    if as_typed and text.strip() not in ("null", "~"):
        return text
    return read_yaml(text, wanted, key)


def type_at(wanted: Any, key: tuple[str, ...]) -> Any:
    """Find the type that the schema has for a key.

    Args:
        wanted: the type of the whole.
        key: the parts of the key.

    Returns:
        The annotation; None for a key that the schema does not have.
    """
    for part in key:
        wanted = _inside(wanted, part)
    return wanted


def wants_text(wanted: Any) -> bool:
    """Return whether the schema wants text, and not a number or a word.

    Args:
        wanted: an annotation of the schema.

    Returns:
        True for `str`, also if it may be null, and for `Any`.
    """
    return wanted is Any or set(_choices(wanted)) - {type(None)} == {str}


def _choices(wanted: Any) -> tuple[Any, ...]:
    union = typing.get_origin(wanted) in (types.UnionType, typing.Union)
    return typing.get_args(wanted) if union else (wanted,)


def _inside(wanted: Any, part: str) -> Any:
    """Return the type of an entry of a mapping; None if the schema does not have it."""
    if isinstance(wanted, type) and is_dataclass(wanted):
        return typing.get_type_hints(wanted).get(part)
    if typing.get_origin(wanted) is dict:
        return typing.get_args(wanted)[1]
    return Any if wanted is Any else None


def _is_mapping(wanted: Any) -> bool:
    return (isinstance(wanted, type) and is_dataclass(wanted)) or typing.get_origin(wanted) is dict


class _Reader(YamlReader):
    """Makes what the schema wants."""

    def inside(self, place: _Place, name: str | None) -> _Place:
        """Return the place of a mapping's entry or of a list's item."""
        if name is not None:
            return _Place(_inside(place.wanted, name), (*place.key, name))
        own = typing.get_args(place.wanted) if typing.get_origin(place.wanted) is list else ()
        return _Place(own[0] if own else place.wanted, place.key, item=True)

    def require_kind(self, node: yaml.CollectionNode, place: _Place) -> None:
        """Check that the schema wants this list or mapping."""
        kind, wanted = kind_of(node), place.wanted
        allowed = "a mapping" if _is_mapping(wanted) else "a list"
        if wanted is None or wanted is Any:  # an unknown key, or a path, which data.py checks
            return
        if kind != allowed or not (_is_mapping(wanted) or typing.get_origin(wanted) is list):
            items = [item.value for item in node.value] if kind == "a list" else []
            texts = items if wants_text(wanted) and all(isinstance(i, str) for i in items) else []
            _refuse(place, f"not {kind}", ",".join(texts) or None)

    def scalar(self, node: yaml.ScalarNode, place: _Place) -> Any:
        """Make text, a number, true, false or null of a node."""
        text, wanted = str(node.value), place.wanted
        choices = _choices(wanted)
        if is_null(node):
            if wanted is None or not place.key or type(None) in choices:
                return None
            _refuse(place, f"but {text} stands for nothing" if text else "but has no value")
        if wanted is None or wants_text(wanted) or "${" in text:
            return text
        if bool in choices:
            return self._truth(text, place)
        if int in choices or float in choices:
            return self._number(text, place)
        return _refuse(place, f"not {text!r}", text)

    def _resolved(self, text: str) -> tuple[str, yaml.ScalarNode]:
        """Return what YAML takes unquoted text for, and its node."""
        tag = self._loader.resolve(yaml.ScalarNode, text, (True, False))
        return tag.removeprefix(TAG), yaml.ScalarNode(tag, text)

    def _truth(self, text: str, place: _Place) -> bool:
        kind, node = self._resolved(text)
        if kind == "bool":
            return bool(self._loader.construct_object(node))
        if text.lower() not in _WORDS:
            _refuse(place, f"not {text!r}")
        return _WORDS[text.lower()]

    def _number(self, text: str, place: _Place) -> int | float | str:
        kind, node = self._resolved(text.strip())
        choices = _choices(place.wanted)
        if kind in ("int", "float"):
            if _MISREAD.fullmatch(text):
                raise UserError(
                    f"{dotted(place.key)}={text} is another number in YAML than it looks like: "
                    "write it without zeros in front and without colons"
                )
            try:
                value = self._loader.construct_object(node)
                if float in choices:
                    return float(value)
            except (ValueError, OverflowError) as error:
                raise UserError(
                    f"{dotted(place.key)}: a number of {len(text):,} characters is too long"
                ) from error
            if kind == "int":
                return int(value)
        if str in choices:
            return text  # the schema wants an integer or a word
        if kind == "float":
            whole = value.is_integer() and abs(value) < 1e15
            return _refuse(place, f"not {text!r}", str(int(value)) if whole else None)
        meant = _meant(text.strip(), whole=float not in choices)
        either = ""
        if meant and text.strip().lower().endswith("k"):
            either = f", which is {meant} or {_meant(f'{text.strip()}i', whole=True)}"
        return _refuse(place, f"not {text!r}{either}", meant)


def _refuse(place: _Place, given: str, text: str | None = None) -> NoReturn:
    """Say what the schema wants in place of what was given, and how to type it."""
    if not place.key:
        raise UserError(f"the configuration must be a mapping of keys, {given}")
    what, parts, example = _remedy(place, text)
    subject, how = dotted(place.key), "write it as in" if text is None else "write"
    if place.item:
        subject, example = f"an item of {subject}", f"[{example}]"
    raise UserError(f"{subject} must be {what}, {given}: {how} {typed(parts, example)}")


def _remedy(place: _Place, text: str | None) -> tuple[str, tuple[str, ...], str]:
    """Return what the schema wants, in words, and the key and the value to type."""
    wanted, key = place.wanted, place.key
    choices = _choices(wanted)
    if _is_mapping(wanted):
        if key[0] == "data" and len(key) > 1:  # names that the user chooses
            named = key if len(key) == 3 else (*key, "NAME")
            key = (*named, *named_keys(key[1])[:1])
        else:
            key = (*key, fields(wanted)[0].name)
        return "a mapping of keys", key, text or "..."
    if typing.get_origin(wanted) is list:
        (own,) = typing.get_args(wanted)
        texts = ", ".join(json.dumps(one.strip()) for one in (text or "...").split(","))
        return "a list", key, f"[{texts if own is str else text or 10}]"
    for kind, what, example in (
        (bool, "true or false", "true"),
        (int, "a whole number or a word" if str in choices else "a whole number", "10"),
        (float, "a number", "0.1"),
        (str, "text", '"..."'),
    ):
        if kind in choices:
            return what, key, text or example
    return "text, or a list of texts", key, '"..."'
