"""Collective calls by which one rank computes or decides something for all ranks."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterable
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
    """Compute something on the first rank only, and return it on every rank.

    Decisions that depend on files are made this way. A slow file system, or another job in the same
    folder, may show different files to different ranks; if they then decided differently, some
    would wait for the others for ever. All ranks must call it. Before torch.distributed is
    initialised every process computes for itself, and so does the first rank in a nested call,
    in which the other ranks take no part.

    Args:
        compute: the function that the first rank calls. Its result is pickled for the others.

    Returns:
        What `compute` returned on the first rank.

    Raises:
        UserError: `compute` raised it on the first rank; every rank raises it.
        DistError: `compute` failed in another way on the first rank; the other ranks raise this.
    """
    if _deciding.get() or not dist.is_initialized():
        return compute()
    # The result, the text of a UserError, and whether `compute` failed in any other way.
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
    """Compute something on the first rank, and then on the others.

    The other ranks can then use the files that the first one has cached. In a job of several
    processes torch.distributed is initialised for this call if it is not yet.

    Args:
        compute: the function that every rank calls.

    Returns:
        What `compute` returned on this rank.

    Raises:
        UserError: `compute` raised it.
    """
    apart = world_size() > 1 and "RANK" in os.environ and not dist.is_initialized()
    made: list[T] = []
    with process_group() if apart else contextlib.nullcontext():
        on_first_rank(lambda: made.append(compute()))
        return made[0] if made else compute()


def on_every_rank(compute: Callable[[], T]) -> list[T]:
    """Compute something on each rank, and return what all of them found on every rank.

    All ranks must call it. Before torch.distributed is initialised there is one rank.

    Args:
        compute: the function that every rank calls. Its result is pickled for the others.

    Returns:
        What `compute` returned, by rank.

    Raises:
        UserError: `compute` raised it on a rank; every rank raises that of the first such rank.
        DistError: `compute` failed in another way on a rank; the other ranks raise this.
    """
    if not dist.is_initialized():
        return [compute()]
    # The result, the text of a UserError, and whether `compute` failed in any other way.
    box: list[Any] = [None, None, False]
    of_all: list[Any] = [None] * dist.get_world_size()
    try:
        box[0] = compute()
    except UserError as error:
        box[1] = str(error)
    except BaseException:
        dist.all_gather_object(of_all, [None, None, True])
        raise
    dist.all_gather_object(of_all, box)
    for number, (_, trouble, failed) in enumerate(of_all):
        if failed:
            raise dist.DistError(f"rank {number} failed")
        if trouble is not None:
            raise UserError(trouble)
    return [found for found, _, _ in of_all]


def share_of_rank(items: Iterable[T]) -> list[T]:
    """Return the part of some work that this rank does, where all ranks do it together.

    Args:
        items: the work, the same on every rank.

    Returns:
        Every n-th item, on n ranks; all of them before torch.distributed is initialised.
    """
    if not dist.is_initialized():
        return [*items]
    return [*items][dist.get_rank() :: dist.get_world_size()]


def ask_every_node(complain: Callable[[], str | None]) -> None:
    """Let one rank per node check the node, and raise what it finds on every rank.

    The node of the first rank is not checked. Every rank must call this.

    Args:
        complain: returns what is wrong on its node, or None; it may also raise a UserError.

    Raises:
        UserError: something is wrong on a node.
    """

    def ask() -> None:
        if not is_first_on_node() or is_first_rank():
            return
        try:
            complaint = complain()
        except UserError as error:
            complaint = f"on {node_name()}: {error}"
        if complaint is not None:
            raise UserError(complaint)

    on_every_rank(ask)


def node_name() -> str:
    """Return the name of this node: SLURM's name, or else the host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
