"""The layers of a configuration: the keys that they may have, and how each replaces earlier ones.

A layer is the values of a file or of one setting of the command line, as dicts in dicts.
"""

import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from omegaconf import MISSING

from nemo_chameleon.config.constraints import nearest_keys
from nemo_chameleon.config.keys import BY_NAME, dotted, split_override
from nemo_chameleon.config.schema import Config
from nemo_chameleon.utils.errors import UserError


def replace_values(
    settings: dict[str, Any], layer: Mapping[str, Any], above: tuple[str, ...] = ()
) -> None:
    """Let the values of a layer replace those of the layers before it.

    Args:
        settings: the values of the layers before it, which are changed.
        layer: the layer.
        above: the parts of the key that both stand at.

    Raises:
        UserError: the layer sets keys in a section that stands as a whole for another one.
    """
    for name, value in layer.items():
        before, key = settings.get(name), (*above, name)
        if not isinstance(value, dict):
            if value != MISSING or name not in settings:
                settings[name] = value
            continue
        if isinstance(before, str):  # "${...}" in place of a section
            first = dotted((*key, *list(value)[:1]))
            raise UserError(
                f"{dotted(key)}={before} takes a whole section, so {first} cannot be set in it: "
                f"write the keys of {dotted(key)} one by one in place of {before}"
            )
        replace_values(settings.setdefault(name, {}), value, key)


def refuse_unknown_keys(layer: Mapping[str, Any]) -> None:
    """Check that the schema has every key of a layer.

    Args:
        layer: the layer.

    Raises:
        UserError: a key is not known, or has dots in a file; the error names the key.
    """
    known = _schema_keys()
    for parts in keys_of(layer):
        meant = _nested(parts)
        # The user chooses a domain's name, but not the keys under it.
        own = 2 if meant[:2] == ("data", "stages") else 1  # where the section with names may be
        named = meant[0] == "data" and len(meant) > own + 1 and meant[own] in BY_NAME
        generic = ".".join((*meant[: own + 1], "NAME", *meant[own + 2 :]) if named else meant)
        if generic not in known:
            others = [key for key in known if _of_stage(key) == _of_stage(generic)]
            name = meant[own + 1] if named else "<name>"
            near = nearest_keys(generic, others).replace("NAME", name)
            raise UserError(f"unknown key {'.'.join(parts)}{near}")
        if meant != parts:
            nested = f"{': {'.join(meant)}: ...{'}' * (len(meant) - 1)}"
            raise UserError(
                f"the key {'.'.join(parts)} has dots, which are for the command line: nest it in "
                f"the file, as in {nested}"
            )


def _of_stage(key: str) -> bool:
    """Return whether a key is of an item of data.stages, whose names `data` has too."""
    return key.startswith("data.stages.")


def _nested(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the parts that are meant where a key of a file has dots, as on a command line."""
    named = parts[0] == "data" and len(parts) > 2 and parts[1] in BY_NAME
    if not any("." in part for i, part in enumerate(parts) if not (named and i == 2)):
        return parts
    try:
        return split_override(f"{'.'.join(parts)}=")[0]
    except UserError:  # a part is empty
        return parts


@cache
def _schema_keys() -> tuple[str, ...]:
    return tuple(_known_keys(Config, ""))


def _known_keys(cls: type, prefix: str) -> Iterable[str]:
    for item in fields(cls):
        key = prefix + item.name
        yield key
        if prefix in ("data.", "data.stages.") and item.name in BY_NAME:
            yield key + ".NAME"
            if (settings := BY_NAME[item.name]) is not None:
                yield from _known_keys(settings, key + ".NAME.")
        for section in (
            item.type,
            *typing.get_args(item.type),
        ):  # the items of a list have keys too
            if isinstance(section, type) and is_dataclass(section) and item.name not in BY_NAME:
                yield from _known_keys(section, key + ".")


def keys_of(node: Any, above: tuple[str, ...] = ()) -> Iterable[tuple[str, ...]]:
    """Find the keys of a layer, those of sections among them.

    Args:
        node: the layer, or a value in it.
        above: the parts of the key of the value.

    Yields:
        The parts of each key.
    """
    if isinstance(node, dict):
        for name, value in node.items():
            yield (*above, str(name))
            yield from keys_of(value, (*above, str(name)))
    elif isinstance(node, list):
        for item in node:
            yield from keys_of(item, above)
