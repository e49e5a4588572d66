"""The rank of this process in its job, also before torch.distributed is initialised."""

import os
import sys

# The variables of torchrun, of srun, and of Lightning's launcher, which numbers the nodes and the
# processes of each node.
_LAUNCHERS = (("RANK",), ("SLURM_PROCID",), ("NODE_RANK", "LOCAL_RANK"))


def rank() -> int:
    """Return this process's rank, counted from 0.

    The rank comes from torch.distributed once that is initialised, and before that from the
    environment variables of torchrun, srun or Lightning. Lightning's variables only tell whether
    the rank is 0; any other process gets some positive number. Without a launcher the rank is 0.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank())
    for variables in _LAUNCHERS:
        numbers = [os.environ[name] for name in variables if os.environ.get(name, "").isdecimal()]
        if numbers:  # the process for which all variables are zero is the first one
            return max(map(int, numbers))
    return 0


def is_first_rank() -> bool:
    """Return whether this process has rank 0 and so writes files and logs for the whole job."""
    return rank() == 0


def is_first_on_node() -> bool:
    """Return whether this process is the first one that torchrun started on this node."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
