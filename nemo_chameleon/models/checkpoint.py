"""Checkpoints through megatron-core's dist_checkpointing: saved at one layout, loaded at any.

A folder has the names that Megatron-LM gives: `iter_0000500/`, and the newest one's number in
`latest_checkpointed_iteration.txt`. Beside Megatron's own files lies `state.json`, which says
where the run stood. A checkpoint is written under another name and renamed when it is whole.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing

from nemo_chameleon.models.gpt import unwrap
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.files import write_atomically
from nemo_chameleon.utils.ranks import is_first_rank

# The distributed optimizer's one format that megatron-core 0.15 to 0.19 all write, and that loads
# on any layout; the default of some releases is one that they no longer write.
_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}
_TRACKER = "latest_checkpointed_iteration.txt"


def newest(directory: Path) -> Path | None:
    """The newest checkpoint in a folder, or None.

    Raises:
        UserError: the tracker names one that is not there.
    """
    text, path = tracked(directory)
    if text is not None and (path is None or not (path / "state.json").is_file()):
        raise UserError(
            f"{directory / _TRACKER} says {text!r}, but there is no such checkpoint: correct the "
            "number in it, or remove the file to start anew"
        )
    return path


def tracked(directory: Path) -> tuple[str | None, Path | None]:
    """Return what the tracker in a folder says, whatever tool wrote it.

    Returns:
        Its text, or None where there is no tracker; and the folder of the checkpoint that it names,
        whether that is there or not, or None where it names none.
    """
    tracker = directory / _TRACKER
    text = tracker.read_text().strip() if tracker.is_file() else None
    return text, directory / f"iter_{int(text):07d}" if text and text.isdigit() else None


def read_state(path: Path) -> dict[str, Any]:
    """Where the run stood at a checkpoint.

    Raises:
        UserError: its state.json cannot be read.
    """
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
        known = isinstance(state["identity"], dict)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / 'state.json'} cannot be read: {error!r}") from error
    if not known:
        raise UserError(f"{path / 'state.json'} does not say what run it is of")
    return state


def resumable(
    directory: Path, resume: str, identity: Mapping[str, Any]
) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that a run goes on from and its state, or None where there is none.

    Args:
        directory: the run's.
        resume: "auto" or "never".
        identity: what the checkpoint must have in common with the run.

    Raises:
        UserError: a checkpoint is there, and it is another run's or must not be used.
    """
    path = newest(directory)
    if path is None:
        return None
    if resume == "never":
        raise UserError(
            f"checkpoint.resume=never, but {directory} holds checkpoints: remove them or set "
            "another output"
        )
    state = read_state(path)
    for key, now in identity.items():
        before = state["identity"].get(key)
        if before != now:
            raise UserError(
                f"{path} was made with {key} = {before}, now it is {now}: set it back, or set "
                "another output"
            )
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
    """Write a checkpoint, and remove all but the newest `keep`; every rank must call it."""
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
        # Up to this one: a later one is of a run that was set back by hand.
        older = sorted((int(path.name[5:]), path) for path in numbered)
        older = [entry for entry in older if entry[0] <= iteration]
        for _, old in older[:-keep] if keep else []:
            shutil.rmtree(old, ignore_errors=True)
    dist.barrier()
    return final


def load(path: Path, model: torch.nn.Module, optimizer: Any = None, scheduler: Any = None) -> None:
    """Fill a model, and an optimizer and scheduler if given; every rank must call it."""
    wanted = _sharded(model, optimizer, scheduler, loading=True)
    found = dist_checkpointing.load(wanted, str(path))
    unwrap(model).load_state_dict(found["model"])
    if optimizer is not None:
        optimizer.load_state_dict(found["optimizer"])
        scheduler.load_state_dict(found["opt_param_scheduler"])


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
