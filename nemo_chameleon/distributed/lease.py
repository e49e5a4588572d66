"""A lease on what a run writes, so that two jobs never write the same files.

The lease is a small file that names its owner: node, process, job and time. The owner renews it
every few seconds by setting its modification time. It needs hard links or exclusive creation and
atomic renaming, which NFS and Lustre have, and no locks. It ends with its owner:

- On the owner's own node it has ended as soon as the process has ended.
- On another node it has ended when it was not renewed for a minute. A job looks at it for as long,
  or for two renewals if its modification time is that much older than that of a file that the job
  touches just now. The file system's clock sets both times; a file system that takes them from the
  nodes needs clocks that agree to a minute. A renewal that comes meanwhile counts anyway.
- A copy, as in a copied folder, is told by the number of its file, and counts as on another node.

An owner that was suspended for longer than that may lose its lease. It calls `Lease.require` before
it writes, which raises an error if the lease names another process. A lease whose file was lost is
made again.
"""

import contextlib
import dataclasses
import errno
import json
import math
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nemo_chameleon.distributed import lease_file
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.distributed.lease_file import Found, look
from nemo_chameleon.distributed.lease_owner import Owner
from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.logging import package_logger
from nemo_chameleon.utils.ranks import is_first_rank

logger = package_logger(__package__)

PERIOD = 5.0
"""Seconds between two renewals."""
LIFETIME = 60.0
"""Seconds without a renewal after which a lease on another node has ended."""
_OF_JOBS = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1}
"""Signals that all processes of a job may get."""
_SETTLING = 2.0  # seconds that another process may need from its last look to taking a lease over


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
        self._owner: Owner | None = None
        self._renewed = 0.0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._helper: subprocess.Popen[bytes] | None = None

    def take(self) -> None:
        """Take the lease, and renew it in a thread from then on.

        If the owner is a process of another node that may have been killed, this waits for up to
        a minute.

        Raises:
            UserError: a process that lives has the lease, or its file cannot be written.
        """
        self._owner = Owner.here()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._beside() as beside:
                while not self._put(beside):
                    self._wait_for_its_end(beside)
        except OSError as error:
            raise UserError(f"{self.what}: cannot write {self.path}: {error}") from error
        self._renewed = time.monotonic()
        self._over.clear()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)
        self._thread.start()
        self._start_helper()

    def require(self) -> None:
        """Check that this process still has the lease; call it before each write.

        Raises:
            UserError: another process has taken it over, or its file is gone or cannot be read for
                half a minute and another process may have had the lease meanwhile.
        """
        if time.monotonic() - self._renewed > LIFETIME / 2:
            # This process was suspended. Another one may have found just now that the lease ended.
            with contextlib.suppress(OSError):
                self._renew()
            time.sleep(_SETTLING)
        begun = time.monotonic()
        while (fault := self._fault()) is not None:
            if time.monotonic() - begun > LIFETIME / 2:
                raise UserError(
                    f"{self.what} may be another run's by now: {fault}, for {LIFETIME / 2:.0f} s; "
                    "so this run stops and writes nothing, and the same command continues it"
                )
            time.sleep(min(1.0, PERIOD))
            with contextlib.suppress(OSError):
                self._renew()

    def _fault(self) -> str | None:
        """Return why it is not known that this process has the lease; None if it has it.

        Raises:
            UserError: another process has it.
        """
        try:
            found = look(self.path)
        except OSError as error:
            return f"{self.path} cannot be read: {error}"
        if found is None:
            return f"{self.path} is gone"
        if self._token in found.text:
            return None
        other = Owner.read(found.text)
        if other is None:
            return f"{self.path} names no owner"
        raise UserError(
            f"{self.what} is no longer this run's: {other} has it; this run was suspended or "
            f"{self.path} was removed, so it stops and writes nothing"
        )

    def release(self) -> None:
        """Give the lease up, if this process still has it."""
        self._over.set()
        if self._helper is not None:
            self._helper.kill()
            self._helper.wait()
        if self._thread is not None:
            self._thread.join()  # it would make the lease again
        with contextlib.suppress(OSError):
            found = look(self.path)
            if found is not None and self._token in found.text:
                self.path.unlink()

    @property
    def _token(self) -> str:
        # No file has the text of a lease that was never taken.
        return "\0" if self._owner is None else self._owner.token

    @contextlib.contextmanager
    def _beside(self) -> Iterator[Path]:
        """Write the lease into a file beside its place."""
        beside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(8)}")
        try:
            self._write(beside)
            yield beside
        finally:
            beside.unlink(missing_ok=True)

    def _write(self, path: Path) -> None:
        assert self._owner is not None, "it is being taken, or was taken"
        with path.open("x") as stream:
            inode = os.fstat(stream.fileno()).st_ino
            owner = dataclasses.replace(self._owner, inode=inode)
            stream.write(json.dumps(dataclasses.asdict(owner)) + "\n")

    def _put(self, beside: Path) -> bool:
        """Make the lease if there is none, and return whether it is this owner's."""
        try:
            os.link(beside, self.path)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            with contextlib.suppress(FileExistsError):
                self._write(self.path)  # the file system has no hard links
        # NFS may report a link as existing that it has just made.
        found = look(self.path)
        return found is not None and self._token in found.text

    def _wait_for_its_end(self, beside: Path) -> None:
        """Return when there may be no lease any more.

        Raises:
            UserError: the owner lives.
        """
        first = look(self.path)
        if first is None:
            return
        owner = Owner.read(first.text)
        copied = owner is not None and owner.inode not in (0, first.inode)
        ended = None if owner is None or copied else owner.has_ended()
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
            age, watched = beside.stat().st_mtime - first.renewed, time.monotonic() - begun
            # After a file server was away for a while, renewals reach it again only now.
            if watched > LIFETIME or (age > LIFETIME and watched > 2 * PERIOD):
                ended = True
            else:
                time.sleep(min(1.0, PERIOD))
                now = look(self.path)
                if now is None:
                    return
                found = now
        if not ended:
            raise UserError(
                f"{self.what} is in use by {Owner.read(found.text) or 'another process'}: wait "
                f"until that has ended, or {self.remedy}"
            )
        self._remove(first)

    def _remove(self, ended: Found) -> None:
        """Remove a lease that has ended, unless another process has taken it over meanwhile."""
        aside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(8)}.ended")
        if look(self.path) != ended:
            return
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        if look(aside) != ended:  # this is the lease of the process that was quicker
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
        try:
            text = lease_file.renew(self.path, self._token)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
            # Until now nobody could find that the lease had ended, and nobody had it since.
            if time.monotonic() - self._renewed < LIFETIME / 2:
                self._make_again()
            return
        if self._token in text:
            self._renewed = time.monotonic()
        elif Owner.read(text) is not None:
            self._renewed = -math.inf  # another process has it, or had it

    def _make_again(self) -> None:
        with self._beside() as beside:
            if self._put(beside):
                self._renewed = time.monotonic()
                logger.warning("%s was lost, and has been made again", self.path)

    def _start_helper(self) -> None:
        """Start a process that renews the lease while this one holds the interpreter's lock."""
        command = [sys.executable, "-I", "-S", lease_file.__file__, str(os.getpid())]
        command += [str(self.path.absolute()), self._token, str(PERIOD)]
        null = subprocess.DEVNULL
        # It inherits what is blocked, and ends with this process alone.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_JOBS)
        try:
            self._helper = subprocess.Popen(command, stdin=null, stdout=null, stderr=null)
        except OSError as error:
            logger.warning("%s is renewed by a thread alone: %s", self.path, error)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
