"""Signals that ask a run to stop: it saves its state and ends.

A scheduler sends SIGUSR1 before a job's time is up. SIGINT is Ctrl-C. SIGTERM comes from `kill`,
from a scheduler that ends a job, and from torchrun, which forwards both of them to its processes.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from types import FrameType

from nemo_chameleon.utils.parent import siblings

ASKS = signal.SIGUSR1
"""It may come any number of times, and never ends the run at once."""
ENDS = (signal.SIGINT, signal.SIGTERM)
"""The second one of these ends the process at once."""

# A scheduler signals torchrun and its processes, to which torchrun then forwards the signal. The
# same signal within this time is therefore the same request.
_FORWARDED = 5.0  # seconds


class StoppedError(Exception):
    """The run was asked to stop, and has saved its state."""

    exit_code = 75  # the system's "try again later"


def exit_code_of(number: int) -> int:
    """Return the exit code of a process that a signal has ended, as a shell reports it.

    Args:
        number: the signal.
    """
    return 128 + number


@contextlib.contextmanager
def listening() -> Iterator[Callable[[], bool]]:
    """Keep the signals from ending this process inside the block, and report whether one has come.

    A second SIGINT or SIGTERM ends the process at once. So does the first SIGTERM if torchrun sends
    it because another of its processes has ended, without which nothing can be saved. A block
    within such a block shares what has come.

    The signals are sent to all processes of a job, among them those that Megatron's checkpoint
    writer and data loaders start inside the block. Such a process inherits no handler, but it does
    inherit that a signal is blocked. Therefore the signals are also blocked here, and a thread
    receives them, even while this thread waits for other ranks.

    Yields:
        A function that returns whether a signal has arrived.
    """
    global _listener, _terminated  # signals are the whole process's
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # Python handles signals in the main thread only
        return
    if _listener is not None:
        yield _listener.asked
        return
    _listener = _Listener()
    try:
        with _listener.receiving():
            yield _listener.asked
    finally:
        _terminated = _terminated or _listener.number == signal.SIGTERM
        _listener = None


def end_if_terminated() -> None:
    """End this process by SIGTERM if that came while it was listening, and it could not stop."""
    if _terminated:
        os.kill(os.getpid(), signal.SIGTERM)


class _Listener:
    """What has arrived in this process."""

    def __init__(self) -> None:
        # The shell starts background commands with SIGINT ignored, and nohup and others do the
        # like. SIGUSR1 counts even then, because recipes/slurm/on_node.sh has torchrun ignore it.
        ends = (number for number in ENDS if signal.getsignal(number) != signal.SIG_IGN)
        self.signals = {ASKS, *ends}
        self.number: int | None = None
        self._at = 0.0
        self._came = threading.Event()
        self._siblings = siblings()

    def asked(self) -> bool:
        # Between the time when a signal is pending and that when it is noted it is neither. So what
        # was seen once is kept.
        if self.signals & signal.sigpending():
            self._came.set()
        return self._came.is_set()

    @contextlib.contextmanager
    def receiving(self) -> Iterator[None]:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = {number: signal.signal(number, self._note) for number in self.signals}
        # The system's handler writes to this file at once. Python's waits for the main thread.
        woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, self.signals)
        # The first process that multiprocessing starts anew starts this tracker before, and that
        # unblocks signals in this thread. Megatron's checkpoint writer starts such a process.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, self.signals)
        thread = threading.Thread(target=self._receive, args=(reader,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            signal.set_wakeup_fd(woken)
            os.write(writer, b"\0")
            thread.join()
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reader)
            os.close(writer)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._came.set()

    def _receive(self, reader: int) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.signals)
        while number := os.read(reader, 1)[0]:
            if number in self.signals:
                self._came.set()
            if number in ENDS:
                self._heard(number)

    def _heard(self, number: int) -> None:
        now = time.monotonic()
        if self.number is None:
            self.number, self._at = number, now
            if number == signal.SIGTERM and not self._siblings <= siblings():
                os._exit(exit_code_of(number))
            return
        launched = "TORCHELASTIC_RUN_ID" in os.environ
        if launched and number == self.number and now - self._at < _FORWARDED:
            return
        if os.environ.get("LOCAL_RANK", "0") == "0":
            name = signal.Signals(number).name
            # The main thread may hold the locks of sys.stderr and of the loggers.
            os.write(2, f"{name} came a second time: ended without saving\n".encode())
        os._exit(exit_code_of(number))


_listener: _Listener | None = None
_terminated = False
