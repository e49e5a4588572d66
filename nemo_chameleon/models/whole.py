"""Finds out whether a checkpoint on disk is whole.

A checkpoint has a manifest since version 0.3. One without it is as whole as its own description
lets one see: every tensor must lie within a file that exists. What one node alone cannot read, or
reads otherwise than another node, is no damage: it is an error that names the node.
"""

import contextlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from nemo_chameleon.distributed.collectives import (
    node_name,
    on_every_rank,
    on_first_rank,
    share_of_rank,
)
from nemo_chameleon.models.pickles import COMMON, read_metadata, require_harmless
from nemo_chameleon.utils import manifest
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.ranks import rank

T = TypeVar("T")
# What the readers of damaged files raise: RuntimeError is of a zip file that looks encrypted.
_DAMAGE = (EOFError, ValueError, AttributeError, TypeError, RuntimeError)
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""What is raised where a file is not there. All other OSErrors are a node's or a file system's."""


class DamagedError(UserError):
    """Raised where a checkpoint is not what was written."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the node on which something cannot be read within the block.

    Args:
        path: what is read.

    Yields:
        Nothing.

    Raises:
        UserError: this node cannot read it, for a reason that says nothing about its contents.
    """
    try:
        yield
    except (OSError, MemoryError, ImportError) as error:
        cause = " ".join(str(error).split()) or repr(error)
        remedy = (
            "install the versions of torch and megatron-core that wrote it"
            if isinstance(error, ImportError)
            else "start the same command again, without this node if it happens again"
        )
        raise UserError(
            f"{path} cannot be read on {node_name()}: {cause}. Nothing was renamed: {remedy}"
        ) from error


def seal(path: Path) -> None:
    """Write a checkpoint's manifest; every rank must call it, after all files are written.

    Args:
        path: the checkpoint's folder.

    Raises:
        UserError: a file is shorter than the tensors that were written to it, or a node cannot
            read it.
    """
    names, ends = on_first_rank(lambda: _written(path))
    mine = [name for name in names if _reader(name) == rank()]
    read = _by_rank(path, lambda: manifest.entries_of(path, mine))
    everything = {name: entry for entries in read for name, entry in entries.items()}
    sizes = {name: size for name, (size, _) in everything.items()}
    if (fault := _shorter(sizes, ends)) is not None:
        raise UserError(
            f"{path} is not what was written: {fault}. The checkpoint before it stays the newest "
            "one: see whether the disk is full or failing, and start the same command again"
        )
    on_first_rank(lambda: manifest.write(path, everything))


def _written(path: Path) -> tuple[list[str], dict[str, int]]:
    """List the files of a checkpoint, and where the last tensor in each ends."""
    ends = _ends(read_metadata(path))
    # On a network file system, the list of a folder may lack what other nodes have just written.
    return sorted({*ends, *(file.name for file in path.iterdir() if file.is_file())}), ends


def _ends(described: Any) -> dict[str, int]:
    ends: dict[str, int] = {}
    for place in described.storage_data.values():
        ends[place.relative_path] = max(
            ends.get(place.relative_path, 0), place.offset + place.length
        )
    return ends


def _shorter(sizes: Mapping[str, int], ends: Mapping[str, int]) -> str | None:
    """Find a file that ends before its last tensor does."""
    for name, end in ends.items():
        if sizes[name] < end:
            return f"{name} has {sizes[name]} bytes instead of {end}"
    return None


def _reader(name: str) -> int:
    """Return the rank that reads a file: the one that wrote it, whose node may still have it."""
    # Megatron calls the files __RANK_NUMBER.distcp; all others are small.
    number = name.split("_")[2:3] if name.startswith("__") else []
    return int(number[0]) % dist.get_world_size() if number and number[0].isdecimal() else 0


def fault_of(path: Path) -> str | None:
    """Find out what is wrong with a checkpoint by its description and the sizes of its files.

    Args:
        path: the checkpoint's folder.

    Returns:
        What is wrong, for a sentence that begins with the folder; None if nothing is.

    Raises:
        UserError: the checkpoint would run code when it is read, or this node cannot read it.
    """
    with reading(path):
        try:
            ends = _ends(read_metadata(path))
            require_harmless(path)
            entries = manifest.read(path)
            if entries is not None and (fault := manifest.fault_of(path, entries, content=False)):
                return fault
            sizes = {name: (path / name).stat().st_size for name in ends}
            if (fault := _shorter(sizes, ends)) is not None or entries is not None:
                return fault
            json.loads((path / "metadata.json").read_text())
            with zipfile.ZipFile(path / COMMON) as common:
                if common.testzip() is not None:
                    return f"the contents of {COMMON} are not what was written"
        except UserError:
            raise
        except ABSENT as error:
            return f"{Path(error.filename).name} is missing"
        except (*_DAMAGE, zipfile.BadZipFile, zlib.error) as error:
            return f"it cannot be read: {' '.join(str(error).split()) or repr(error)}"
    return None


def fault_of_contents(path: Path) -> str | None:
    """Find out what is wrong with the contents of a checkpoint's files, if it has a manifest.

    Every rank must call it. Each reads a part of the files, and what is wrong with one of them is
    seen by a rank of another node, too, if there is one.

    Args:
        path: the checkpoint's folder.

    Returns:
        What is wrong, the same on every rank; None if nothing is.

    Raises:
        UserError: a node cannot read a file, or sees a fault that another one does not see.
    """
    entries = on_first_rank(lambda: manifest.read(path)) or {}  # which fault_of has read before
    mine = dict(share_of_rank(entries.items()))
    nodes = on_every_rank(node_name)
    found = _by_rank(path, lambda: manifest.faults_of(path, mine))
    wrong = {number: next(iter(of.items())) for number, of in enumerate(found) if of}
    if not wrong:
        return None
    second = {
        number: next((other for other, node in enumerate(nodes) if node != nodes[number]), number)
        for number in wrong
    }
    again = {name: entries[name] for n, (name, _) in wrong.items() if second[n] == rank()}
    seen = _by_rank(path, lambda: manifest.faults_of(path, again))
    for number, (name, fault) in wrong.items():
        if name in seen[second[number]]:
            return fault
    number, (_, fault) = next(iter(wrong.items()))
    raise UserError(
        f"{path}: {fault}, as {nodes[number]} reads it, but {nodes[second[number]]} then read what "
        f"was written. Nothing was renamed: start the same command again without {nodes[number]}, "
        "whose memory or file system may be failing"
    )


def _by_rank(path: Path, read: Callable[[], T]) -> list[T]:
    """Return what each rank reads; raise what one could not read on all."""

    def readable() -> T:
        with reading(path):
            return read()

    return on_every_rank(readable)
