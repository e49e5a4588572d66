"""Finds the parts of a domain: a path, a list of paths, or what a glob matches.

A domain may be one dataset or hundreds, as tools write them that work in parallel. Every part is
accounted for: none is there twice, and none that a glob matches lacks one of its files.
"""

import glob
from collections.abc import Sequence
from pathlib import Path

from nemo_chameleon.utils.errors import UserError

ENDINGS = (".bin", ".idx")
"""The endings of the files of a Megatron dataset, whose prefix a configuration names."""
_SHOWN = 3  # paths that a message lists


def find_parts(path: str | Sequence[str], where: str) -> list[str]:
    """Return the prefixes of a domain's parts, which are Megatron datasets.

    A prefix that exists is taken as it is written, so the characters of a glob may occur in it.

    Args:
        path: a prefix, a glob of prefixes, or a list of them; the order of a list counts.
        where: the key of the configuration; errors begin with it.

    Returns:
        The prefixes, at least one; what a glob matches is sorted by name.

    Raises:
        UserError: a glob matches nothing, or a part that it matches lacks a file.
    """
    return [part for one in as_list(path) for part in _matches(one, f"{where}={one}")]


def as_list(path: str | Sequence[str]) -> Sequence[str]:
    """Return the paths of a domain, which a configuration gives alone or in a list.

    Args:
        path: a path, or a list of them.

    Returns:
        The paths.
    """
    return [path] if isinstance(path, str) else path


def require_once(parts: Sequence[tuple[str, str]], where: str) -> None:
    """Check that no part is there twice.

    Args:
        parts: for each part what identifies it, and its path.
        where: the key of the configuration; errors begin with it.

    Raises:
        UserError: two parts are the same; the message names both.
    """
    known: dict[str, str] = {}
    for identity, path in parts:
        if identity in known:
            other = "twice" if known[identity] == path else f"as {known[identity]} too"
            raise UserError(f"{where}: the part {path} is there {other}: remove one of the two")
        known[identity] = path


def shown(path: str | Sequence[str]) -> str:
    """Return the text of a path or of a list of paths for a message.

    Args:
        path: the path, or the paths.

    Returns:
        The path, or the first paths in brackets.
    """
    if isinstance(path, str):
        return path
    more = [f"and {len(path) - _SHOWN:,} more"] if len(path) > _SHOWN else []
    return f"[{', '.join([*path[:_SHOWN], *more])}]"


def _matches(path: str, where: str) -> list[str]:
    if not glob.has_magic(path) or any(Path(path + ending).exists() for ending in ENDINGS):
        return [path]
    found = {ending: _glob(path, ending) for ending in ENDINGS}
    parts = sorted(set().union(*found.values()))
    if not parts:
        without = "; write it without .bin or .idx" if path.endswith(ENDINGS) else ""
        raise UserError(
            f"{where}: the glob matches no dataset, which has a .bin and an .idx{without}"
        )
    lacking = [part + end for part in parts for end in ENDINGS if part not in found[end]]
    if lacking:
        raise UserError(
            f"{where}: the glob matches {len(parts):,} parts, of which {len(lacking):,} lack a "
            f"file: {shown(lacking)}; write these files, or remove the others of these parts"
        )
    return parts


def _glob(path: str, ending: str) -> set[str]:
    # A pathlib glob takes no absolute pattern.
    found = glob.iglob(path + ending, recursive=True)  # noqa: PTH207
    return {match[: len(match) - len(ending)] for match in found}
