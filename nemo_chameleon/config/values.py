"""Values of a configuration, read from YAML as the schema wants them.

YAML takes unquoted words such as no, null, 2024_05_01 and 1:30 for other things than text. Here a
name, and a value that the schema wants as text, keep the text that was written. A number that YAML
and people read differently is refused.
"""

import re
import types
import typing
from dataclasses import is_dataclass
from typing import Any

import yaml

from nemo_chameleon.config.keys import dotted, named_keys, typed
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.yaml_text import SafeLoader

_MOST_NODES = 10_000_000  # an alias that stands for aliases can expand without end
_TAG = "tag:yaml.org,2002:"
_MISREAD = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9_]+(:[0-9_.]+)+")
_CONTAINERS: dict[type[yaml.Node], str] = {
    yaml.MappingNode: "a mapping",
    yaml.SequenceNode: "a list",
}


class _Loader(SafeLoader):
    """Reads numbers such as 1e-3, which YAML 1.1 takes for text."""


_Loader.add_implicit_resolver(
    f"{_TAG}float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str, wanted: Any, key: tuple[str, ...] = ()) -> Any:
    """Read a YAML document for a place in the schema.

    Args:
        text: of the document.
        wanted: the type that the schema has there, as an annotation.
        key: the parts of the key there.

    Returns:
        Dicts with text as keys, lists and values; None for an empty document.

    Raises:
        UserError: a value is not what the schema wants; the error names the key.
        yaml.YAMLError: it is not YAML.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None and wanted is str:
            raise UserError(f"{dotted(key)} must be text, but has no value: set it")
        return None if node is None else _Reader(loader).read(node, wanted, key)
    finally:
        loader.dispose()


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


class _Reader:
    """Makes values of YAML's nodes."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._above: set[int] = set()
        self._nodes = 0

    def read(self, node: yaml.Node, wanted: Any, key: tuple[str, ...]) -> Any:
        """Read a node for a place in the schema."""
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            raise UserError("its anchors stand for more than 10,000,000 values")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, wanted, key)
        if id(node) in self._above:
            raise UserError(f"line {node.start_mark.line + 1}: an anchor contains itself")
        self._above.add(id(node))
        try:
            self._require_kind(node, wanted, key)
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, wanted, key)
            own = typing.get_args(wanted) if typing.get_origin(wanted) is list else (wanted,)
            return [self.read(item, own[0], key) for item in node.value]
        finally:
            self._above.discard(id(node))

    @staticmethod
    def _require_kind(node: yaml.Node, wanted: Any, key: tuple[str, ...]) -> None:
        kind = _CONTAINERS[type(node)]
        if wants_text(wanted) and wanted is not Any:
            raise UserError(f"{dotted(key)} must be text, not {kind}: put it into quotes")
        mapping = isinstance(wanted, type) and is_dataclass(wanted)
        mapping = mapping or typing.get_origin(wanted) is dict
        if mapping and kind != "a mapping":
            raise UserError(f"{_place(key)} must be a mapping of keys, not {kind}")
        if typing.get_origin(wanted) is list and kind != "a list":
            raise UserError(f"{_place(key)} must be a list, not {kind}")

    def _mapping(self, node: yaml.MappingNode, wanted: Any, key: tuple[str, ...]) -> dict[str, Any]:
        seen: set[str] = set()
        for name, _ in node.value:
            line = name.start_mark.line + 1
            if not isinstance(name, yaml.ScalarNode):
                raise UserError(f"line {line}: a key must be text, not {_CONTAINERS[type(name)]}")
            if name.value in seen and name.tag != f"{_TAG}merge":
                raise UserError(f"line {line}: duplicate key {name.value!r}")
            seen.add(name.value)
        self._loader.flatten_mapping(node)
        return {
            name.value: self.read(value, _inside(wanted, name.value), (*key, name.value))
            for name, value in node.value
        }

    def _scalar(self, node: yaml.ScalarNode, wanted: Any, key: tuple[str, ...]) -> Any:
        text = str(node.value)
        plain = not node.style and node.tag.startswith(_TAG)
        null = plain and node.tag == f"{_TAG}null"
        choices = _choices(wanted)
        if null and wanted is str:
            what = f"{text} stands for nothing" if text else "has no value"
            raise UserError(
                f"{dotted(key)} must be text, but {what}: put it into quotes, or set it"
            )
        if null:
            return None
        if not plain or wants_text(wanted) or "${" in text:
            return text
        if isinstance(wanted, type) and is_dataclass(wanted):
            settings = named_keys(key[1]) if len(key) == 3 and key[0] == "data" else []
            hint = f"; write {typed((*key, settings[0]), text)}" if settings else ""
            raise UserError(
                f"{_place(key)} must be a mapping of keys to values, not {text!r}{hint}"
            )
        if int in choices or float in choices:
            if _MISREAD.fullmatch(text) and node.tag in (f"{_TAG}int", f"{_TAG}float"):
                raise UserError(
                    f"{dotted(key)}={text} is another number in YAML than it looks like: write it "
                    "without zeros in front and without colons"
                )
            return self._number(node, choices, key)
        return self._loader.construct_object(node)

    def _number(self, node: yaml.ScalarNode, choices: tuple[Any, ...], key: tuple[str, ...]) -> Any:
        try:
            value = self._loader.construct_object(node)
            float(value) if float in choices and isinstance(value, int) else None
        except (ValueError, OverflowError) as error:
            raise UserError(
                f"{dotted(key)}: a number of {len(node.value):,} characters is too long"
            ) from error
        if str in choices and not (isinstance(value, int) and not isinstance(value, bool)):
            return node.value  # the schema wants an integer or a word
        return value


def _place(key: tuple[str, ...]) -> str:
    return dotted(key) if key else "the configuration"
