"""Finds out whether a checkpoint on disk is whole, and puts one aside that is not.

A checkpoint has a manifest since version 0.3. One without it is as whole as its own description
lets one see: every tensor must lie within a file that exists.
"""

import json
import zipfile
from pathlib import Path

import torch.distributed as dist

from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.models.pickles import COMMON, read_metadata, require_harmless
from nemo_chameleon.utils import manifest
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import keep_names
from nemo_chameleon.utils.ranks import rank


def seal(path: Path) -> None:
    """Write a checkpoint's manifest; every rank must call it, after all files are written.

    Args:
        path: the checkpoint's folder.
    """
    names = on_first_rank(lambda: sorted(file.name for file in path.iterdir() if file.is_file()))
    read = manifest.entries_of(path, [name for name in names if _reader(name) == rank()])
    of_all: list[dict[str, tuple[int, str]]] = [{}] * dist.get_world_size()
    dist.all_gather_object(of_all, read)
    everything = {name: entry for entries in of_all for name, entry in entries.items()}
    on_first_rank(lambda: manifest.write(path, everything))


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
        UserError: the checkpoint would run code when it is read.
    """
    try:
        described = read_metadata(path)
        require_harmless(path)
        if (entries := manifest.read(path)) is not None:
            return manifest.fault_of(path, entries, content=False)
        ends: dict[str, int] = {}
        for place in described.storage_data.values():
            ends[place.relative_path] = max(
                ends.get(place.relative_path, 0), place.offset + place.length
            )
        for name, end in ends.items():
            if (size := (path / name).stat().st_size) < end:
                return f"{name} has {size} bytes instead of {end}"
        json.loads((path / "metadata.json").read_text())
        with zipfile.ZipFile(path / COMMON) as common:
            if common.testzip() is not None:
                return f"the contents of {COMMON} are not what was written"
    except UserError:
        raise
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        return f"it cannot be read: {' '.join(str(error).split()) or repr(error)}"
    return None


def fault_of_contents(path: Path) -> str | None:
    """Find out what is wrong with the contents of a checkpoint's files, if it has a manifest.

    Every rank must call it. Each reads a part of the files.

    Args:
        path: the checkpoint's folder.

    Returns:
        What is wrong, the same on every rank; None if nothing is.
    """
    entries = on_first_rank(lambda: manifest.read(path)) or {}  # which fault_of has read before
    mine = dict([*entries.items()][rank() :: dist.get_world_size()])
    try:
        found = manifest.fault_of(path, mine)
    except OSError as error:
        found = f"it cannot be read: {error}"
    of_all: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(of_all, found)
    return next((fault for fault in of_all if fault is not None), None)


def put_aside(path: Path) -> Path:
    """Rename a checkpoint that is not whole, so that nothing takes it for one.

    Args:
        path: the checkpoint's folder.

    Returns:
        Where it lies now.

    Raises:
        UserError: it cannot be renamed.
    """
    for number in range(1, 1000):
        aside = path.with_name(f"{path.name}.damaged{number if number > 1 else ''}")
        if not aside.exists():
            break
    try:
        path.rename(aside)
    except FileNotFoundError:
        return path
    except OSError as error:
        raise UserError(f"{path} is damaged and cannot be renamed: {error}") from error
    keep_names(path.parent)
    return aside
