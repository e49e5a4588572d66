"""The checkpoints in a run's folder, and the tracker that names the newest one.

Files are named as in Megatron-LM: each checkpoint is a folder such as `iter_0000500/`, and the
tracker `latest_checkpointed_iteration.txt` has the number of the newest one.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nemo_chameleon.models import whole
from nemo_chameleon.models.identity import require_same
from nemo_chameleon.models.whole import ABSENT, DamagedError, reading
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import keep_names, write_atomically
from nemo_chameleon.utils.logging import package_logger

logger = package_logger(__package__)

STATE = "state.json"
"""The name of a checkpoint's file with the state of the run."""
TRACKER = "latest_checkpointed_iteration.txt"
"""The name of the file in a run's folder that names its newest checkpoint."""
MISSING = "it is missing"
"""What is wrong with a checkpoint of which the folder is not there."""
_DIGITS = 18  # an iteration's number has fewer


def name_newest(directory: Path, iteration: int) -> None:
    """Write the tracker.

    Args:
        directory: the run's folder.
        iteration: the iteration of its newest checkpoint.

    Raises:
        OSError: it cannot be written.
    """
    write_atomically(directory / TRACKER, f"{iteration}\n")


def newest(directory: Path) -> Path | None:
    """Find the newest checkpoint of a run that looks whole.

    Args:
        directory: the run's folder.

    Returns:
        The checkpoint's folder, or None if the run has no checkpoint.

    Raises:
        UserError: there are checkpoints, and none of them is whole; or one would run code, or this
            node cannot read it.
    """
    faults: dict[Path, str] = {}
    for path in saved(directory):
        if (fault := fault_of(path)) is None:
            return path
        faults[path] = fault
    if faults:
        raise UserError(none_whole(directory, faults))
    return None


def saved(directory: Path) -> list[Path]:
    """List the checkpoints of a run, from the one that its tracker names to the oldest.

    Args:
        directory: the run's folder.

    Returns:
        Their folders, of which the first may not exist. If the tracker is missing or damaged, all
        checkpoints in the folder count.

    Raises:
        UserError: this node cannot read the folder.
    """
    text, path = tracked(directory)
    older = [(number, folder) for number, folder in numbered(directory) if folder != path]
    if path is not None:
        older = [(number, folder) for number, folder in older if number < int(text or 0)]
    paths = [folder for _, folder in sorted(older, reverse=True)]
    return paths if path is None else [path, *paths]


def iteration_of(path: Path) -> int:
    """Return the iteration that a checkpoint's folder is named after.

    Args:
        path: the folder, such as iter_0000500.

    Returns:
        For instance 500.
    """
    return int(path.name[5:])


def none_whole(directory: Path, faults: Mapping[Path, str]) -> str:
    """Describe that no checkpoint of a run can be used.

    Args:
        directory: the run's folder.
        faults: what is wrong with each checkpoint.

    Returns:
        The text of an error, which says what helps.
    """
    why = "; ".join(f"{path.name}: {fault}" for path, fault in [*faults.items()][:3])
    return (
        f"{directory} has checkpoints, but none of them is whole ({why}). Nothing was renamed: "
        "copy a whole one to its place, or move this folder away to start from iteration 0"
    )


def fault_of(path: Path) -> str | None:
    """Find out what is wrong with a run's checkpoint, by its description and its files' sizes.

    Args:
        path: the checkpoint's folder.

    Returns:
        What is wrong; None if nothing is.

    Raises:
        UserError: the checkpoint may not be read, would run code when it is read, or cannot be read
            on this node.
    """
    with reading(path):
        try:
            path.stat()
        except ABSENT:
            return MISSING
    if not os.access(path, os.R_OK | os.X_OK):
        raise UserError(
            f"{path} may not be read: ask its owner for the right to read it, or rename it to go "
            "on from the checkpoint before it"
        )
    try:
        read_state(path)
    except DamagedError as error:
        return str(error)
    return whole.fault_of(path)


def put_aside(damaged: Iterable[Path], intact: Path) -> list[tuple[Path, Path]]:
    """Rename checkpoints that are damaged, and let the tracker name the newest whole one.

    Args:
        damaged: their folders.
        intact: the folder of the whole one.

    Returns:
        For each damaged one that is there: where it was, and where it lies now.

    Raises:
        UserError: one cannot be renamed.
    """
    # If the process is killed on the way, the tracker no longer names a damaged checkpoint.
    name_newest(intact.parent, iteration_of(intact))
    moved = []
    for path in damaged:
        names = (f"{path.name}.damaged{number if number > 1 else ''}" for number in range(1, 1000))
        aside = next(other for name in names if not os.path.lexists(other := path.with_name(name)))
        try:
            path.rename(aside)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"{path} is damaged and cannot be renamed: {error}") from error
        moved.append((path, aside))
    keep_names(intact.parent)
    return moved


def tracked(directory: Path) -> tuple[str | None, Path | None]:
    """Read the tracker in a folder, whatever tool wrote it.

    Args:
        directory: the folder.

    Returns:
        The text of the tracker, or None if there is no tracker; and the folder of the checkpoint
        that it names, which may not exist, or None if it names none.

    Raises:
        UserError: this node cannot read it.
    """
    text = None
    with reading(directory / TRACKER), contextlib.suppress(*ABSENT):
        text = (directory / TRACKER).read_text(errors="replace").strip()
    number = text is not None and text.isascii() and text.isdigit() and len(text) < _DIGITS
    return text, directory / f"iter_{int(text or 0):07d}" if number else None


def numbered(directory: Path) -> list[tuple[int, Path]]:
    """List the checkpoints in a folder, whatever its tracker says.

    Args:
        directory: the folder.

    Returns:
        Iteration and folder of each.

    Raises:
        UserError: this node cannot list the folder.
    """
    return [(iteration_of(path), path) for path in _folders(directory, r"iter_[0-9]+")]


def unfinished(directory: Path) -> list[Path]:
    """List what is left of checkpoints in a folder whose saving was killed.

    Args:
        directory: the run's folder.

    Returns:
        Their folders.

    Raises:
        UserError: this node cannot list the folder.
    """
    return _folders(directory, r"iter_[0-9]+\.tmp")


def remove_unfinished(directory: Path) -> None:
    """Remove what killed saves have left, whichever iteration they were of.

    Args:
        directory: the run's folder, of which this job has the lease.

    Raises:
        UserError: this node cannot list the folder.
    """
    for path in unfinished(directory):
        remove(path)
        logger.info("%s was left by a job that was killed while it saved, and is removed", path)


def _folders(directory: Path, pattern: str) -> list[Path]:
    # Methods of Path would take a folder that this node cannot read for one that is not there.
    with reading(directory), contextlib.suppress(*ABSENT), os.scandir(directory) as entries:
        return [
            directory / entry.name
            for entry in entries
            if re.fullmatch(pattern, entry.name) and entry.is_dir()
        ]
    return []


def remove_all(directory: Path) -> None:
    """Remove the checkpoints of a run that is finished, the tracker first.

    Damaged ones that were put aside stay, and so does what somebody has named otherwise.

    Args:
        directory: the run's folder.
    """
    (directory / TRACKER).unlink(missing_ok=True)
    for path in [*(path for _, path in numbered(directory)), *unfinished(directory)]:
        remove(path)


def remove(path: Path) -> None:
    """Remove a checkpoint; of a link, what it leads to stays.

    Args:
        path: the checkpoint's folder, or a link to it.
    """
    try:
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    except FileNotFoundError:  # it is gone already, or it was being removed
        return
    except OSError as error:
        logger.warning("%s cannot be removed and takes up room: %s", path, error)


def read_state(path: Path) -> dict[str, Any]:
    """Read the state that a run had at a checkpoint.

    Args:
        path: the checkpoint's folder.

    Returns:
        The contents of state.json; its "identity" is a dict.

    Raises:
        DamagedError: the checkpoint's state.json is missing or damaged, or has no identity.
        UserError: this node cannot read it.
    """
    file = path / STATE
    with reading(file):
        try:
            state: dict[str, Any] = json.loads(file.read_text())
            known = isinstance(state["identity"], dict)
        except (*ABSENT, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedError(f"{file} cannot be read: {error!r}") from error
    if not known:
        raise DamagedError(f"{file} does not say which run it belongs to")
    return state


def state_for(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Read the state at a checkpoint that a run continues from.

    Args:
        path: the checkpoint's folder.
        identity: settings that the checkpoint must have in common with the run, by key.

    Returns:
        The contents of state.json.

    Raises:
        UserError: the checkpoint belongs to another run.
    """
    state = read_state(path)
    remedy = "set it back, or set output to another folder"
    require_same(state["identity"], identity, str(path), "the run", remedy)
    return state
