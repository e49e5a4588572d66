"""Lets a program die right before its n-th change to the files in a folder.

Python imports this file at its start if its folder is in PYTHONPATH. Variables say what to do:

    KILL_FOLDER   the folder whose files count
    KILL_COUNT    a file outside of it that gets one line for each change, of all processes
    KILL_AT       the number of the change, counted from 1; without it nothing dies
"""

import os
import signal
import sys
from typing import Any

_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link"}
_LINE = 120  # bytes of a line of the count, so that its length is the number of changes
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def _watch(folder: str, count: str, at: int) -> None:
    file = os.open(count, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    prefix = os.path.join(os.path.realpath(folder), "")  # noqa: PTH118

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            if not (isinstance(arguments[2], int) and arguments[2] & _WRITING):
                return
        elif event not in _CHANGES:
            return
        if not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if not path.startswith(prefix):
            return
        line = f"{event} {path[len(prefix) :]}".encode("ascii", "replace").replace(b"\n", b" ")
        os.write(file, line[: _LINE - 1].ljust(_LINE - 1) + b"\n")
        if os.lseek(file, 0, os.SEEK_CUR) == _LINE * at:
            os.killpg(0, signal.SIGKILL)

    sys.addaudithook(hook)


if "KILL_FOLDER" in os.environ:
    _watch(os.environ["KILL_FOLDER"], os.environ["KILL_COUNT"], int(os.environ.get("KILL_AT", 0)))
