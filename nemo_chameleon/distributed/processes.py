"""The processes of a job: their number, and the start and end of their process group."""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import tensor_parallel
from torch.distributed import HashStore, PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.parent import end_with_parent
from nemo_chameleon.utils.preemption import StoppedError

# While one rank indexes a large dataset, the others wait in a barrier, longer than the ten minutes
# of NCCL's default. This timeout need not detect a process that dies, because torchrun does.
_TIMEOUT = timedelta(hours=2)
_stores: list[Store] = []
# srun, Open MPI and PMI set one of these for each process that they start.
_LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def world_size() -> int:
    """Return the number of processes in the job, also before torch.distributed is initialised."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def shared_store() -> Store:
    """Return a store for all processes of the job; call it within `process_group`.

    Every `process_group` has a new one, which is empty at first.
    """
    return PrefixStore(f"nemo_chameleon/{len(_stores)}/shared", _stores[-1])


@contextlib.contextmanager
def process_group(size: int | None = None) -> Iterator[None]:
    """Initialise torch.distributed for the block, unless it is initialised already.

    From then on this process ends when torchrun is killed, and its helpers end with it. A process
    that torchrun did not start is a job of one process. Afterwards nothing is left that would
    disturb a host which then initialises torch.distributed for itself.

    Args:
        size: the job's processes form groups of this size, by rank; None: one group of all.

    Yields:
        Nothing.

    Raises:
        UserError: several processes were started by something other than torchrun.
        StoppedError: the block raised it.
    """
    if dist.is_initialized():
        yield
        return
    for variable in _LAUNCHERS if "RANK" not in os.environ else ():
        if int(os.environ.get(variable, "1")) > 1:
            raise UserError(
                f"{variable}={os.environ[variable]}, but RANK is not set: start one torchrun per "
                "node, which starts the processes"
            )
    end_with_parent()
    cuda = torch.cuda.is_available()
    # Megatron requires this under tensor parallelism, so that collectives start in order.
    connections = os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS")
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    else:
        from nemo_chameleon.distributed import megatron_on_cpu

        megatron_on_cpu.install()
    backend = "nccl" if cuda else "gloo"
    if "RANK" in os.environ:
        store, rank, ranks = next(rendezvous("env://", timeout=_TIMEOUT))
        group, rank = divmod(rank, size or ranks)
        # torchrun's store outlives the process group, and a second group on the same store would
        # read the first one's entries. Each group therefore has its own prefix. If torchrun serves
        # no store, the first rank does, and must keep it in `_stores` until the job ends.
        _stores.append(store)
        named = PrefixStore(f"nemo_chameleon/{len(_stores)}/{group}", store)
        dist.init_process_group(
            backend, store=named, rank=rank, world_size=size or ranks, timeout=_TIMEOUT
        )
    else:
        _stores.append(HashStore())
        dist.init_process_group(backend, store=_stores[-1], rank=0, world_size=1)
    over = False
    try:
        yield
        over = True
    except StoppedError:
        over = True  # all ranks agreed to stop
        raise
    finally:
        # After an error the other ranks may be elsewhere, and this call would wait for them.
        if over or dist.get_world_size() == 1:
            dist.destroy_process_group()
        if connections is None:
            del os.environ["CUDA_DEVICE_MAX_CONNECTIONS"]
        # Otherwise Megatron would keep using the random state tracker that was made here.
        tensor_parallel.random._CUDA_RNG_STATE_TRACKER_INITIALIZED = False
