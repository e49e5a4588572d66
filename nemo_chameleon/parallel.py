"""Processes and how a model lies over them: start, layout, and who speaks."""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.optimizer.distrib_optimizer import HAVE_APEX_OR_TE

from nemo_chameleon.errors import UserError
from nemo_chameleon.schema import ParallelConfig, Run
from nemo_chameleon.stopping import StoppedError

T = TypeVar("T")
_deciding = ContextVar("_deciding", default=False)  # in on_first_rank, on the first rank

# While one rank indexes a large dataset the others wait in a barrier, longer than NCCL's default of
# ten minutes. A process that dies is torchrun's to notice, not this timeout's.
_TIMEOUT = timedelta(hours=2)
_stores: list[dist.Store] = []
# Set by srun, Open MPI and PMI for each of the processes that they start.
_LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def world_size() -> int:
    """Processes in the job, also before they have met."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device() -> torch.device:
    """Where this process computes."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def precision(wanted: str) -> torch.dtype:
    """The type of parameters and activations for train.precision."""
    if wanted == "bf16" or (wanted == "auto" and torch.cuda.is_available()):
        return torch.bfloat16
    return torch.float32


def check_device(run: Run, prefix: str = "") -> None:
    """Raise a UserError for what this machine, or what is installed on it, cannot do."""
    if run.optimizer.use_distributed_optimizer and not HAVE_APEX_OR_TE:
        # On PyTorch's Adam megatron-core saves its state, and fails to load it.
        raise UserError(
            f"{prefix}optimizer.use_distributed_optimizer needs Transformer Engine or NVIDIA's apex"
        )
    if torch.cuda.is_available():
        return
    if run.train.precision == "bf16":
        raise UserError(f"{prefix}train.precision=bf16 needs CUDA; use auto")
    if run.optimizer.use_distributed_optimizer:
        raise UserError(f"{prefix}optimizer.use_distributed_optimizer needs CUDA")
    pipeline = run.parallel.pipeline_model_parallel_size > 1
    if pipeline and run.model.share_embeddings_and_output_weights:
        raise UserError(
            f"{prefix}model.share_embeddings_and_output_weights under pipeline parallelism "
            "needs CUDA"
        )


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Let the job's processes meet; alone, without torchrun, a job of one.

    Leaves nothing behind that a host, whose processes meet after, would take for its own. Where
    they have met before, they stay together.

    Raises:
        UserError: several processes that were not started by torchrun.
    """
    if dist.is_initialized():
        yield
        return
    for variable in _LAUNCHERS if "RANK" not in os.environ else ():
        if int(os.environ.get(variable, "1")) > 1:
            raise UserError(
                f"{variable}={os.environ[variable]}, but RANK is not set: start one torchrun a "
                "node, which starts the processes"
            )
    cuda = torch.cuda.is_available()
    # Megatron asks for it under tensor parallelism, so that its collectives start in their order.
    connections = os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS")
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    else:
        from nemo_chameleon import cpu

        cpu.install()
    backend = "nccl" if cuda else "gloo"
    if "RANK" in os.environ:
        store, rank, ranks = next(dist.rendezvous("env://", timeout=_TIMEOUT))
        # torchrun's store outlives the group, and one that starts anew on it would read what this
        # one left: under a name of its own nobody does. Where there is none of torchrun's, the
        # first rank serves this one as long as it is kept.
        _stores.append(store)
        named = dist.PrefixStore(f"nemo_chameleon/{len(_stores)}", store)
        dist.init_process_group(backend, store=named, rank=rank, world_size=ranks, timeout=_TIMEOUT)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    over = False
    try:
        yield
        over = True
    except StoppedError:
        over = True  # which all ranks agreed on
        raise
    finally:
        # After an error the other ranks are elsewhere, and this would wait for them.
        if over or dist.get_world_size() == 1:
            dist.destroy_process_group()
        if connections is None:
            del os.environ["CUDA_DEVICE_MAX_CONNECTIONS"]
        # Or Megatron would keep the kind of tracker that was made here.
        tensor_parallel.random._CUDA_RNG_STATE_TRACKER_INITIALIZED = False


@contextlib.contextmanager
def layout(parallel: ParallelConfig, seed: int) -> Iterator[None]:
    """Megatron's parallel state for one model; another may follow with another layout."""
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
    )
    # The same on all tensor parallel ranks, so weights made on the CPU do not depend on them, and
    # another for each pipeline stage, as Megatron-LM has it, or stages would be copies.
    seed += 100 * parallel_state.get_pipeline_model_parallel_rank()
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        tensor_parallel.model_parallel_cuda_manual_seed(seed)
    else:
        from nemo_chameleon import cpu

        cpu.seed(seed)
    try:
        yield
        _close_groups()
    finally:
        parallel_state.destroy_model_parallel()
        gc.collect()  # a Megatron model and its configuration refer to each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _close_groups() -> None:
    """End the layout's process groups, with the threads, sockets and GPU memory that they hold.

    Megatron forgets them without ending them. Not after an error: the other ranks are elsewhere.
    """
    groups = {id(group): group for group in parallel_state._global_process_group_list or ()}
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # or what is still on its way would be cut off
    dist.barrier()
    for group in reversed(groups.values()):
        if group is not None:  # which stands for the group of all
            dist.destroy_process_group(group)


def over_stages(names: set[str]) -> set[str]:
    """The union of every pipeline stage's; all ranks of the layout must call it."""
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    of_all: list[Any] = [names] * stages
    if stages > 1:
        group = parallel_state.get_pipeline_model_parallel_group()
        dist.all_gather_object(of_all, names, group=group)
    return set().union(*of_all)


def is_first_rank() -> bool:
    """Whether this process is the one that writes files and speaks; so is one alone."""
    return not dist.is_initialized() or dist.get_rank() == 0


def say(text: str) -> None:
    """Print a line, once in the whole job."""
    if is_first_rank():
        print(text, flush=True)


def first_rank_first(compute: Callable[[], T]) -> T:
    """What every rank computes, the first one before the others.

    These find in a cache what it left there. Before the processes have met they meet for it.
    """
    apart = world_size() > 1 and "RANK" in os.environ and not dist.is_initialized()
    made: list[T] = []
    with processes() if apart else contextlib.nullcontext():
        on_first_rank(lambda: made.append(compute()))
        return made[0] if made else compute()


def on_first_rank(compute: Callable[[], T]) -> T:
    """What the first rank computes, or its UserError, on every rank.

    For what is decided by looking at files: a slow file system, or another job at work in the same
    folder, may show other things to other ranks, and then some would wait for the rest for ever.
    Before the processes have met it is computed where it is asked for; so it is within another one,
    which the other ranks have no part in.
    """
    if _deciding.get() or not dist.is_initialized():
        return compute()
    box: list[Any] = [
        None,
        None,
        False,
    ]  # given, its UserError, failed otherwise
    if is_first_rank():
        before = _deciding.set(True)
        try:
            box[0] = compute()
        except UserError as error:
            box[1] = str(error)
        except BaseException:
            dist.broadcast_object_list([None, None, True], src=0)
            raise
        finally:
            _deciding.reset(before)
    dist.broadcast_object_list(box, src=0)
    if box[2]:
        raise dist.DistError("the first rank failed")
    if box[1] is not None:
        raise UserError(box[1])
    result: T = box[0]
    return result
