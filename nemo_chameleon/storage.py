"""What the nodes of a job see of each other's files: one storage, the same data."""

import os
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nemo_chameleon import parallel
from nemo_chameleon.domains import Domain
from nemo_chameleon.errors import UserError
from nemo_chameleon.schema import Config

_PATIENCE = 30  # seconds that a network file system may take to show a new file elsewhere


def require_same(config: Config, domains: Mapping[str, Domain]) -> None:
    """Refuse nodes that do not share a run's folders, or that read other data than the first one.

    Checkpoints and Megatron's indices are written by some ranks and read by others; data may lie on
    each node's own disk, if it is the same. Every rank must call it; one alone, outside of
    `parallel.processes`, is not looked at.

    Raises:
        UserError: naming the key and the nodes, or a folder that cannot be written to.
    """
    if not dist.is_initialized():
        return
    folders = {"output": Path(config.output), "data.cache": Path(config.data.cache)}
    name = f".seen-from-every-node-{secrets.token_hex(4)}"
    marks = parallel.on_first_rank(
        lambda: {key: str(_mark(key, folder / name)) for key, folder in folders.items()}
    )
    try:
        prints = {name: domain.fingerprint for name, domain in domains.items()}
        # One process a node looks.
        looks = os.environ.get("LOCAL_RANK", "0") == "0"
        node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        seen = (node, _unseen(marks), prints) if looks else None
        of_all: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(of_all, seen)
    finally:
        if parallel.is_first_rank():
            for mark in marks.values():
                Path(mark).unlink(missing_ok=True)
    first, *others = [seen for seen in of_all if seen is not None]
    for node, unseen, its in others:
        for key in unseen:
            raise UserError(
                f"{key}={folders[key]} on {node} is another folder than on {first[0]}: set {key} "
                "to a folder that every node shares"
            )
        for domain, fingerprint in its.items():
            if fingerprint != first[2][domain]:
                raise UserError(
                    f"domain {domain!r} is other data on {node} than on {first[0]}: "
                    f"{domains[domain].prefix}; copy it anew, or set its path to storage that "
                    "every node shares"
                )


def _mark(key: str, mark: Path) -> Path:
    """Leave a file for the others to see."""
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise UserError(f"{key}={mark.parent} cannot be written to: {error}") from error
    return mark


def _unseen(marks: Mapping[str, str]) -> list[str]:
    """Keys of the folders that have no such file, wherever this process looks at them."""
    deadline = time.monotonic() + _PATIENCE
    unseen = list(marks)
    while True:
        unseen = [key for key in unseen if not Path(marks[key]).exists()]
        if not unseen or time.monotonic() > deadline:
            return unseen
        time.sleep(0.2)
