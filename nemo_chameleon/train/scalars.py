"""Where a run writes its scalars for TensorBoard."""

from typing import Any

from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.logging import package_logger
from nemo_chameleon.utils.ranks import is_first_rank

logger = package_logger(__package__)


def scalars_writer(run: TrainingRun, iteration: int) -> Any:
    """Open the TensorBoard file of a run.

    Args:
        run: the run.
        iteration: number of iterations that are done.

    Returns:
        A SummaryWriter; None on other ranks than the first, and where no scalars are wanted or
        TensorBoard is not installed.
    """
    if not (run.config.logging.tensorboard and is_first_rank()):
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info(
            "no scalars are written, because TensorBoard is not installed: "
            "pip install nemo_chameleon[plots]"
        )
        return None
    # A killed run may have written scalars after its last checkpoint; they will be written again.
    purge = iteration + 1 if iteration else None
    return SummaryWriter(str(run.directory / "tensorboard"), purge_step=purge)
