"""The layout of a model over the processes: Megatron's parallel state, set up and torn down."""

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from nemo_chameleon.config.schema import ParallelConfig


@contextlib.contextmanager
def model_parallel(parallel: ParallelConfig, seed: int) -> Iterator[None]:
    """Set up Megatron's parallel state for one model inside the block.

    The layout's process groups end with the block, so that another model may follow with another
    layout. Every rank must enter it.

    Args:
        parallel: tensor and pipeline parallel sizes.
        seed: of the random states that initial weights are made from.

    Yields:
        Nothing.
    """
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
    )
    # All tensor parallel ranks have the same seed, so that weights made on the CPU do not depend on
    # the number of ranks. Pipeline stages have different seeds, as in Megatron-LM; otherwise their
    # weights would be the same.
    seed += 100 * parallel_state.get_pipeline_model_parallel_rank()
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        tensor_parallel.model_parallel_cuda_manual_seed(seed)
    else:
        from nemo_chameleon.distributed import megatron_on_cpu

        megatron_on_cpu.seed(seed)
    try:
        yield
        _close_groups()
    finally:
        parallel_state.destroy_model_parallel()
        gc.collect()  # a Megatron model and its configuration refer to each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _close_groups() -> None:
    """End the layout's process groups, with their threads, sockets and GPU memory.

    Megatron drops its references to the groups without ending them. This is a collective call, so
    it is not made after an error, when the other ranks may be doing something else.
    """
    groups = {id(group): group for group in parallel_state._global_process_group_list or ()}
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # queued work must finish before its group ends
    dist.barrier()
    for group in reversed(groups.values()):
        if group is not None:  # None means the group of all ranks
            dist.destroy_process_group(group)


def union_over_stages(names: set[str]) -> set[str]:
    """Return the union of the names on all pipeline stages; all ranks of the layout must call it.

    Args:
        names: the names on this rank's stage.

    Returns:
        The names on all stages, the same on every rank.
    """
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    of_all: list[Any] = [names] * stages
    if stages > 1:
        group = parallel_state.get_pipeline_model_parallel_group()
        dist.all_gather_object(of_all, names, group=group)
    return set().union(*of_all)
