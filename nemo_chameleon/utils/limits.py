"""Limits of time and memory for what a stranger wrote, such as a chat template."""

import contextlib
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_STATM = Path("/proc/self/statm")  # its first number is the memory of the process in pages


class OutOfTimeError(BaseException):
    """Raised when the time is up; not an Exception, so that no library takes it for its own."""


@contextlib.contextmanager
def limited(seconds: float, memory: int) -> Iterator[None]:
    """Limit what the block may use. Its time is limited in the main thread only.

    Args:
        seconds: the time that the block may take.
        memory: number of bytes that the process may grow by. They are limited on Linux only.

    Yields:
        Nothing.

    Raises:
        OutOfTimeError: the time is up.
        MemoryError: the memory is not enough.
    """
    timed = threading.current_thread() is threading.main_thread()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(OSError, ValueError):
        most = int(_STATM.read_text().split()[0]) * resource.getpagesize() + memory
        if soft == resource.RLIM_INFINITY or most < soft:
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    if timed:
        before = signal.signal(signal.SIGALRM, _out_of_time)
        left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
        began = time.monotonic()
    try:
        yield
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            if left:  # somebody else's timer, which goes on
                rest = max(left - (time.monotonic() - began), 1e-3)
                signal.setitimer(signal.ITIMER_REAL, rest, interval)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _out_of_time(number: int, frame: Any) -> None:
    raise OutOfTimeError
