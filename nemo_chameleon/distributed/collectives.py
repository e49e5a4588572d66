"""What one rank finds out for all of them."""

import contextlib
import os
import socket
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import torch.distributed as dist

from nemo_chameleon.distributed.processes import process_group, world_size
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.ranks import is_first_on_node, is_first_rank

T = TypeVar("T")
# True within `on_first_rank`, on the first rank.
_deciding = ContextVar("_deciding", default=False)


def on_first_rank(compute: Callable[[], T]) -> T:
    """Compute something on the first rank, and return it, or raise its UserError, on every rank.

    Decisions that follow from files are made this way: a slow file system, or another job at work
    in the same folder, may show different things to different ranks, and then some ranks would wait
    for the others for ever. Before the processes have met, each process computes for itself; so
    does a call within another one, which the other ranks take no part in.

    Args:
        compute: what the first rank calls; what it returns is pickled for the others.

    Raises:
        UserError: what `compute` raised on the first rank.
    """
    if _deciding.get() or not dist.is_initialized():
        return compute()
    # The result, the text of its UserError, and whether it failed in any other way.
    box: list[Any] = [None, None, False]
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


def first_rank_first(compute: Callable[[], T]) -> T:
    """Compute something on every rank, on the first rank before the others.

    The other ranks find in a cache what the first one left there. Before the processes have met,
    they meet for this call.
    """
    apart = world_size() > 1 and "RANK" in os.environ and not dist.is_initialized()
    made: list[T] = []
    with process_group() if apart else contextlib.nullcontext():
        on_first_rank(lambda: made.append(compute()))
        return made[0] if made else compute()


def ask_every_node(complain: Callable[[], str | None]) -> None:
    """Let one rank of every node but the first rank's look for a fault, and raise it on every rank.

    Every rank must call it.

    Args:
        complain: returns what is wrong on its node, or None.

    Raises:
        UserError: what a node complained of; a UserError that `complain` raises counts too.
    """
    complaint = None
    if is_first_on_node() and not is_first_rank():
        try:
            complaint = complain()
        except UserError as error:
            complaint = f"on {node_name()}: {error}"
    of_all: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_all, complaint)
    for of_one in of_all:
        if of_one is not None:
            raise UserError(of_one)


def node_name() -> str:
    """Return what this node is called: by SLURM, or else its host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
