"""Check that the nodes of a job share the folders of a run.

Only one process per node looks, because a large job has ten thousand processes.
"""

import contextlib
import secrets
import time
from pathlib import Path

from nemo_chameleon.config.schema import Config
from nemo_chameleon.distributed.collectives import ask_every_node, node_name, on_first_rank
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.ranks import is_first_rank

# If a node has looked for a folder before it was made, a network file system may by default report
# for another 60 seconds that it does not exist.
_PATIENCE = 90  # seconds


def require_shared(config: Config) -> None:
    """Check that all nodes share a run's folders.

    Some ranks write checkpoints and Megatron's indices, and other ranks read them. Every rank must
    call this.

    Args:
        config: the whole configuration.

    Raises:
        UserError: a node sees another folder, or a folder cannot be written to; the error names the
            key and the node.
    """
    folders = {"output": Path(config.output), "data.cache": Path(config.data.cache)}
    name = on_first_rank(lambda: f".seen-from-every-node-{secrets.token_hex(4)}")
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
                        f"{key}={folders[key]} on {node_name()} is a different folder from that on "
                        f"the first rank's node: set {key} to one that every node shares"
                    )
                time.sleep(0.2)
        return None

    try:
        on_first_rank(leave)
        ask_every_node(unseen)
    finally:
        if is_first_rank():
            for mark in marks.values():
                with contextlib.suppress(OSError):
                    mark.unlink()
