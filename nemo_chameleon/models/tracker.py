"""The checkpoints in a run's folder, and the tracker that names the newest one.

Files are named as in Megatron-LM: each checkpoint is a folder such as `iter_0000500/`, and the
tracker `latest_checkpointed_iteration.txt` has the number of the newest one.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_chameleon.models import whole
from nemo_chameleon.models.identity import require_same
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import write_atomically

STATE = "state.json"
"""The name of a checkpoint's file with the state of the run."""
TRACKER = "latest_checkpointed_iteration.txt"
"""The name of the file in a run's folder that names its newest checkpoint."""
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
        UserError: there are checkpoints, and none of them is whole; or one would run code.
    """
    paths = saved(directory)
    for path in paths:
        if fault_of(path) is None:
            return path
    if paths:
        raise UserError(_none_whole(directory))
    return None


def saved(directory: Path) -> list[Path]:
    """List the checkpoints of a run, from the one that its tracker names to the oldest.

    Args:
        directory: the run's folder.

    Returns:
        Their folders, of which the first may not exist; empty if the run has no tracker. If the
        tracker is damaged, all checkpoints in the folder count.
    """
    text, path = tracked(directory)
    if text is None:
        return []
    older = [(number, folder) for number, folder in numbered(directory) if folder != path]
    if path is not None:
        older = [(number, folder) for number, folder in older if number < int(text)]
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


def _none_whole(directory: Path) -> str:
    text, _ = tracked(directory)
    why = "; ".join(f"{folder.name}: {fault_of(folder)}" for folder in saved(directory)[:3])
    found = f" ({why})" if why else ""
    return (
        f"{directory / TRACKER} says {text!r:.40}, but no checkpoint there is whole{found}: copy "
        "a whole one to its place, or remove this file to start from iteration 0"
    )


def fault_of(path: Path) -> str | None:
    """Find out what is wrong with a run's checkpoint, by its description and its files' sizes.

    Args:
        path: the checkpoint's folder.

    Returns:
        What is wrong; None if nothing is.

    Raises:
        UserError: the checkpoint may not be read, or would run code when it is read.
    """
    if not path.is_dir():
        return "it is missing"
    if not os.access(path, os.R_OK | os.X_OK):
        raise UserError(
            f"{path} may not be read: ask its owner for the right to read it, or rename it to go "
            "on from the checkpoint before it"
        )
    try:
        read_state(path)
    except UserError as error:
        return str(error)
    return whole.fault_of(path)


def put_aside(path: Path) -> Path:
    """Rename a checkpoint that is damaged, and let the tracker name the one before it.

    Args:
        path: the checkpoint's folder.

    Returns:
        Where it lies now.

    Raises:
        UserError: it cannot be renamed, or no other checkpoint is left.
    """
    directory = path.parent
    rest = [folder for folder in saved(directory) if folder != path]
    if not rest:
        raise UserError(_none_whole(directory))
    # If the process is killed between the two steps, the tracker no longer names this checkpoint.
    name_newest(directory, iteration_of(rest[0]))
    return whole.put_aside(path)


def tracked(directory: Path) -> tuple[str | None, Path | None]:
    """Read the tracker in a folder, whatever tool wrote it.

    Args:
        directory: the folder.

    Returns:
        The text of the tracker, or None if there is no tracker; and the folder of the checkpoint
        that it names, which may not exist, or None if it names none.
    """
    tracker = directory / TRACKER
    text = tracker.read_text(errors="replace").strip() if tracker.is_file() else None
    number = text is not None and text.isascii() and text.isdigit() and len(text) < _DIGITS
    return text, directory / f"iter_{int(text or 0):07d}" if number else None


def numbered(directory: Path) -> list[tuple[int, Path]]:
    """List the checkpoints in a folder, whatever its tracker says.

    Args:
        directory: the folder.

    Returns:
        Iteration and folder of each.
    """
    return [
        (iteration_of(path), path)
        for path in directory.glob("iter_*")
        if path.name[5:].isascii() and path.name[5:].isdigit() and path.is_dir()
    ]


def remove_all(directory: Path) -> None:
    """Remove the checkpoints of a run that is finished, the tracker first.

    Args:
        directory: the run's folder.
    """
    (directory / TRACKER).unlink(missing_ok=True)
    for path in directory.glob("iter_*"):  # those of saves that were killed, too
        shutil.rmtree(path)


def read_state(path: Path) -> dict[str, Any]:
    """Read the state that a run had at a checkpoint.

    Args:
        path: the checkpoint's folder.

    Returns:
        The contents of state.json; its "identity" is a dict.

    Raises:
        UserError: the checkpoint's state.json cannot be read, or has no identity.
    """
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text())
        known = isinstance(state["identity"], dict)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path / 'state.json'} cannot be read: {error!r}") from error
    if not known:
        raise UserError(f"{path / 'state.json'} does not say which run it belongs to")
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
