"""Opens domains once on each node and checks that all nodes have the same data.

Each node may have its own copy of the data on its own disk. Every rank uses the domains as the
first rank opened them.
"""

from collections.abc import Callable

import torch.distributed as dist

from nemo_chameleon.data.domain import Domain
from nemo_chameleon.data.parts import shown
from nemo_chameleon.distributed.collectives import ask_every_node, node_name, on_first_rank


def opened_once_a_node(open_them: Callable[[], dict[str, Domain]]) -> dict[str, Domain]:
    """Open domains on the first rank, and compare them with what every other node has.

    Every rank must call it. Before the processes have met, each process opens its own domains.

    Args:
        open_them: opens the domains on this process, by name.

    Returns:
        The domains by name, as the first rank opened them.

    Raises:
        UserError: `open_them` raised it on some node, or a node's data differ from the data on the
            first rank's node.
    """
    if not dist.is_initialized():
        return open_them()
    domains = on_first_rank(open_them)

    def differs() -> str | None:
        for name, domain in open_them().items():
            if domain.fingerprint != domains[name].fingerprint:
                first = domains[name].sources
                others = [path for part, path in domain.sources.items() if part not in first]
                return (
                    f"domain {name!r} has other data on {node_name()} than on the first rank's "
                    f"node: {shown(others or domain.path)}; copy the files again, or set "
                    f"data.domains.{name}.path to storage that every node shares"
                )
        return None

    ask_every_node(differs)
    return domains
