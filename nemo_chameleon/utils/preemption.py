"""A run that is asked to stop: by SIGUSR1, which a scheduler sends before a job's time is up."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNAL = signal.SIGUSR1


class StoppedError(Exception):
    """It has saved where it was and ended, as it was asked to."""

    exit_code = 75  # the system's "try again later"


@contextlib.contextmanager
def listening() -> Iterator[Callable[[], bool]]:
    """Within, the signal does not end this process; what is given says whether it has come.

    Nor does it end processes that are started within, as Megatron's checkpoint writer and data
    loaders start some: a scheduler sends it to all there are. They inherit that it is blocked; a
    handler they would not.
    """
    came = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        came.set()

    if threading.current_thread() is not threading.main_thread():
        yield came.is_set  # Python hears signals in the main thread alone
        return
    handler = signal.signal(SIGNAL, note)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})
    try:
        # Blocked in this thread alone: another may hear it, or it waits.
        yield lambda: came.is_set() or SIGNAL in signal.sigpending()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(SIGNAL, handler)
