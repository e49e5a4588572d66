"""SIGUSR1 asks a run to stop: a scheduler sends it before a job's time is up."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNAL = signal.SIGUSR1


class StoppedError(Exception):
    """The run was asked to stop, and has saved its state."""

    exit_code = 75  # the system's "try again later"


@contextlib.contextmanager
def listening() -> Iterator[Callable[[], bool]]:
    """Keep the signal from ending this process inside the block, and report whether it has arrived.

    A scheduler sends the signal to all processes of a job, among them those that Megatron's
    checkpoint writer and data loaders start inside the block. Such a process inherits no handler,
    but it does inherit that the signal is blocked. Therefore the signal is also blocked here.

    Yields:
        A function that returns whether the signal has arrived.
    """
    came = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        came.set()

    def asked() -> bool:
        # The signal is blocked in this thread only: it is pending, or another thread receives it.
        # Between the two it is neither pending nor noted. So what was seen once is kept.
        if SIGNAL in signal.sigpending():
            came.set()
        return came.is_set()

    if threading.current_thread() is not threading.main_thread():
        yield came.is_set  # Python handles signals in the main thread only
        return
    handler = signal.signal(SIGNAL, note)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})
    try:
        yield asked
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(SIGNAL, handler)
