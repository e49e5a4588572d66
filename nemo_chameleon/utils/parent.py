"""The end of torchrun ends its processes, and the end of a process ends its helpers.

A torchrun that is killed with SIGKILL ends none of its processes, and they would go on writing. The
kernel can send a process a signal when its parent ends (`man PR_SET_PDEATHSIG`). A thread that
watches the parent would notice nothing while a library holds the interpreter's lock.

To the kernel the parent is the thread that started the process. torchrun's main thread does. Where
a program starts ranks in another thread, with torchrun's Python interface, a thread watches.
"""

import ctypes
import os
import signal
import threading
import time
from functools import cache
from multiprocessing import current_process
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LOOKS = 1.0  # seconds between two looks at a parent that a thread watches
_LAUNCHED = "TORCHELASTIC_RUN_ID"  # torchrun sets this variable in the processes that it starts


class _Fork(threading.local):
    """The process that forks, if its main thread does."""

    process: int | None = None
    helper = False


_fork = _Fork()


def end_with_parent() -> None:
    """Let this process end when torchrun is killed, and its helpers when this process is.

    A helper is a process that the main thread forks, such as a data loader's worker or a writer of
    Megatron's checkpoints, or one that `multiprocessing` starts anew and that calls this function
    as it imports the program. A process that nothing of the sort started stays as it is.
    """
    if is_new_helper() or (_LAUNCHED in os.environ and "RANK" in os.environ):
        parent = os.getppid()
        if _is_of_main_thread(parent):
            _end_with(parent)
        else:
            _watch(parent)
    _watch_forks()


def is_new_helper() -> bool:
    """Return whether `multiprocessing` has just started this process, which imports the program."""
    return bool(getattr(current_process(), "_inheriting", False))


def siblings() -> set[int]:
    """Return the processes that torchrun has started on this node and that have not ended.

    Returns:
        Their numbers; none if torchrun did not start this process.
    """
    if _LAUNCHED not in os.environ:
        return set()
    parent, found = str(os.getppid()), set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, its_parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:  # it has ended meanwhile
                continue
            if its_parent == parent and state not in ("Z", "X"):
                found.add(int(entry.name))
    return found


@cache
def _watch_forks() -> None:
    # The kernel sends the signal when the thread ends that forked, not its process. Only the main
    # thread lives as long as the process.
    def before() -> None:
        main = threading.current_thread() is threading.main_thread()
        _fork.process = os.getpid() if main and not _fork.helper else None

    def within() -> None:
        # A helper's own children may be meant to outlive it, as those of a daemon are.
        _fork.helper = True
        if _fork.process is not None:
            _end_with(_fork.process)

    os.register_at_fork(before=before, after_in_child=within)


def _is_of_main_thread(parent: int) -> bool:
    """Return whether the parent's main thread has started this process, if the kernel tells."""
    try:
        started = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    except OSError:
        return True
    return str(os.getpid()) in started


@cache
def _watch(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOKS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _end_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it has ended before the call
        os.kill(os.getpid(), signal.SIGKILL)
