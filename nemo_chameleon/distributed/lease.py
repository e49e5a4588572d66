"""A lease on what a run writes, so that two jobs never write the same files.

The lease is a small file that names its owner: node, process, job and time. The owner renews it
every few seconds by setting its modification time. It needs hard links or exclusive creation and
atomic renaming, which NFS and Lustre have, and no locks. It ends with its owner:

- On the owner's own node it has ended as soon as the process has ended.
- On another node it has ended when it was not renewed for a minute. The age is measured by the
  clock of the file server alone: the modification time of a file that was touched just now is
  compared with that of the lease.

An owner that was suspended for longer than that may lose its lease. It calls `Lease.require` before
it writes, which raises an error if the lease names another process.
"""

import contextlib
import dataclasses
import errno
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from nemo_chameleon.distributed.collectives import node_name, on_first_rank
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.logging import package_logger
from nemo_chameleon.utils.ranks import is_first_rank

logger = package_logger(__package__)

PERIOD = 5.0
"""Seconds between two renewals."""
LIFETIME = 60.0
"""Seconds without a renewal after which a lease on another node has ended."""
_SETTLING = 2.0  # seconds that another process may need from its last look to taking a lease over


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
    """

    host: str
    boot: str
    namespace: str
    process: int
    started: str
    job: str
    since: str
    token: str

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


class Lease:
    """A lease of this process; `take` it, `require` it before each write, and `release` it."""

    def __init__(self, path: Path, what: str, remedy: str) -> None:
        """Make a lease that is not taken yet.

        Args:
            path: the file of the lease.
            what: what it is a lease on, for messages.
            remedy: what a user can do instead of waiting, for messages.
        """
        self.path, self.what, self.remedy = path, what, remedy
        self._own = ""
        self._renewed = 0.0
        self._over = threading.Event()

    def take(self) -> None:
        """Take the lease, and renew it in a thread from then on.

        If the owner is a process of another node that may have been killed, this waits for up to
        a minute.

        Raises:
            UserError: a process that lives has the lease, or its file cannot be written.
        """
        owner = Owner.here()
        self._own = json.dumps(dataclasses.asdict(owner)) + "\n"
        beside = self.path.with_name(f"{self.path.name}.{owner.token}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(self._own)
            try:
                while not self._put(beside):
                    self._wait_for_its_end(beside)
            finally:
                beside.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{self.what}: cannot write {self.path}: {error}") from error
        self._renewed = time.monotonic()
        self._over.clear()
        threading.Thread(target=self._keep_renewing, name="lease", daemon=True).start()

    def require(self) -> None:
        """Check that this process still has the lease; call it before each write.

        Raises:
            UserError: another process has taken it over, or its file is gone.
        """
        if time.monotonic() - self._renewed > LIFETIME / 2:
            # This process was suspended. Another one may have found just now that the lease ended.
            with contextlib.suppress(OSError):
                self._renew()
            time.sleep(_SETTLING)
        found = _found(self.path)
        if found is None or found[0] != self._own:
            other = None if found is None else Owner.read(found[0])
            raise UserError(
                f"{self.what} is no longer this run's: "
                + (f"{self.path} is gone" if found is None else f"{other or self.path} has it")
                + "; this run was suspended or its file was removed, so it stops and writes nothing"
            )

    def release(self) -> None:
        """Give the lease up, if this process still has it."""
        self._over.set()
        with contextlib.suppress(OSError):
            found = _found(self.path)
            if found is not None and found[0] == self._own:
                self.path.unlink()

    def _put(self, beside: Path) -> bool:
        """Make the lease if there is none, and return whether it is this owner's."""
        try:
            os.link(beside, self.path)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            with contextlib.suppress(FileExistsError), self.path.open("x") as stream:
                stream.write(self._own)  # the file system has no hard links
        # NFS may report a link as existing that it has just made.
        found = _found(self.path)
        return found is not None and found[0] == self._own

    def _wait_for_its_end(self, beside: Path) -> None:
        """Return when there may be no lease any more.

        Raises:
            UserError: the owner lives.
        """
        first = _found(self.path)
        if first is None:
            return
        owner = Owner.read(first[0])
        ended = None if owner is None else owner.has_ended()
        if ended is None:
            logger.info(
                "%s was in use by %s: waiting up to %.0f s to see whether that has ended",
                self.what,
                owner or "an unknown process",
                LIFETIME,
            )
        begun, found = time.monotonic(), first
        while ended is None and found == first:
            os.utime(beside)
            age, watched = beside.stat().st_mtime - first[1], time.monotonic() - begun
            # After a file server was away for a while, renewals reach it again only now.
            if watched > LIFETIME or (age > LIFETIME and watched > 2 * PERIOD):
                ended = True
            else:
                time.sleep(min(1.0, PERIOD))
                now = _found(self.path)
                if now is None:
                    return
                found = now
        if not ended:
            raise UserError(
                f"{self.what} is in use by {Owner.read(found[0]) or 'another process'}: wait until "
                f"that has ended, or {self.remedy}"
            )
        self._remove(first)

    def _remove(self, ended: tuple[str, float]) -> None:
        """Remove a lease that has ended, unless another process has taken it over meanwhile."""
        aside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(8)}.ended")
        if _found(self.path) != ended:
            return
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        if _found(aside) != ended:  # this is the lease of the process that was quicker
            try:
                os.link(aside, self.path)
            except FileExistsError:  # that process finds out when it requires its lease
                pass
            except OSError:
                aside.rename(self.path)
        aside.unlink(missing_ok=True)

    def _keep_renewing(self) -> None:
        while not self._over.wait(PERIOD):
            with contextlib.suppress(OSError):  # the next renewal may succeed
                self._renew()

    def _renew(self) -> None:
        with self.path.open("r+", errors="replace") as stream:
            if stream.read() == self._own:
                os.utime(stream.fileno())  # the file that was read, even if it was renamed since
                self._renewed = time.monotonic()


@contextlib.contextmanager
def owned(path: Path, what: str, remedy: str) -> Iterator[Callable[[], None]]:
    """Hold a lease for the job inside the block; every rank must enter it.

    Args:
        path: the file of the lease, in a folder that all nodes share.
        what: what it is a lease on, for messages.
        remedy: what a user can do instead of waiting, for messages.

    Yields:
        A function that every rank must call before the job writes; it raises a UserError on all of
        them if the job has lost its lease.

    Raises:
        UserError: another job has the lease.
    """
    lease = Lease(path, what, remedy)
    try:
        on_first_rank(lease.take)
        yield lambda: on_first_rank(lease.require)
    finally:
        if is_first_rank():
            lease.release()


def _found(path: Path) -> tuple[str, float] | None:
    """Return the contents of a lease and when it was renewed; None if there is none."""
    # A network file system asks its server again when a file is opened, and not for each stat.
    try:
        with path.open(errors="replace") as stream:
            return stream.read(), os.fstat(stream.fileno()).st_mtime
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return None


def _state_and_start(process: int) -> tuple[str, str]:
    """Return the state of a process, and when it started."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return fields[0], fields[19]
