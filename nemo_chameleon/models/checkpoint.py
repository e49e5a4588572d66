"""Writes and reads a run's checkpoints with megatron-core's dist_checkpointing, in any layout.

Files are named as in Megatron-LM: each checkpoint is a folder such as `iter_0000500/`, and the
tracker `latest_checkpointed_iteration.txt` has the number of the newest one. Beside Megatron's own
files, `state.json` has the state of the run. A checkpoint is written under a temporary name and
renamed when it is complete.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.serialization import load_sharded_metadata

from nemo_chameleon.models.gpt import unwrap
from nemo_chameleon.models.identity import require_same
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import digest, digest_of_files, write_atomically
from nemo_chameleon.utils.ranks import is_first_rank

# The only format of the distributed optimizer that megatron-core 0.15 to 0.19 all write and that
# loads in any layout. The default of some releases is a format that they no longer write.
_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}
_EXTRA_STATE = "_extra_state"
_TRACKER = "latest_checkpointed_iteration.txt"


def newest(directory: Path) -> Path | None:
    """Find the newest checkpoint of a run.

    Args:
        directory: the run's folder.

    Returns:
        The checkpoint's folder, or None if the run has no checkpoint.

    Raises:
        UserError: the tracker names a checkpoint that does not exist.
    """
    text, path = tracked(directory)
    if text is not None and (path is None or not (path / "state.json").is_file()):
        raise UserError(
            f"{directory / _TRACKER} says {text!r}, but there is no such checkpoint: correct the "
            "number in it, or remove the file to start from iteration 0"
        )
    return path


def tracked(directory: Path) -> tuple[str | None, Path | None]:
    """Read the tracker in a folder, whatever tool wrote it.

    Args:
        directory: the folder.

    Returns:
        The text of the tracker, or None if there is no tracker; and the folder of the checkpoint
        that it names, which may not exist, or None if it names none.
    """
    tracker = directory / _TRACKER
    text = tracker.read_text().strip() if tracker.is_file() else None
    return text, directory / f"iter_{int(text):07d}" if text and text.isdigit() else None


def content_digest(place: str) -> str | None:
    """Return a digest of a checkpoint's files, to recognise it by wherever it lies.

    Args:
        place: the checkpoint's folder, or the folder above it with a tracker.

    Returns:
        The digest of names, sizes and samples of the files; None if there is no such folder.
    """
    folder = tracked(Path(place))[1] or Path(place)
    return digest(digest_of_files(folder)) if folder.is_dir() else None


def remove_all(directory: Path) -> None:
    """Remove the checkpoints of a run that is finished, the tracker first.

    Args:
        directory: the run's folder.
    """
    (directory / _TRACKER).unlink(missing_ok=True)
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
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
        known = isinstance(state["identity"], dict)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / 'state.json'} cannot be read: {error!r}") from error
    if not known:
        raise UserError(f"{path / 'state.json'} does not say which run it belongs to")
    return state


def resumable(
    directory: Path, resume: str, identity: Mapping[str, Any]
) -> tuple[Path, dict[str, Any]] | None:
    """Find the checkpoint that a run resumes from.

    Args:
        directory: the run's folder.
        resume: "auto" or "never".
        identity: settings that the checkpoint must have in common with the run, by key.

    Returns:
        The checkpoint's folder and state, or None if there is no checkpoint.

    Raises:
        UserError: there is a checkpoint, but it belongs to another run or `resume` is "never".
    """
    path = newest(directory)
    if path is None:
        return None
    if resume == "never":
        raise UserError(
            f"checkpoint.resume=never, but {directory} holds checkpoints: remove them, or set "
            "output to another folder"
        )
    state = read_state(path)
    remedy = "set it back, or set output to another folder"
    require_same(state["identity"], identity, str(path), "the run", remedy)
    return path, state


def save(
    directory: Path,
    iteration: int,
    state: dict[str, Any],
    model: torch.nn.Module,
    optimizer: Any,
    scheduler: Any,
    keep: int | None = None,
) -> Path:
    """Write a checkpoint and remove old ones; every rank must call it.

    Args:
        directory: the run's folder.
        iteration: number of iterations that are done.
        state: the contents of state.json.
        model: this rank's part of the model.
        optimizer: its optimizer.
        scheduler: its learning rate schedule.
        keep: how many checkpoints up to this one to keep; None keeps all.

    Returns:
        The checkpoint's folder.
    """
    final = directory / f"iter_{iteration:07d}"
    beside = directory / f"{final.name}.tmp"
    if is_first_rank():
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save(_sharded(model, optimizer, scheduler), str(beside))
    dist.barrier()
    if is_first_rank():
        write_atomically(beside / "state.json", json.dumps(state, indent=2) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
        write_atomically(directory / _TRACKER, f"{iteration}\n")
        numbered = [path for path in directory.glob("iter_*") if path.name[5:].isdigit()]
        # Later checkpoints are left from before somebody set the run back by hand. They stay.
        older = sorted((int(path.name[5:]), path) for path in numbered)
        older = [entry for entry in older if entry[0] <= iteration]
        for _, old in older[:-keep] if keep else []:
            shutil.rmtree(old, ignore_errors=True)
    dist.barrier()
    return final


def load(path: Path, model: torch.nn.Module, optimizer: Any = None, scheduler: Any = None) -> None:
    """Load a checkpoint into a model; every rank must call it.

    Args:
        path: the checkpoint's folder.
        model: this rank's part of the model.
        optimizer: its optimizer, which is loaded too if given.
        scheduler: its learning rate schedule, which is loaded with the optimizer.

    Raises:
        KeyError: the checkpoint and the model do not have the same weights.
    """
    wanted = _sharded(model, optimizer, scheduler, loading=True)
    wanted["model"] = _without_absent_extra_states(wanted["model"], path)
    found = dist_checkpointing.load(wanted, str(path))
    missing, unexpected = unwrap(model).load_state_dict(found["model"], strict=False)
    missing = [name for name in missing if not name.endswith(_EXTRA_STATE)]
    if missing or unexpected:
        raise KeyError(*missing, *unexpected)
    if optimizer is not None:
        optimizer.load_state_dict(found["optimizer"])
        scheduler.load_state_dict(found["opt_param_scheduler"])


def _without_absent_extra_states(wanted: dict[str, Any], path: Path) -> dict[str, Any]:
    """Leave out the extra states that a checkpoint lacks, so that any kind of layers can load it.

    The attention and the norms of Transformer Engine have extra states, for scaling in fp8, and
    others have none. A layer that gets none keeps the state that it begins with.

    Args:
        wanted: the sharded state of a model.
        path: the checkpoint's folder.

    Returns:
        The state without these entries.
    """
    there = load_sharded_metadata(str(path))
    return {
        name: part
        for name, part in wanted.items()
        if not (name.endswith(_EXTRA_STATE) and isinstance(part, ShardedObject))
        or part.unique_key in there
    }


def _sharded(
    model: torch.nn.Module, optimizer: Any, scheduler: Any, loading: bool = False
) -> dict[str, Any]:
    state = {"model": unwrap(model).sharded_state_dict()}
    if optimizer is not None:
        state["optimizer"] = optimizer.sharded_state_dict(
            state, is_loading=loading, metadata=_METADATA
        )
        state["opt_param_scheduler"] = scheduler.state_dict()
    return state
