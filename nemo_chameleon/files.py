"""Files that are either there whole or not at all, and digests to know things again by."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def write_atomically(path: Path, contents: str | bytes) -> None:
    """Write a file beside its place, then rename it there; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(contents.encode() if isinstance(contents, str) else contents)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def digest(facts: Any) -> str:
    """Of facts that JSON can hold, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
