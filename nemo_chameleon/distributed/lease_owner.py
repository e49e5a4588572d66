"""The process that owns a lease, and whether it has ended."""

import dataclasses
import json
import os
import secrets
from datetime import datetime
from pathlib import Path

from nemo_chameleon.distributed.collectives import node_name


@dataclasses.dataclass(frozen=True)
class Owner:
    """The process that owns a lease.

    Attributes:
        host: the node.
        boot: identifies the start of the node's kernel.
        namespace: of the process ids, which differs between containers.
        process: the process id.
        started: when the process started, in ticks since the start of the kernel.
        job: the number of its SLURM job, or "".
        since: when it took the lease, by its node's clock; only messages use it.
        token: a random text that no other owner has.
        inode: the number of the lease's file; 0 in a lease of an earlier version.
    """

    host: str
    boot: str
    namespace: str
    process: int
    started: str
    job: str
    since: str
    token: str
    inode: int = 0

    @classmethod
    def here(cls) -> "Owner":
        """Return this process as an owner."""
        return cls(
            node_name(),
            Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            str(Path("/proc/self/ns/pid").readlink()),
            os.getpid(),
            _state_and_start(os.getpid())[1],
            os.environ.get("SLURM_JOB_ID", ""),
            datetime.now().isoformat(sep=" ", timespec="seconds"),
            secrets.token_hex(8),
        )

    @classmethod
    def read(cls, text: str) -> "Owner | None":
        """Return the owner that a lease names; None for a lease that was not written completely."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def has_ended(self) -> bool | None:
        """Return whether the process has ended; None if one cannot tell from this node."""
        own = Owner.here()
        for name in ("host", "boot", "namespace"):
            if getattr(self, name) != getattr(own, name):
                return None
        try:
            state, started = _state_and_start(self.process)
        except OSError:  # it has ended, or /proc does not show the processes of other users
            try:
                os.kill(self.process, 0)
            except ProcessLookupError:
                return True
            except PermissionError:
                pass
            return False
        return state in ("Z", "X") or started != self.started

    def __str__(self) -> str:
        job = f", SLURM job {self.job}," if self.job else ""
        return f"process {self.process} on {self.host}{job} since {self.since}"


def _state_and_start(process: int) -> tuple[str, str]:
    """Return the state of a process, and when it started."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return fields[0], fields[19]
