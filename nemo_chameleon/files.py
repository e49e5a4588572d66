"""Files that are either there whole or not at all."""

import os
from pathlib import Path


def write_atomically(path: Path, contents: str | bytes) -> None:
    """Write a file beside its place, then rename it there; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(contents.encode() if isinstance(contents, str) else contents)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
