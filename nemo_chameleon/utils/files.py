"""Files that are either there whole or not at all, and digests to recognise files and facts by."""

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

BLOCKS = 64
"""How many blocks of a file are read to recognise it."""
BLOCK_BYTES = 4096


def write_atomically(path: Path, contents: str | bytes) -> None:
    """Write a file beside its place, then rename it there; make its folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A random name: processes on other nodes, and in other containers, have the same process ids.
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        beside.write_bytes(contents.encode() if isinstance(contents, str) else contents)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_blocks(path: Path, offsets: Iterable[int]) -> Iterator[bytes]:
    """Yield up to 4 KiB of a file from each offset in bytes."""
    with path.open("rb") as stream:
        for offset in offsets:
            stream.seek(offset)
            yield stream.read(BLOCK_BYTES)


def sampled_digest(path: Path) -> str:
    """Return a SHA-256 of 64 evenly spaced 4 KiB blocks of a file, as 16 hexadecimal digits.

    A terabyte takes no longer than a megabyte.
    """
    size, blocks = path.stat().st_size, hashlib.sha256()
    for block in read_blocks(path, (size * part // BLOCKS for part in range(BLOCKS))):
        blocks.update(block)
    return blocks.hexdigest()[:16]


def digest_of_files(folder: Path, endings: tuple[str, ...] = ("",)) -> list[list[Any]]:
    """Return name, size in bytes and sampled digest of each file in a folder, sorted by name."""
    paths = (path for path in sorted(folder.iterdir()) if path.name.endswith(endings))
    return [[p.name, p.stat().st_size, sampled_digest(p)] for p in paths if p.is_file()]


def digest(facts: Any) -> str:
    """Return a SHA-256 of facts that JSON can hold, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
