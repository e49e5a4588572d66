"""Dotted keys: how they are typed on a command line, and how errors print them.

Under `data.domains` and `data.validation` the last part of a key is the setting and all before it
is the name; where the value is a mapping in braces, and under `data.pin` and `data.floor`, all of
it is the name. A name in quotes is always taken as it is; double quotes are those of JSON.
"""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import fields

from nemo_chameleon.config.data import DatasetConfig, DomainConfig
from nemo_chameleon.utils.errors import UserError

BY_NAME: dict[str, type | None] = {
    "domains": DomainConfig,
    "validation": DatasetConfig,
    "pin": None,
    "floor": None,
}
"""The keys of `data` whose entries have names that the user chooses, with the type of an entry."""

_NAMED = re.compile(rf"data\.({'|'.join(BY_NAME)})(?=[.\[])")
_QUOTED = re.compile(r'\.("(?:[^"\\]|\\.)*"|\'[^\']*\')(?:\.([^.=]+))?=', re.DOTALL)
_BRACKETS = re.compile(r"\[([^\]=]+)\](?:\.([^.=]+))?=")


def split_override(text: str) -> tuple[tuple[str, ...], str]:
    """Split `key=value` into the parts of the key, and the value.

    Args:
        text: as it was typed.

    Returns:
        The parts, of which a name that the user chose is one; and the text of the value.

    Raises:
        UserError: it is not of this form.
    """
    if named := _NAMED.match(text):
        section, rest = named[1], text[named.end() :]
        apart = _QUOTED.match(rest) or _BRACKETS.match(rest)
        if apart:
            name = _unquoted(apart[1], text) if rest.startswith(".") else apart[1].strip("\"'")
            setting = () if apart[2] is None else (apart[2],)
            return ("data", section, name, *setting), rest[apart.end() :]
    key, equals, value = text.partition("=")
    if hint := _habit(key, text):
        raise UserError(f"{text!r} is not a key=value override: {hint}")
    if not equals or not key:
        hint = ": name a configuration as in --config FILE" if "/" in text else ""
        raise UserError(f"{text!r} is not a key=value override{hint}")
    parts = tuple(key.split("."))
    if parts[0] == "data" and len(parts) > 3 and parts[1] in BY_NAME:
        entry = BY_NAME[parts[1]] is None or value.lstrip().startswith("{")
        name_ends = len(parts) if entry else len(parts) - 1
        parts = (*parts[:2], ".".join(parts[2:name_ends]), *parts[name_ends:])
    if "" in parts:
        raise UserError(f"{text!r} is not a key=value override: a part of the key is empty")
    return parts, value


def _habit(key: str, text: str) -> str | None:
    """Say how a setting is written that is typed as other programs take it."""
    if key.startswith("-"):
        return f"write {shlex.quote(text.lstrip('-') if '=' in text else 'KEY=VALUE')}, without -"
    if key.startswith("+"):
        return f"write {shlex.quote(text.lstrip('+'))}, because every key exists already"
    if key.startswith("~"):
        return "a key cannot be removed: write the value that it should have"
    if key != key.strip():
        return f"write {shlex.quote('='.join(map(str.strip, text.split('=', 1))))}, without blanks"
    return None


def split_arguments(config: str | None, given: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """Tell the file of a configuration from settings, if it stands among them without --config.

    Args:
        config: the file that was given with --config; None if there was none.
        given: the arguments that are not options; a file among them ends in .yaml or .yml.

    Returns:
        The file, or None; and the settings.

    Raises:
        UserError: there are several files.
    """
    files = [text for text in given if text.endswith((".yaml", ".yml")) and "=" not in text]
    if not files:
        return config, given
    if several := [config, *files] if config else files[1:] and files:
        raise UserError(f"a configuration is one file, not {' and '.join(several)}: name one")
    return files[0], [text for text in given if text not in files]


def unknown_options(unknown: Sequence[str]) -> str:
    """Say that options are not known.

    Args:
        unknown: the options, as they were typed.

    Returns:
        The error.
    """
    text = f"unrecognized arguments: {' '.join(unknown)}"
    first = unknown[0].lstrip("-")
    if first.startswith("config"):
        return f"{text}: name the file as in --config FILE"
    if "." in first.partition("=")[0]:
        example = first if "=" in first else f"{first}=..."
        return f"{text}: a setting is written without --, as in {shlex.quote(example)}"
    return text


def _unquoted(quoted: str, text: str) -> str:
    if quoted.startswith("'"):
        return quoted[1:-1]
    try:
        return str(json.loads(quoted))
    except ValueError as error:
        raise UserError(f"{text!r}: {quoted} is not a text in double quotes") from error


def dotted(parts: tuple[str, ...]) -> str:
    """Write a key so that `split_override` reads it back.

    Args:
        parts: of the key; a name that the user chose is one of them.

    Returns:
        The key; a name that would be read otherwise is in double quotes.
    """
    plain = ".".join(parts)
    try:
        as_is = split_override(f"{plain}=")[0] == parts
    except UserError:
        as_is = False
    if as_is and plain.isprintable():
        return plain
    return ".".join(
        json.dumps(part, ensure_ascii=False) if i == 2 or not part.isprintable() else part
        for i, part in enumerate(parts)
    )


def typed(parts: tuple[str, ...], value: str = "...") -> str:
    """Write a setting as it can be typed into a shell.

    Args:
        parts: of the key.
        value: what comes after the equals sign.

    Returns:
        `key=value`, in quotes if the shell needs them.
    """
    return shlex.quote(f"{dotted(parts)}={value}")


def named_keys(section: str) -> list[str]:
    """Return the settings of an entry under `data`, such as path.

    Args:
        section: domains, validation, pin or floor.

    Returns:
        Their names; none if the entry is a value itself.
    """
    entry = BY_NAME[section]
    return [] if entry is None else [item.name for item in fields(entry)]
