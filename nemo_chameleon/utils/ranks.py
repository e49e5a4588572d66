"""Which of the job's processes this one is, also before the processes have met."""

import os
import sys

# torchrun; srun; Lightning's own launcher, which counts nodes and the processes of each.
_LAUNCHERS = (("RANK",), ("SLURM_PROCID",), ("NODE_RANK", "LOCAL_RANK"))


def rank() -> int:
    """Return this process's rank, counted from 0.

    Once torch.distributed has been initialised its rank counts. Before that the environment
    variables of torchrun, srun and Lightning say it; a process that nobody launched has rank 0.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank())
    for variables in _LAUNCHERS:
        if any(variable in os.environ for variable in variables):
            # Of several variables only "all are zero" matters: that process is the first one.
            return max(int(os.environ.get(variable, "0")) for variable in variables)
    return 0


def is_first_rank() -> bool:
    """Return whether this process is the one that writes files and logs for the whole job."""
    return rank() == 0


def is_first_on_node() -> bool:
    """Return whether this process is the first of those that torchrun started on this node."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
