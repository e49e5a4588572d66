"""The processes of a job in parts of equal size, which train different models at the same time."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from torch.distributed import Store  # type: ignore[attr-defined]

from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.distributed.processes import process_group, shared_store, world_size
from nemo_chameleon.utils.preemption import StoppedError, listening
from nemo_chameleon.utils.ranks import is_first_rank

_POLL = 2.0  # seconds


@dataclass(frozen=True)
class Part:
    """The part of the job that this process belongs to.

    Attributes:
        index: of the part, counted from 0.
        count: number of parts.
        store: what the parts share.
    """

    index: int
    count: int
    store: Store

    def claimed(self, total: int) -> Iterator[int]:
        """Share out tasks: a part that is free gets the next one.

        Every process of a part must iterate.

        Args:
            total: number of tasks.

        Yields:
            The number of each task that this part is to do, below `total`.
        """
        while True:
            task = on_first_rank(lambda: self.store.add("claimed", 1) - 1)
            if task >= total:
                return
            yield task


@contextlib.contextmanager
def part_of_job(size: int) -> Iterator[Part]:
    """Split the job's processes; inside the block, torch.distributed is this part's alone.

    Every process of the job must enter it, outside of any process group. None leaves it before all
    parts are done, because torchrun waits only minutes for the other nodes when one has ended.

    Args:
        size: number of processes in a part, which divides the number of processes.

    Yields:
        The part of this process.

    Raises:
        StoppedError: the job was asked to stop while this part waited for others.
    """
    rank_in_job, count = int(os.environ.get("RANK", "0")), world_size() // size
    with process_group(size):
        store = shared_store()
        yield Part(rank_in_job // size, count, store)
        if is_first_rank():
            store.add("left", 1)
    with listening() as asked:
        while store.add("left", 0) < count:
            if asked():
                raise StoppedError("stopped as requested; the same command continues from there")
            time.sleep(_POLL)
