"""The file of a lease: how it is read, and how it is renewed.

Run as a program, this module renews a lease for as long as its parent lives. Megatron's builders of
indices hold the interpreter's lock for minutes, and no thread could renew a lease meanwhile. It is
run by its path, and imports nothing of this package, so that it starts at once and stays small.
"""

import contextlib
import dataclasses
import errno
import os
import sys
import time
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Found:
    """A lease that was found.

    Attributes:
        text: its contents.
        renewed: its modification time.
        inode: the number of its file, which some file systems change.
    """

    text: str
    renewed: float
    inode: int = dataclasses.field(compare=False)


def look(path: Path) -> Found | None:
    """Return a lease; None if there is none.

    Args:
        path: the file of the lease.

    Raises:
        OSError: it cannot be read.
    """
    # A network file system asks its server again when a file is opened, and not for each stat.
    try:
        with path.open(errors="replace") as stream:
            text, status = stream.read(), os.fstat(stream.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise
        return None
    return Found(text, status.st_mtime, status.st_ino)


def renew(path: Path, token: str) -> str:
    """Set the modification time of a lease, if it has this token.

    Args:
        path: the file of the lease.
        token: the token of its owner.

    Returns:
        The contents of the lease.
    """
    with path.open("r+", errors="replace") as stream:
        text = stream.read()
        if token in text:
            os.utime(stream.fileno())  # the file that was read, even if it was renamed since
    return text


def renew_while_lives(parent: int, path: Path, token: str, period: float) -> None:
    """Renew a lease until the parent of this process has ended.

    Args:
        parent: the number of the process that has started this one.
        path: the file of the lease.
        token: the token of its owner.
        period: seconds between two renewals.
    """
    while True:
        time.sleep(period)
        if os.getppid() != parent:
            return
        with contextlib.suppress(OSError):  # the next renewal may succeed
            renew(path, token)


if __name__ == "__main__":
    renew_while_lives(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
