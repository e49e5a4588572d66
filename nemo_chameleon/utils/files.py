"""Atomic file writes, and digests that identify files and facts."""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

BLOCKS = 64
"""Number of blocks that `sampled_digest` reads from a file."""
BLOCK_BYTES = 4096
"""Size of a block in bytes."""
TEMPORARY = len(".01234567.tmp")
"""How much longer the name of a file is while the file is written."""


def write_atomically(path: Path, contents: str | bytes) -> None:
    """Write a file in one step, so that readers see either the old contents or the new ones.

    The contents go to a temporary file in the same folder, which is then renamed. Both are on the
    disk when this returns. The folder is created if it is missing.

    Args:
        path: the file to write.
        contents: bytes, or text that is written as UTF-8.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name is random because processes on other nodes can have the same process id.
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with beside.open("wb") as stream:
            stream.write(contents.encode() if isinstance(contents, str) else contents)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    keep_names(path.parent)


def keep_names(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, as after a file there was renamed.

    Args:
        folder: the folder.
    """
    # Some network file systems keep names at once and refuse this for folders.
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def keep_contents(file: Path) -> None:
    """Wait until what was written to a file is on the disk, as before the file is renamed.

    Args:
        file: the file.

    Raises:
        OSError: a part of it could not be written.
    """
    number = os.open(file, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def require_writable(path: Path) -> None:
    """Try whether a file can be written, and leave nothing behind.

    Args:
        path: the file, which stays as it is if it exists.

    Raises:
        OSError: a file cannot be written there.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(bytes(BLOCK_BYTES))
    finally:
        with contextlib.suppress(OSError):  # the folder could not be made, or is in use by now
            beside.unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()


def read_blocks(path: Path, offsets: Iterable[int]) -> Iterator[bytes]:
    """Read one block of up to 4 KiB from each of several places in a file.

    Args:
        path: the file.
        offsets: where the blocks begin, in bytes.

    Yields:
        The blocks in the order of `offsets`; a block at the end of the file is shorter.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        whole = stream.read(size) if size <= BLOCKS * BLOCK_BYTES else None
        for offset in offsets:
            if whole is not None:
                yield whole[offset : offset + BLOCK_BYTES]
                continue
            stream.seek(offset)
            yield stream.read(BLOCK_BYTES)


def sampled_digest(path: Path, count: int = BLOCKS) -> str:
    """Return the SHA-256 of evenly spaced 4 KiB blocks of a file.

    The time that this takes does not grow with the size of the file.

    Args:
        path: the file.
        count: number of blocks.

    Returns:
        The first 16 hexadecimal digits of the digest.
    """
    size, blocks = path.stat().st_size, hashlib.sha256()
    for block in read_blocks(path, (size * part // count for part in range(count))):
        blocks.update(block)
    return blocks.hexdigest()[:16]


def digest_of_ranges(ranges: Sequence[tuple[Path, int, int]]) -> str:
    """Return a SHA-256 of samples of many ranges of bytes, up to 16 blocks of 4 KiB of each.

    The more ranges there are, the fewer blocks of each are read, but at least one.

    Args:
        ranges: file, first byte and number of bytes of each range.

    Returns:
        The first 16 hexadecimal digits of the digest.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file ends before a range does.
    """
    most, blocks = max(1, min(16, 2**16 // max(len(ranges), 1))), hashlib.sha256()
    for path, start, length in ranges:
        last = max(length - BLOCK_BYTES, 0)
        count = min(most, -(-length // BLOCK_BYTES))
        with path.open("rb") as stream:
            for place in range(count):
                stream.seek(start + last * (place + 1) // count)
                block = stream.read(min(BLOCK_BYTES, length))
                if len(block) < min(BLOCK_BYTES, length):
                    raise ValueError(f"{path.name} ends before byte {start + length}")
                blocks.update(block)
    return blocks.hexdigest()[:16]


def digest_of_files(folder: Path, endings: tuple[str, ...] = ("",)) -> list[list[Any]]:
    """Return name, size and sampled digest of each file in a folder.

    Args:
        folder: where to look; folders in it are skipped.
        endings: endings of the names of the files that count; by default all files do.

    Returns:
        One list [name, size in bytes, digest] per file, sorted by name.
    """
    paths = (path for path in sorted(folder.iterdir()) if path.name.endswith(endings))
    return [[p.name, p.stat().st_size, sampled_digest(p)] for p in paths if p.is_file()]


def digest(facts: Any) -> str:
    """Return a SHA-256 of facts, independent of the order of their keys.

    Args:
        facts: anything that JSON can hold.

    Returns:
        The first 16 hexadecimal digits of the digest.
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
