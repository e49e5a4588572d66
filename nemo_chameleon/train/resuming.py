"""Loads the newest checkpoint that a run can continue from, and then puts damaged ones aside."""

from pathlib import Path
from typing import Any

import torch

from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.models import checkpoint, tracker, whole
from nemo_chameleon.models.finite import NotFiniteError
from nemo_chameleon.models.whole import DamagedError
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.logging import package_logger

logger = package_logger(__package__)


def resume(
    run: TrainingRun, model: torch.nn.Module, optimizer: Any, scheduler: Any
) -> dict[str, Any]:
    """Load the newest checkpoint that is whole; every rank must call it.

    A checkpoint that is damaged or not finite is named, and the one before it is loaded. Only when
    a whole one is loaded are the damaged ones renamed.

    Args:
        run: the run, which has a checkpoint.
        model: this rank's part of the model.
        optimizer: its optimizer.
        scheduler: its learning rate schedule.

    Returns:
        The state of the run at the checkpoint.

    Raises:
        UserError: no checkpoint is whole, the newest whole one is another run's, or one would run
            code when it is read or cannot be read on some node.
    """
    directory, faults = run.directory, dict[Path, str]()
    named = on_first_rank(lambda: tracker.tracked(directory)[1])
    for path in on_first_rank(lambda: tracker.saved(directory)):
        try:
            state = _load(run, path, model, optimizer, scheduler)
            break
        except DamagedError as error:
            faults[path] = str(error)
            logger.warning("%s is damaged: %s", path, error)
    else:
        raise UserError(tracker.none_whole(directory, faults))
    if named is None:
        logger.warning("%s is missing or damaged, and is written anew", directory / tracker.TRACKER)
    if path != named:
        for old, new in on_first_rank(lambda: tracker.put_aside(faults, path)):
            logger.warning("%s is kept as %s", old, new.name)
    logger.info("%s: resuming from %s", run.name, path)
    if faults:
        logger.warning(
            "%s: iterations %d to %d are repeated",
            run.name,
            state["iteration"] + 1,
            max(tracker.iteration_of(path) for path in faults),
        )
    return state


def _load(
    run: TrainingRun, path: Path, model: torch.nn.Module, optimizer: Any, scheduler: Any
) -> dict[str, Any]:
    """Load a checkpoint and return the run's state; raise a DamagedError if it is not whole."""
    fault = on_first_rank(lambda: tracker.fault_of(path)) or whole.fault_of_contents(path)
    if fault is not None:
        raise DamagedError(fault)
    state = on_first_rank(lambda: run.state_at(path))
    try:
        checkpoint.load(path, model, optimizer, scheduler)
    except NotFiniteError as error:
        raise DamagedError(str(error)) from error
    return state
