"""Folders in data.cache that are whole or not there, and that are verified before they are used.

A folder is filled under a random name beside its own. Its files and their manifest are on the disk
before it is renamed, so that jobs need no lock: whoever finishes first gives it its name, and the
others use it. A folder that is not what was written is put aside, and made anew.
"""

import os
import secrets
import shutil
from pathlib import Path

import numpy as np

from nemo_chameleon.utils import manifest
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import keep_contents, keep_names
from nemo_chameleon.utils.logging import package_logger

logger = package_logger(__package__)

_ABANDONED = 24 * 3600  # seconds
_RANDOM = 8  # hexadecimal digits
_looked_at: set[Path] = set()


def fault_of(folder: Path) -> str | None:
    """Find out whether a folder is what was written, by the sizes and hashes of its files.

    No .npy file is unpickled: numpy, which Megatron lets unpickle what is no array, gets only
    arrays of numbers to read.

    Args:
        folder: the folder.

    Returns:
        What is wrong, for a sentence that begins with the folder; None if nothing is.

    Raises:
        PermissionError: this user may not read it.
    """
    if not folder.is_dir():
        return "it is not a folder"
    try:
        entries = manifest.read(folder)
        if entries is None:
            return f"{manifest.NAME} is missing"
        for path in sorted(folder.glob("*.npy")):
            if path.name not in entries:
                return f"{path.name} was not written with it"
        if (fault := manifest.fault_of(folder, entries)) is not None:
            return fault
        arrays = [folder / name for name in entries if name.endswith(".npy")]
        return next((fault for path in arrays if (fault := _fault_of_array(path))), None)
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        return f"it cannot be read: {' '.join(str(error).split())}"


def _fault_of_array(path: Path) -> str | None:
    header = np.lib.format
    readers = {(1, 0): header.read_array_header_1_0, (2, 0): header.read_array_header_2_0}
    with path.open("rb") as stream:
        try:
            dtype = readers[header.read_magic(stream)](stream)[2]
        except (ValueError, KeyError):
            return f"{path.name} is not an array"
    return f"{path.name} has Python objects" if dtype.hasobject else None


def is_whole(folder: Path) -> bool:
    """Return whether a folder is there and whole; one that is damaged is put aside.

    Args:
        folder: the folder.

    Returns:
        Whether it can be used. Otherwise nothing has its name any more.

    Raises:
        UserError: it cannot be read, or it is damaged and cannot be renamed.
    """
    try:
        seen = folder.lstat()
        fault = fault_of(folder)
        if fault is None:
            return True
        aside = folder.with_name(f"{folder.name}.{secrets.token_hex(_RANDOM // 2)}.damaged")
        # Another job may have put the damaged folder aside, and a whole one in its place.
        if not os.path.samestat(seen, folder.lstat()):
            return is_whole(folder)
        folder.rename(aside)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(
            f"{folder} cannot be used or replaced: {error}; make it readable and its folder "
            "writable, or set another data.cache"
        ) from error
    logger.warning(
        "%s is damaged: %s. It is made anew. What was there is kept as %s, which can be removed "
        "when no other run uses it.",
        *(folder, fault, aside.name),
    )
    return False


def begin(folder: Path) -> Path:
    """Make the folder in which another one is filled until it is whole.

    What killed jobs have left is removed beforehand, once in a process: unfinished folders in which
    nothing has been written for a day, by the clock of the file system.

    Args:
        folder: the folder that is to be made.

    Returns:
        An empty folder beside it.

    Raises:
        OSError: it cannot be made.
    """
    beside = folder.with_name(f"{folder.name}.{secrets.token_hex(_RANDOM // 2)}.tmp")
    beside.mkdir(parents=True)
    if folder.parent not in _looked_at:  # it may have folders of thousands of domains
        _looked_at.add(folder.parent)
        _remove_abandoned(folder.parent, beside.stat().st_mtime)
    return beside


def _remove_abandoned(parent: Path, now: float) -> None:
    for other in parent.glob(f"*.{'?' * _RANDOM}.tmp"):
        try:
            written = max(path.stat().st_mtime for path in [other, *other.iterdir()])
        except OSError:  # its job has just finished or removed it
            continue
        if now - written > _ABANDONED:
            shutil.rmtree(other, ignore_errors=True)


def finish(beside: Path, folder: Path) -> None:
    """Give a filled folder its name, unless another job was faster and has made the same.

    Args:
        beside: the filled folder.
        folder: the name that it gets.

    Raises:
        OSError: it cannot be written or renamed.
        UserError: a damaged folder of that name cannot be renamed.
    """
    names = sorted(path.name for path in beside.iterdir())
    for name in names:
        keep_contents(beside / name)
    manifest.write(beside, manifest.entries_of(beside, names))
    while True:
        try:
            beside.rename(folder)
        except OSError:
            if not os.path.lexists(folder):
                raise
            if is_whole(folder):
                return
        else:
            keep_names(folder.parent)
            return
