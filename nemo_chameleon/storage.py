"""What the nodes of a job see of each other's files: one storage, the same data.

One process a node looks: what every process does is done ten thousand times in a large job.
"""

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nemo_chameleon import parallel
from nemo_chameleon.domains import Domain
from nemo_chameleon.errors import UserError
from nemo_chameleon.schema import Config

# Longer than a network file system may go on to say that there is no such file, 60 seconds by
# default: the nodes may have looked for the folder before it was made.
_PATIENCE = 90  # seconds


def opened_once_a_node(open_them: Callable[[], dict[str, Domain]]) -> dict[str, Domain]:
    """Domains as the first rank opens them; the other nodes see to it that they have the same data.

    Data may lie on each node's own disk. Before the processes have met, each opens its own.

    Raises:
        UserError: as `open_them` on any node, or a node has other data than the first rank's.
    """
    if not dist.is_initialized():
        return open_them()
    domains = parallel.on_first_rank(open_them)

    def differs() -> str | None:
        for name, domain in open_them().items():
            if domain.fingerprint != domains[name].fingerprint:
                return (
                    f"domain {name!r} is other data on {_node()} than on the first rank's node: "
                    f"{domain.prefix}; copy it anew, or set its path to storage that every node "
                    "shares"
                )
        return None

    _ask_every_node(differs)
    return domains


def require_shared(config: Config) -> None:
    """Refuse nodes that do not share a run's folders.

    Checkpoints and Megatron's indices are written by some ranks and read by others. Every rank must
    call it.

    Raises:
        UserError: naming the key and a node, or a folder that cannot be written to.
    """
    folders = {"output": Path(config.output), "data.cache": Path(config.data.cache)}
    name = parallel.on_first_rank(lambda: f".seen-from-every-node-{secrets.token_hex(4)}")
    marks = {key: folder / name for key, folder in folders.items()}

    def leave() -> None:
        for key, mark in marks.items():
            try:
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.touch()
            except OSError as error:
                raise UserError(f"{key}={folders[key]} cannot be written to: {error}") from error

    def unseen() -> str | None:
        deadline = time.monotonic() + _PATIENCE
        for key, mark in marks.items():
            while not mark.exists():
                if time.monotonic() > deadline:
                    return (
                        f"{key}={folders[key]} on {_node()} is another folder than on the first "
                        f"rank's node: set {key} to one that every node shares"
                    )
                time.sleep(0.2)
        return None

    try:
        parallel.on_first_rank(leave)
        _ask_every_node(unseen)
    finally:
        if parallel.is_first_rank():
            for mark in marks.values():
                with contextlib.suppress(OSError):
                    mark.unlink()


def _node() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _ask_every_node(complain: Callable[[], str | None]) -> None:
    """Raise what any node but the first rank's complains of, on every rank."""
    complaint = None
    if os.environ.get("LOCAL_RANK", "0") == "0" and not parallel.is_first_rank():
        try:
            complaint = complain()
        except UserError as error:
            complaint = f"on {_node()}: {error}"
    of_all: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_all, complaint)
    for of_one in of_all:
        if of_one is not None:
            raise UserError(of_one)
