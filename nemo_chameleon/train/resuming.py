"""Loads the newest checkpoint that a run can continue from, and puts damaged ones aside."""

import functools
from pathlib import Path
from typing import Any

import torch

from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.models import checkpoint, tracker, whole
from nemo_chameleon.models.finite import NotFiniteError
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.logging import package_logger

logger = package_logger(__package__)


def resume(
    run: TrainingRun, model: torch.nn.Module, optimizer: Any, scheduler: Any
) -> dict[str, Any]:
    """Load the newest checkpoint that is whole; every rank must call it.

    A checkpoint that is damaged, cannot be read or is not finite is named and renamed. The run then
    goes on from the one before it.

    Args:
        run: the run, which has a checkpoint.
        model: this rank's part of the model.
        optimizer: its optimizer.
        scheduler: its learning rate schedule.

    Returns:
        The state of the run at the checkpoint.

    Raises:
        UserError: no checkpoint is whole, the newest whole one is another run's, or one would run
            code when it is read.
    """
    damaged: list[Path] = []
    while True:
        path = on_first_rank(lambda: tracker.saved(run.directory))[0]
        fault = _load(run, path, model, optimizer, scheduler)
        if not isinstance(fault, str):
            break
        damaged.append(path)
        aside = on_first_rank(functools.partial(tracker.put_aside, path))
        logger.warning("%s is damaged: %s. It is kept as %s.", path, fault, aside.name)
    logger.info("%s: resuming from %s", run.name, path)
    if damaged:
        logger.warning(
            "%s: iterations %d to %d are repeated",
            run.name,
            fault["iteration"] + 1,
            max(tracker.iteration_of(path) for path in damaged),
        )
    return fault


def _load(
    run: TrainingRun, path: Path, model: torch.nn.Module, optimizer: Any, scheduler: Any
) -> dict[str, Any] | str:
    """Load a checkpoint and return the run's state, or what is wrong with the checkpoint."""
    fault = on_first_rank(lambda: tracker.fault_of(path)) or whole.fault_of_contents(path)
    if fault is not None:
        return fault
    state = on_first_rank(lambda: run.state_at(path))
    try:
        checkpoint.load(path, model, optimizer, scheduler)
    except NotFiniteError as error:
        return str(error)
    return state
