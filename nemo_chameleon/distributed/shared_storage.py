"""Whether the nodes of a job share the folders of a run.

One process on each node looks. What every process does is done ten thousand times in a large job.
"""

import contextlib
import secrets
import time
from pathlib import Path

from nemo_chameleon.config.schema import Config
from nemo_chameleon.distributed.collectives import ask_every_node, node_name, on_first_rank
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.ranks import is_first_rank

# A network file system may go on saying that there is no such file for 60 seconds by default, where
# a node looked for the folder before it was made.
_PATIENCE = 90  # seconds


def require_shared(config: Config) -> None:
    """Refuse nodes that do not share a run's folders.

    Some ranks write checkpoints and Megatron's indices, and others read them. Every rank must call
    it.

    Raises:
        UserError: naming the key and a node that sees another folder, or a folder that cannot be
            written to.
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
                        f"{key}={folders[key]} on {node_name()} is another folder than on the "
                        f"first rank's node: set {key} to one that every node shares"
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
