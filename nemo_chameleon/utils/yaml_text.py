"""What all readers of YAML share: a reader that keeps text, and where a text is wrong."""

import re
from typing import Any

import yaml

from nemo_chameleon.utils.errors import UserError

# The classes in C are not in every build of the library.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SafeDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

TAG = "tag:yaml.org,2002:"
_MOST_REPEATED = 1_000_000  # aliases of aliases stand for more values than any machine can hold


class _Loader(_SafeLoader):
    """Reads numbers such as 1e3 and 1.5e3, which YAML 1.1 takes for text."""


_Loader.add_implicit_resolver(
    f"{TAG}float",
    re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


class YamlReader:
    """Makes dicts, lists, texts and None of a YAML document, with text as keys.

    Unquoted words such as no, 2019_30 and 1:30 stay the text that was written. Tags change nothing.
    A subclass can want other values at a place, which is whatever it takes for one.
    """

    def __init__(self, text: str) -> None:
        self._loader = _Loader(text)
        self._open: set[int] = set()
        self._seen: set[int] = set()
        self._repeated = 0

    def document(self, place: Any = None) -> Any:
        """Read the document.

        Args:
            place: where it belongs.

        Returns:
            What it holds; an empty document holds null.

        Raises:
            UserError: a key is no text or stands twice, or aliases stand for too much; the error
                names the line.
            yaml.YAMLError: it is not YAML.
        """
        try:
            node = self._loader.get_single_node()
            return self._value(node or yaml.ScalarNode(f"{TAG}null", ""), place)
        finally:
            self._loader.dispose()

    def scalar(self, node: yaml.ScalarNode, place: Any) -> Any:
        """Make the value of a node that is neither a list nor a mapping.

        Args:
            node: the node.
            place: where it belongs.

        Returns:
            Its text, or None for null.
        """
        del place
        return None if is_null(node) else node.value

    def require_kind(self, node: yaml.CollectionNode, place: Any) -> None:
        """Check that a list or a mapping may be at a place.

        Args:
            node: the list or mapping.
            place: where it belongs.
        """

    def inside(self, place: Any, name: str | None) -> Any:
        """Return the place of a mapping's entry or of a list's item.

        Args:
            place: that of the mapping or list.
            name: of the entry; None for an item.

        Returns:
            The place inside it.
        """
        del name
        return place

    def _value(self, node: Any, place: Any) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, place)
        assert isinstance(node, yaml.CollectionNode)  # no other nodes exist
        self.require_kind(node, place)
        self._enter(node)
        if isinstance(node, yaml.SequenceNode):
            value: Any = [self._value(item, self.inside(place, None)) for item in node.value]
        else:
            assert isinstance(node, yaml.MappingNode)
            value = {
                name: self._value(item, self.inside(place, name))
                for name, item in self._entries(node).items()
            }
        self._open.discard(id(node))
        return value

    def _entries(self, node: yaml.MappingNode) -> dict[str, yaml.Node]:
        """Return the entries of a mapping; its own replace those that are merged into it."""
        merged: dict[str, yaml.Node] = {}
        own: dict[str, yaml.Node] = {}
        for name, value in node.value:
            line = name.start_mark.line + 1
            if not isinstance(name, yaml.ScalarNode):
                raise UserError(f"line {line}: a key must be text, not {kind_of(name)}")
            if name.tag == f"{TAG}merge":
                # The first of several mappings counts.
                for part in reversed(
                    value.value if isinstance(value, yaml.SequenceNode) else [value]
                ):
                    if not isinstance(part, yaml.MappingNode):
                        raise UserError(f"line {line}: only mappings can be merged with '<<'")
                    self._enter(part)
                    merged |= self._entries(part)
                    self._open.discard(id(part))
            elif name.value in own:
                raise UserError(f"line {line}: duplicate key {name.value!r}")
            else:
                own[name.value] = value
        return merged | own

    def _enter(self, node: yaml.CollectionNode) -> None:
        """Refuse a node that contains itself, and aliases that stand for too much."""
        if id(node) in self._open:
            raise UserError(f"line {node.start_mark.line + 1}: an anchor contains itself")
        self._open.add(id(node))
        if id(node) in self._seen:
            self._repeated += 1 + len(node.value)
        self._seen.add(id(node))
        if self._repeated > _MOST_REPEATED:
            raise UserError(
                f"line {node.start_mark.line + 1}: aliases stand for more than "
                f"{_MOST_REPEATED:,} values: write out what is needed of them"
            )


def is_null(node: yaml.ScalarNode) -> bool:
    """Return whether a node is null: unquoted, and null, ~ or nothing.

    Args:
        node: the node.

    Returns:
        Whether it stands for nothing.
    """
    return not node.style and node.tag == f"{TAG}null"


def kind_of(node: yaml.CollectionNode) -> str:
    """Say whether a node is a list or a mapping.

    Args:
        node: the node.

    Returns:
        The words for an error.
    """
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def not_yaml(error: yaml.YAMLError) -> str:
    """Say where a text is not YAML.

    Args:
        error: what the loader raised.

    Returns:
        The end of an error, which begins with "it is not YAML".
    """
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return "it is not YAML: it has characters that YAML does not allow"
    if isinstance(error, yaml.composer.ComposerError) and "single document" in str(error):
        return (
            f"it has several documents, of which the second begins at line {mark.line + 1}, and "
            "one is read: write each to a file of its own, without the line ---"
        )
    where = f"it is not YAML at line {mark.line + 1}, column {mark.column + 1}"
    if re.search("tab character|cannot start any token|an? (alias|anchor|tag)|d alias", str(error)):
        return (
            f"{where}: write blanks in place of tabs, and quotes around text that begins with *, "
            "&, !, %, @ or `, as in path: '*/part-*'"
        )
    return f"{where}: correct it there"
