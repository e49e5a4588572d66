"""A folder's manifest has the size and a hash of each file, so that damage is found by content.

The hash is XXH3 with 128 bits, which is as fast as memory. It finds damage, not forgery.
"""

import json
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
    names = list(names)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip(names, pool.map(_entry, [folder / name for name in names]), strict=True))


def _entry(path: Path) -> tuple[int, str]:
    state, size, buffer = xxhash.xxh3_128(), 0, bytearray(_CHUNK)
    with path.open("rb", buffering=0) as stream:
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
    text = json.dumps({"files": {name: list(entry) for name, entry in sorted(entries.items())}})
    write_atomically(folder / NAME, text + "\n")


def read(folder: Path) -> dict[str, tuple[int, str]] | None:
    """Read a folder's manifest.

    Args:
        folder: the folder.

    Returns:
        What it has of each file; None if there is no manifest.

    Raises:
        ValueError: the manifest is damaged.
        OSError: the manifest cannot be read.
    """
    try:
        text = (folder / NAME).read_text()
    except FileNotFoundError:
        return None
    try:
        files: dict[str, Any] = json.loads(text)["files"]
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


def fault_of(folder: Path, entries: Entries, *, content: bool = True) -> str | None:
    """Compare files with a manifest.

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
    for name, (size, _) in entries.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (found := path.stat().st_size) != size:
            return f"{name} has {found} bytes instead of {size}"
    if content:
        for name, entry in entries_of(folder, entries).items():
            if entry != entries[name]:
                return f"the contents of {name} are not what was written"
    return None
