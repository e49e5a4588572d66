"""The processes of a job in parts of equal size, which train different models at the same time."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch.distributed import Store  # type: ignore[attr-defined]

from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.distributed.processes import process_group, shared_store, world_size
from nemo_chameleon.utils.preemption import StoppedError, listening

_POLL = 1.0  # seconds


@dataclass(frozen=True)
class Part:
    """The part of the job that this process belongs to.

    Attributes:
        index: of the part, counted from 0.
        count: number of parts.
        store: what the parts share.
        asked: returns whether this process was asked to stop.
    """

    index: int
    count: int
    store: Store
    asked: Callable[[], bool]

    def claimed(self, total: int) -> Iterator[int]:
        """Share out tasks: a part that is free gets the next one, until a part is asked to stop.

        Every process of a part must iterate.

        Args:
            total: number of tasks.

        Yields:
            The number of each task that this part is to do, below `total`.
        """

        def next_task() -> int:
            if self.asked():
                self.store.add("stopped", 1)
            if self.store.add("stopped", 0):
                return total
            return int(self.store.add("claimed", 1)) - 1

        while (task := on_first_rank(next_task)) < total:
            yield task

    def failed(self, errors: list[str]) -> None:
        """Tell all parts which of this part's tasks failed; its first process is enough.

        Args:
            errors: of the tasks.
        """
        self.store.set(f"failed/{self.index}", "; ".join(errors))

    def failures(self) -> list[str]:
        """Return the errors of all parts; call it after the block of `part_of_job`."""
        told = [f"failed/{index}" for index in range(self.count)]
        return [self.store.get(key).decode() for key in told if self.store.check([key])]


@contextlib.contextmanager
def part_of_job(size: int) -> Iterator[Part]:
    """Split the job's processes; inside the block, torch.distributed is this part's alone.

    Every process of the job must enter it, outside of any process group. None leaves it before all
    have come to its end, because torchrun ends all other processes when one ends with an error,
    also with that of a run that has stopped.

    Args:
        size: number of processes in a part, which divides the number of processes.

    Yields:
        The part of this process.

    Raises:
        StoppedError: a part was asked to stop; all that were asked have saved their state.
    """
    rank, ranks = int(os.environ.get("RANK", "0")), world_size()
    with listening() as asked:
        try:
            with process_group(size):
                store = shared_store()
                yield Part(rank // size, ranks // size, store, asked)
        except StoppedError:
            store.add("stopped", 1)
        _wait_for_all(store, "done", ranks)
        stopped = store.add("stopped", 0)
        # If the first process serves the store, it must be the last one that leaves.
        store.add("gone", 1)
        if rank == 0:
            _wait_for_all(store, "gone", ranks, arrive=False)
    if stopped:
        raise StoppedError("stopped as requested; the same command continues from there")


def _wait_for_all(store: Store, what: str, ranks: int, arrive: bool = True) -> None:
    count = store.add(what, int(arrive))
    while count < ranks:
        time.sleep(_POLL)
        count = store.add(what, 0)
