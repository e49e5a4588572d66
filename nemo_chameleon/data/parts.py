"""Finds the parts of a domain: a path, a list of paths, or what a glob matches.

A domain may be one dataset or hundreds, as tools write them that work in parallel. Every part is
accounted for: none is there twice, and none that a glob matches lacks one of its files.
"""

import fnmatch
import glob
import shlex
from collections.abc import Sequence
from pathlib import Path

from nemo_chameleon.data.given import Given
from nemo_chameleon.data.shards import require_whole_sets
from nemo_chameleon.data.splits import require_one_split
from nemo_chameleon.utils.errors import UserError

ENDINGS = (".bin", ".idx")
"""The endings of the files of a Megatron dataset, whose prefix a configuration names."""
_SHOWN = 3  # paths that a message lists
_UNFINISHED = (
    "nemo-chameleon prepare has begun this dataset and not finished it: wait for it, or run the "
    "same command again, which continues"
)
_TEXTS = (".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt")


def find_parts(path: str | Sequence[str], key: str, tokenizer: str | None = None) -> list[str]:
    """Return the prefixes of a domain's parts, which are Megatron datasets.

    A prefix that exists is taken as it is written, so the characters of a glob may occur in it.

    Args:
        path: a prefix, a glob of prefixes, or a list of them; the order of a list counts.
        key: the key of the configuration; errors begin with it.
        tokenizer: the tokenizer of the configuration, which an error about text names.

    Returns:
        The prefixes, at least one; what a glob matches is sorted by name.

    Raises:
        UserError: a glob matches nothing, parts of several splits or an incomplete set of parts, or
            a part that it matches lacks a file.
    """
    return [part for one in as_list(path) for part in _matches(Given(one, key), tokenizer)]


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


def fixed_folder(pattern: str) -> Path:
    """Return the folder of a glob that does not depend on what it matches.

    Args:
        pattern: the glob.

    Returns:
        The parts of its path above the first one that has a character of a glob.
    """
    parts = Path(pattern).parts
    return Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])


def require_files(given: Given, tokenizer: str | None = None) -> None:
    """Check that both files of a dataset are there.

    Args:
        given: prefix of the .bin and .idx files; errors begin with it.
        tokenizer: the tokenizer of the configuration, which an error about text names.

    Raises:
        UserError: a file is missing; the message says what to write instead, or how to make it.
    """
    for ending in ENDINGS:
        if not Path(given.path + ending).is_file():
            hint = _instead(given, tokenizer)
            raise UserError(f"{given}: there is no file {given.path}{ending}{hint}")


def _instead(given: Given, tokenizer: str | None) -> str:
    """Return what an error about a missing dataset says about what is there."""
    path = given.path
    place = Path(path)
    if path.endswith(ENDINGS):
        return "; write the path without .bin or .idx"
    if Path(f"{path}.unfinished.bin").exists():
        return f"; {_UNFINISHED}"
    if place.is_dir():
        datasets = next(place.glob("*.bin"), None) is not None
        if datasets:
            return f"; for all datasets in this folder, write {path.rstrip('/')}/*"
        return _tokenise(path, f"{path.rstrip('/')}-tokenised", given, tokenizer)
    if place.is_file():
        prefix = str(place.parent / place.name.partition(".")[0])
        if all(Path(prefix + ending).is_file() for ending in ENDINGS):
            return f"; if {prefix} is its dataset, set {given.instead(prefix)}"
        return _tokenise(path, prefix, given, tokenizer)
    text = next((f for end in _TEXTS if (f := Path(path + end)).is_file()), None)
    return "" if text is None else _tokenise(str(text), path, given, tokenizer)


def _tokenise(text: str, prefix: str, given: Given, tokenizer: str | None) -> str:
    """Return the command that makes a dataset of text."""
    prefix = f"{prefix}-tokenised" if Path(prefix).is_dir() else prefix
    words = ["--tokenizer", tokenizer or "tokenizer.json", "--output", prefix, text]
    return (
        f"; pretraining takes datasets of tokens: if this is text, run nemo-chameleon prepare "
        f"{shlex.join(words)} and set {given.instead(prefix)}"
    )


def _matches(given: Given, tokenizer: str | None) -> list[str]:
    path = given.path
    if not glob.has_magic(path) or any(Path(path + ending).exists() for ending in ENDINGS):
        return [path]
    found = {ending: _glob(path, ending) for ending in ENDINGS}
    parts = sorted(set().union(*found.values()))
    if not parts:
        hint = _instead_of_glob(given, tokenizer)
        raise UserError(f"{given}: the glob matches no dataset, which has a .bin and an .idx{hint}")
    if unfinished := [part for part in parts if part.endswith(".unfinished")]:
        raise UserError(f"{given}: {unfinished[0].removesuffix('.unfinished')}: {_UNFINISHED}")
    lacking = [part + end for part in parts for end in ENDINGS if part not in found[end]]
    if lacking:
        raise UserError(
            f"{given}: the glob matches {len(parts):,} parts, of which {len(lacking):,} lack a "
            f"file: {shown(lacking)}; write these files, or remove the others of these parts"
        )
    prefixes, name = [Path(part) for part in parts], Path(path).name
    require_one_split(prefixes, fixed_folder(path), given, datasets=True)
    require_whole_sets(prefixes, given, lambda prefix: fnmatch.fnmatchcase(prefix.name, name))
    return parts


def _instead_of_glob(given: Given, tokenizer: str | None) -> str:
    """Return what an error about a glob without datasets says about what it matches."""
    pattern = given.path
    if pattern.endswith(ENDINGS):
        return "; write it without .bin or .idx"
    files = sorted(_glob(pattern, ""))
    prefixes = {file.removesuffix(end) for file in files for end in ENDINGS if file.endswith(end)}
    if whole := [p for p in sorted(prefixes) if all(Path(p + end).is_file() for end in ENDINGS)]:
        return f"; set {given.instead(whole[0])} for the dataset that it would match"
    if not files:
        return ""
    folder = fixed_folder(pattern)
    prefix = "tokenised" if folder == Path() else f"{folder}-tokenised"
    return _tokenise(pattern, prefix, given, tokenizer)


def _glob(path: str, ending: str) -> set[str]:
    # A pathlib glob takes no absolute pattern.
    found = glob.iglob(path + ending, recursive=True)  # noqa: PTH207
    return {match[: len(match) - len(ending)] for match in found}
