"""utils/preemption.py: a signal asks a process to stop, and does not end it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from nemo_chameleon.utils import preemption


def test_the_signal_asks() -> None:
    """While listening, the signal is noted in whichever thread it arrives.

    Afterwards its handler is as it was.
    """
    before = signal.getsignal(signal.SIGUSR1)
    with preemption.listening() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert asked()
    assert signal.getsignal(signal.SIGUSR1) == before
    assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])

    waiting = threading.Event()
    other = threading.Thread(target=waiting.wait)
    other.start()  # this thread does not block the signal
    with preemption.listening() as asked:
        os.kill(os.getpid(), signal.SIGUSR1)
        # The kernel may have to wait until it can interrupt the other thread.
        deadline = time.monotonic() + 30
        while not asked() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert asked()
    waiting.set()
    other.join()


def test_what_was_asked_once_stays_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that was pending counts also while another thread takes it over.

    Until that thread has called the handler, the signal is neither pending nor noted.
    """
    pending = iter([{signal.SIGUSR1}])
    monkeypatch.setattr(signal, "sigpending", lambda: next(pending, set()))
    with preemption.listening() as asked:
        assert asked()
        assert asked()


def test_processes_that_are_started_within_live_on() -> None:
    """A child process, as the writer of a checkpoint is, survives the signal."""
    wait = [sys.executable, "-c", "print(1, flush=True); input(); print(2)"]
    with preemption.listening():
        writer = subprocess.Popen(wait, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "1\n"
    writer.send_signal(signal.SIGUSR1)
    written, _ = writer.communicate("\n")
    assert (written, writer.returncode) == ("2\n", 0)


def test_elsewhere_than_in_the_main_thread() -> None:
    """In a thread where Python receives no signals, listening raises nothing and notes nothing."""
    seen = []

    def listen() -> None:
        with preemption.listening() as asked:
            seen.append(asked())

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [False]
