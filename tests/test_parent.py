"""utils/parent.py: the end of torchrun ends its processes, and that of a process its helpers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import psutil
import pytest

from nemo_chameleon.utils import parent
from project import RECIPE, ROOT, WITHIN_A_MINUTE

LAUNCHER = """\
import os, subprocess, sys, threading, time
def start():
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
    print(child.pid, flush=True)
    while {thread} and not os.path.exists({file!r}):
        time.sleep(0.05)
if {thread}:
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    print("the thread has ended", flush=True)
else:
    start()
time.sleep(600)
"""

PROCESS = """\
import multiprocessing, os, threading, time
from nemo_chameleon.utils.parent import end_with_parent
end_with_parent()
helper = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
helper.start()
own = os.getpid()

def forks():
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, b"!")
        time.sleep(600)
    os.read(reader, 1)

if {thread}:
    thread = threading.Thread(target=forks)
    thread.start()
    thread.join()
open({file!r} + ".tmp", "w").write(str(helper.pid))
os.rename({file!r} + ".tmp", {file!r})
time.sleep(600)
"""


def gone(*processes: psutil.Process) -> bool:
    """Wait until all processes have ended, and return whether they have."""
    deadline = time.monotonic() + WITHIN_A_MINUTE
    while time.monotonic() < deadline:
        if not any(map(lives, processes)):
            return True
        time.sleep(0.05)
    return False


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def launched(
    tmp_path: Path,
    thread: bool = False,
    variables: Mapping[str, str] = MappingProxyType({}),
    by_thread: bool = False,
) -> tuple["subprocess.Popen[str]", psutil.Process, psutil.Process]:
    """Start a launcher, its process and the process's helper."""
    file = tmp_path / "helper"
    code = PROCESS.format(file=str(file), thread=thread)
    env = {key: value for key, value in os.environ.items() if not key.startswith("TORCHELASTIC")}
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER.format(thread=by_thread, file=str(file)), code],
        stdout=subprocess.PIPE,
        text=True,
        env={**env, **variables},
    )
    assert launcher.stdout is not None
    process = psutil.Process(int(launcher.stdout.readline()))
    deadline = time.monotonic() + WITHIN_A_MINUTE
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return launcher, process, psutil.Process(int(file.read_text()))


OF_TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0"}


def test_a_killed_launcher_takes_its_processes_with_it(tmp_path: Path) -> None:
    """When torchrun is killed, the process that it started ends, and so does a helper of that."""
    launcher, process, helper = launched(tmp_path, variables=OF_TORCHRUN)
    assert lives(process)
    launcher.kill()
    launcher.wait()
    assert gone(process, helper)


def test_a_killed_process_takes_its_helpers_with_it(tmp_path: Path) -> None:
    """A helper ends with the process that forked it, also without torchrun."""
    launcher, process, helper = launched(tmp_path)
    process.kill()
    assert gone(helper)
    launcher.kill()
    launcher.wait()


def test_processes_that_torchrun_did_not_start_live_on(tmp_path: Path) -> None:
    """A process that some other program has started may outlive it, as under nohup."""
    launcher, process, helper = launched(tmp_path)
    launcher.kill()
    launcher.wait()
    time.sleep(0.5)
    assert lives(process)
    assert lives(helper)
    process.kill()
    assert gone(helper)


def test_the_end_of_a_thread_ends_no_process(tmp_path: Path) -> None:
    """A process that a thread has forked lives on when the thread has ended."""
    launcher, process, helper = launched(tmp_path, thread=True, variables=OF_TORCHRUN)
    time.sleep(0.2)
    others = [child for child in process.children() if child.pid != helper.pid]
    assert [lives(child) for child in others] == [True]
    others[0].kill()
    launcher.kill()
    launcher.wait()
    assert gone(process, helper)


def test_the_end_of_the_thread_that_started_it_ends_no_process(tmp_path: Path) -> None:
    """A rank that a thread of its launcher has started lives on, and ends with the launcher."""
    launcher, process, helper = launched(tmp_path, variables=OF_TORCHRUN, by_thread=True)
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "the thread has ended\n"
    time.sleep(0.2)
    assert lives(process)
    assert lives(helper)
    launcher.kill()
    launcher.wait()
    assert gone(process, helper)


def test_a_parent_that_has_ended_already() -> None:
    """A process whose parent ended before the call ends itself."""
    code = "from nemo_chameleon.utils import parent; parent._end_with(1 << 29); print('lives')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


def test_siblings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of the same torchrun are found, without those that have ended."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert parent.siblings() == set()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert os.getpid() in parent.siblings()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        monkeypatch.setattr(os, "getppid", os.getpid)
        assert child.pid in parent.siblings()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        assert child.pid not in parent.siblings()


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["torchrun", "rank"])
def test_nothing_is_left_of_a_killed_run(config_file: Path, killed: str) -> None:
    """When torchrun is killed, or a rank, all processes of the run end, with Megatron's helpers.

    The run has data loaders, and the process that Megatron's checkpoint writer starts.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    settings = ["data.mixture=uniform", "train.train_iters=100000", "data.num_workers=1"]
    settings += ["checkpoint.save_interval=5", "checkpoint.keep=2"]
    run = subprocess.Popen(
        [*command, str(RECIPE), "--config", str(config_file), *settings],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    tracker = config_file.parent / "out" / "uniform" / "latest_checkpointed_iteration.txt"
    deadline = time.monotonic() + 240
    while not tracker.exists():
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    started = psutil.Process(run.pid)
    all_of_it = started.children(recursive=True)
    assert len(all_of_it) >= 6, "two ranks, each with a data loader and a checkpoint writer"
    (run if killed == "torchrun" else started.children()[0]).kill()
    assert gone(*all_of_it)
    run.wait()
