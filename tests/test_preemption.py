"""utils/preemption.py: signals ask a process to stop, and the second one ends it."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from nemo_chameleon.utils import preemption
from project import RECIPE, ROOT

SIGNALS = (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)


def until(happened: Callable[[], bool]) -> bool:
    """Wait for something for half a minute, and return whether it has happened."""
    deadline = time.monotonic() + 30
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.01)
    return happened()


@pytest.mark.parametrize("number", SIGNALS)
def test_the_signal_asks(number: signal.Signals) -> None:
    """While listening, the signal is noted in whichever thread it arrives.

    Afterwards its handler is as it was.
    """
    before, threads = signal.getsignal(number), {*threading.enumerate()}
    with preemption.listening() as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert until(asked)
    assert signal.getsignal(number) == before
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert {*threading.enumerate()} <= threads

    waiting = threading.Event()
    other = threading.Thread(target=waiting.wait)
    other.start()  # this thread does not block the signal
    with preemption.listening() as asked:
        os.kill(os.getpid(), number)
        # The kernel may have to wait until it can interrupt the other thread.
        assert until(asked)
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


def test_a_block_within_shares_what_has_come() -> None:
    """What comes in an inner block is known in the outer one, which goes on listening."""
    with preemption.listening() as outer:
        with preemption.listening() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert until(inner)
        assert outer()


@pytest.mark.parametrize("number", SIGNALS)
def test_processes_that_are_started_within_live_on(number: signal.Signals) -> None:
    """A child process, as the writer of a checkpoint is, survives the signal."""
    wait = [sys.executable, "-c", "print(1, flush=True); input(); print(2)"]
    with preemption.listening():
        writer = subprocess.Popen(wait, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "1\n"
    writer.send_signal(number)
    written, _ = writer.communicate("\n")
    assert (written, writer.returncode) == ("2\n", 0)


MANAGER = """\
import os
from multiprocessing import get_context, resource_tracker
from nemo_chameleon.utils import preemption
with preemption.listening():
    tracker = resource_tracker._resource_tracker
    pid = tracker._pid
    os.kill(pid, {number})
    manager = get_context("spawn").Manager()
    queue = manager.Queue()
    os.kill(manager._process.pid, {number})
    queue.put("lives")
    print(queue.get())
    blocked = preemption.signal.pthread_sigmask(preemption.signal.SIG_BLOCK, [])
print({number} in blocked, tracker._check_alive() and tracker._pid == pid)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_process_that_is_started_anew_lives_on(number: signal.Signals) -> None:
    """A process that multiprocessing spawns survives the signal, as Megatron's queue must.

    The first such process in a program has multiprocessing start a tracker, and change what this
    thread blocks. The tracker survives too, because it would be started again in the same way.
    """
    code = MANAGER.format(number=int(number))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("lives\nTrue True\n", 0), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "none"])
def test_a_run_that_has_saved_before_saves_again(config_file: Path, launcher: str) -> None:
    """SIGTERM after a first checkpoint saves and stops, also if it reaches Megatron's helpers.

    torchrun forwards it to the groups of its processes. Schedulers signal all processes of a job.
    """
    command = [sys.executable]
    if launcher == "torchrun":
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    settings = ["data.mixture=uniform", "train.train_iters=100000", "data.num_workers=1"]
    settings += ["checkpoint.save_interval=50", "checkpoint.keep=2"]
    settings += ["logging.log_interval=5", "train.eval_iters=0"]
    run = subprocess.Popen(
        [*command, str(RECIPE), "--config", str(config_file), *settings],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folder = config_file.parent / "out" / "uniform"
    tracker = folder / "latest_checkpointed_iteration.txt"
    deadline = time.monotonic() + 240
    while not tracker.exists():
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (os.kill if launcher == "torchrun" else os.killpg)(run.pid, signal.SIGTERM)
    said, _ = run.communicate(timeout=120)
    stopped = re.search(r"uniform: stopped at iteration (\d+), as requested", said)
    assert stopped, said[-3000:]
    assert int(tracker.read_text()) == int(stopped[1])
    assert not [*folder.glob("*.tmp")]
    assert run.returncode == (1 if launcher == "torchrun" else 75)


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


# The main thread holds still in a way in which Python calls no handlers of signals.
STUCK = """\
import ctypes, os
from nemo_chameleon.utils import preemption
{before}
with preemption.listening() as asked:
    print("listening", flush=True)
    ctypes.CDLL(None).sigsuspend(bytes([255] * 128)) if {stuck} else input()
    print(asked(), flush=True)
"""


def started(
    before: str = "", stuck: bool = True, ignored: bool = False, **variables: str
) -> "subprocess.Popen[str]":
    """Start a process that listens, and wait until it does."""
    code = STUCK.format(before=before, stuck=stuck)
    env = {key: value for key, value in os.environ.items() if key != "TORCHELASTIC_RUN_ID"}
    ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"] if ignored else []
    process = subprocess.Popen(
        [*ignoring, sys.executable, "-c", code],
        env=env | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "listening\n"
    return process


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (signal.SIGINT, signal.SIGINT, 130),
        (signal.SIGTERM, signal.SIGTERM, 143),
        (signal.SIGINT, signal.SIGTERM, 143),
    ],
)
def test_the_second_ends_at_once(first: int, second: int, code: int) -> None:
    """A second SIGINT or SIGTERM ends the process, even if its main thread is stuck."""
    process = started()
    process.send_signal(first)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(second)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert said == f"{signal.Signals(second).name} came a second time: ended without saving\n"


def test_a_scheduler_may_ask_often() -> None:
    """SIGUSR1 ends nothing, however often it comes, and it is not counted as the first one."""
    process = started(stuck=False)
    for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.1)
    assert process.communicate("\n", timeout=30) == ("True\n", "")
    assert process.returncode == 0


def test_what_torchrun_forwards_is_the_same_request() -> None:
    """Under torchrun the same signal counts once within a few seconds, and another one counts."""
    process = started(TORCHELASTIC_RUN_ID="1")
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_torchrun_ends_what_lost_a_rank() -> None:
    """The first SIGTERM ends a process at once if another one that torchrun started has ended."""
    before = "import subprocess; other = subprocess.Popen(['sleep', '60'])\n"
    before += "preemption.siblings = lambda: {other.pid} if other.poll() is None else set()"
    process = started(before, TORCHELASTIC_RUN_ID="1")
    (other,) = (each for each in psutil.Process(process.pid).children() if each.name() == "sleep")
    other.kill()
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 143


def test_an_ignored_interrupt_stays_ignored() -> None:
    """A process in the background of a shell, which ignores SIGINT, is not asked by it."""
    process = started(stuck=False, ignored=True)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.communicate("\n", timeout=30) == ("False\n", "")
