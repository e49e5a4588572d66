"""Domains opened once on each node, and the nodes' data compared."""

from collections.abc import Callable

import torch.distributed as dist

from nemo_chameleon.data.domain import Domain
from nemo_chameleon.distributed.collectives import ask_every_node, node_name, on_first_rank


def opened_once_a_node(open_them: Callable[[], dict[str, Domain]]) -> dict[str, Domain]:
    """Return domains as the first rank opens them, after every other node has compared its own.

    Data may lie on each node's own disk. Before the processes have met, each process opens its own.

    Args:
        open_them: opens the domains on this process.

    Raises:
        UserError: as `open_them` raises it on any node, or a node has other data than the first
            rank's node.
    """
    if not dist.is_initialized():
        return open_them()
    domains = on_first_rank(open_them)

    def differs() -> str | None:
        for name, domain in open_them().items():
            if domain.fingerprint != domains[name].fingerprint:
                return (
                    f"domain {name!r} is other data on {node_name()} than on the first rank's "
                    f"node: {domain.prefix}; copy it anew, or set its path to storage that every "
                    "node shares"
                )
        return None

    ask_every_node(differs)
    return domains
