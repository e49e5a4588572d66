"""Writes and reads a run's checkpoints with megatron-core's dist_checkpointing, in any layout.

Beside Megatron's own files, `state.json` has the state of the run, and a manifest the sizes and
hashes of all files. A checkpoint is written under a temporary name and renamed when it is complete.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.serialization import load_sharded_metadata

from nemo_chameleon.models import whole
from nemo_chameleon.models.finite import require_finite
from nemo_chameleon.models.gpt import unwrap
from nemo_chameleon.models.pickles import weights_only
from nemo_chameleon.models.tracker import STATE, name_newest, numbered, remove
from nemo_chameleon.utils.files import keep_names, write_atomically
from nemo_chameleon.utils.ranks import is_first_rank

# The only format of the distributed optimizer that megatron-core 0.15 to 0.19 all write and that
# loads in any layout. The default of some releases is a format that they no longer write.
_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}
_EXTRA_STATE = "_extra_state"
# What a group of the optimizer's parameters has from the configuration. A checkpoint also has them.
_SETTINGS = ("max_lr", "min_lr", "betas", "eps", "weight_decay")


def save(
    directory: Path,
    iteration: int,
    state: dict[str, Any],
    model: torch.nn.Module,
    optimizer: Any,
    scheduler: Any,
    keep: int | None = None,
    confirm: Callable[[], None] = lambda: None,
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
        confirm: raises an error if the folder is another job's by now; it is called before the
            first file is written, and before the checkpoint gets its name.

    Returns:
        The checkpoint's folder.

    Raises:
        NotFiniteError: the model or the optimizer is not finite; nothing is written.
    """
    parts = _sharded(model, optimizer, scheduler)
    require_finite(parts)
    confirm()
    final = directory / f"iter_{iteration:07d}"
    beside = directory / f"{final.name}.tmp"
    if is_first_rank():
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save(parts, str(beside))
    dist.barrier()
    if is_first_rank():
        write_atomically(beside / STATE, json.dumps(state, indent=2, allow_nan=False) + "\n")
    whole.seal(beside)
    confirm()
    if is_first_rank():
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
        keep_names(directory)
        name_newest(directory, iteration)
        # Later checkpoints are left from before somebody set the run back by hand. They stay.
        older = sorted(entry for entry in numbered(directory) if entry[0] <= iteration)
        for _, old in older[:-keep] if keep else []:
            remove(old)
    dist.barrier()
    return final


def load(path: Path, model: torch.nn.Module, optimizer: Any = None, scheduler: Any = None) -> None:
    """Load a checkpoint into a model; every rank must call it.

    The optimizer's settings, such as its learning rate, stay as they are configured.

    Args:
        path: the checkpoint's folder.
        model: this rank's part of the model.
        optimizer: its optimizer, which is loaded too if given.
        scheduler: its learning rate schedule, which is loaded with the optimizer.

    Raises:
        KeyError: the checkpoint and the model do not have the same weights.
        NotFiniteError: what was loaded is not finite.
        UserError: an object beside the tensors is not read, because it would run code.
    """
    wanted = _sharded(model, optimizer, scheduler, loading=True)
    if optimizer is None:
        wanted["model"] = _without_extra_states(wanted["model"])
    else:
        wanted["model"] = _without_absent_extra_states(wanted["model"], path)
    with weights_only(path):
        found = dist_checkpointing.load(wanted, str(path))
    missing, unexpected = unwrap(model).load_state_dict(found["model"], strict=False)
    missing = [name for name in missing if not name.endswith(_EXTRA_STATE)]
    if missing or unexpected:
        raise KeyError(*missing, *unexpected)
    require_finite([found["model"], found.get("optimizer", {})])
    if optimizer is not None:
        own = [
            {key: group[key] for key in _SETTINGS if key in group} for group in _groups(optimizer)
        ]
        optimizer.load_state_dict(found["optimizer"])
        for group, settings in zip(_groups(optimizer), own, strict=True):
            group.update(settings)
        scheduler.load_state_dict(found["opt_param_scheduler"])


def _groups(optimizer: Any) -> list[dict[str, Any]]:
    return list(optimizer.param_groups)


def _is_extra_state(name: str, part: Any) -> bool:
    return name.endswith(_EXTRA_STATE) and isinstance(part, ShardedObject)


def _without_extra_states(wanted: dict[str, Any]) -> dict[str, Any]:
    # Where weights alone are loaded, the checkpoint may be a stranger's, and Transformer Engine
    # unpickles its extra states itself, which runs what they name.
    return {name: part for name, part in wanted.items() if not _is_extra_state(name, part)}


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
        if not _is_extra_state(name, part) or part.unique_key in there
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
