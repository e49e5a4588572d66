"""Files that are either there whole or not at all, and digests to know things again by."""

import hashlib
import json
import secrets
from pathlib import Path
from typing import Any

_BLOCKS = 64


def write_atomically(path: Path, contents: str | bytes) -> None:
    """Write a file beside its place, then rename it there; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of its own: processes on other nodes, and in other containers, have the same numbers.
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        beside.write_bytes(contents.encode() if isinstance(contents, str) else contents)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def sampled_digest(path: Path) -> str:
    """Of some blocks of a file, spread over it: a terabyte takes no longer than a megabyte."""
    size, blocks = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as stream:
        for part in range(_BLOCKS):
            stream.seek(size * part // _BLOCKS)
            blocks.update(stream.read(4096))
    return blocks.hexdigest()[:16]


def digest(facts: Any) -> str:
    """Of facts that JSON can hold, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
