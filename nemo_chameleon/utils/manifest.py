"""A folder's manifest has the size and a hash of each file, so that damage is found by content.

The hash is XXH3 with 128 bits, which is as fast as memory. It finds damage, not forgery.
"""

import json
import os
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from nemo_chameleon.utils.files import write_atomically
from nemo_chameleon.utils.names import fault_of_name

NAME = "manifest.json"
"""The name of the manifest's own file."""
Entries = Mapping[str, tuple[int, str]]
"""By name of a file: its size in bytes and its hash."""
_MARK = {"format": "nemo_chameleon 1"}  # other tools have files of this name, too
_CHUNK = 1 << 22  # bytes
_AT_ONCE = 4  # files


def entries_of(folder: Path, names: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Read files and return what a manifest has of them.

    Args:
        folder: the folder.
        names: names of files in it.

    Returns:
        By name: size in bytes, and hash.

    Raises:
        OSError: a file cannot be read.
    """
    paths = {name: folder / name for name in names}
    if sum(path.stat().st_size for path in paths.values()) < _CHUNK:
        return {name: _entry(path) for name, path in paths.items()}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip(paths, pool.map(_entry, paths.values()), strict=True))


def _entry(path: Path) -> tuple[int, str]:
    state, size = xxhash.xxh3_128(), 0
    with path.open("rb", buffering=0) as stream:
        buffer = bytearray(min(_CHUNK, 1 + os.fstat(stream.fileno()).st_size))
        while read := stream.readinto(buffer):
            state.update(memoryview(buffer)[:read])
            size += read
    return size, state.hexdigest()


def write(folder: Path, entries: Entries) -> None:
    """Write a folder's manifest.

    Args:
        folder: the folder.
        entries: what it has of each file.

    Raises:
        OSError: it cannot be written.
    """
    files = {name: list(entry) for name, entry in sorted(entries.items())}
    text = json.dumps({**_MARK, "files": files})
    write_atomically(folder / NAME, text + "\n")


def read(folder: Path) -> dict[str, tuple[int, str]] | None:
    """Read a folder's manifest.

    Args:
        folder: the folder.

    Returns:
        What it has of each file; None if there is no manifest, or the file is another tool's.

    Raises:
        ValueError: the manifest is damaged.
        OSError: the manifest cannot be read.
    """
    try:
        text = (folder / NAME).read_text()
    except FileNotFoundError:
        return None
    try:
        found = json.loads(text)
        if not _is_own(found):
            return None
        files: dict[str, Any] = found["files"]
        for name in files:
            if fault_of_name(name) is not None:
                raise ValueError(f"{name!r} is no name of a file in its folder")
        return {str(name): (int(size), str(hashed)) for name, (size, hashed) in files.items()}
    except (
        ValueError,
        ArithmeticError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ValueError(f"{NAME} is damaged: {error!r}") from error


def _is_own(found: Any) -> bool:
    """Return whether a manifest is one of this package, whose first ones have no mark."""
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
        return False
    mark = {key: value for key, value in found.items() if key != "files"}
    pairs = all(isinstance(v, list) and len(v) == 2 for v in found["files"].values())
    return mark == _MARK or (not mark and pairs)


def fault_of(folder: Path, entries: Entries, *, content: bool = True) -> str | None:
    """Compare files with a manifest, up to the first one that differs.

    Args:
        folder: the folder.
        entries: what the manifest has of the files.
        content: whether to read the files and to compare their hashes. Otherwise only their sizes
            are compared.

    Returns:
        What is wrong with one of the files; None if all are as they were.

    Raises:
        OSError: a file is there and cannot be read.
    """
    faults = faults_of_sizes(folder, entries)
    if content and not faults:
        faults = _faults_of_contents(folder, entries)
    return next(iter(faults.values()), None)


def faults_of_sizes(folder: Path, entries: Entries) -> dict[str, str]:
    """Compare the sizes of files with a manifest.

    Args:
        folder: the folder.
        entries: what the manifest has of the files.

    Returns:
        What is wrong, by name of the file.

    Raises:
        OSError: a file cannot be looked at.
    """
    faults = {}
    for name, (size, _) in entries.items():
        try:
            found = (folder / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            faults[name] = f"{name} is missing"
            continue
        if not stat.S_ISREG(found.st_mode):
            faults[name] = f"{name} is not a file"
        elif found.st_size != size:
            faults[name] = f"{name} has {found.st_size} bytes instead of {size}"
    return faults


def faults_of(folder: Path, entries: Entries) -> dict[str, str]:
    """Compare the sizes and the contents of files with a manifest.

    Args:
        folder: the folder.
        entries: what the manifest has of the files.

    Returns:
        What is wrong, by name of the file.

    Raises:
        OSError: a file is there and cannot be read.
    """
    faults = faults_of_sizes(folder, entries)
    rest = {name: entry for name, entry in entries.items() if name not in faults}
    return faults | _faults_of_contents(folder, rest)


def _faults_of_contents(folder: Path, entries: Entries) -> dict[str, str]:
    return {
        name: f"the contents of {name} are not what was written"
        for name, entry in entries_of(folder, entries).items()
        if entry != entries[name]
    }
