"""Ranks for the tests: they fork from a process that has imported torch and megatron-core.

A test runs a script or a function on ranks as torchrun would, without its seconds of imports:

    done = ranks.run(script, arguments, processes=2)   # exit code, and what the ranks said
    results = ranks.on_ranks(2, function, argument)    # what the function returned on each rank

Two servers import everything once in a test session and fork a process for each rank. All of what
one server forks has one seed for the hashes of strings, and so one order of every set. Hence there
are two: neighbouring ranks come from different ones, and so does a rank in one run and in the
next. What depends on such an order differs between ranks, and from run to run, as it would
otherwise.

What only a real start can show (torchrun's own words, the console scripts, imports that are
missing, processes that import the recipe again) is for tests that are marked `slow`.
"""

import atexit
import contextlib
import gc
import importlib
import os
import pickle
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, context
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]

_FOLDER = "CHAMELEON_RANK_SERVERS"  # environment variable: where the session's servers are
_SERVERS = 2
_TO_START = 300  # seconds for a server to import everything
_TO_END = 10  # seconds between SIGTERM and SIGKILL
_calls = 0


class RankError(AssertionError):
    """A rank failed where none should, or took too long; with what all of them said."""


# The tests' side.


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Within, this process and those that it starts share the servers, which end with it."""
    if _FOLDER in os.environ:
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="ranks-"))
    os.environ[_FOLDER] = str(folder)
    # A server sees the end of this file once this process is gone, whichever way it went.
    os.mkfifo(folder / "life")
    life = os.open(folder / "life", os.O_RDWR)
    try:
        yield
    finally:
        os.close(life)
        del os.environ[_FOLDER]
        shutil.rmtree(folder, ignore_errors=True)


def start_servers() -> None:
    """Have the session's servers start to import, if nobody has; this waits for nothing."""
    folder = Path(os.environ[_FOLDER])
    for number in range(_SERVERS):
        try:
            log = (folder / f"{number}.log").open("xb")
        except FileExistsError:
            continue
        with log:
            subprocess.Popen(
                [sys.executable, __file__, str(folder), str(number)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
            )


def _connect(number: int) -> connection.Connection:
    """To a new process's keeper, at a server."""
    folder = Path(os.environ[_FOLDER])
    deadline = time.monotonic() + _TO_START
    while True:
        link = socket.socket(socket.AF_UNIX)
        try:
            link.connect(str(folder / f"{number}.socket"))
        except (FileNotFoundError, ConnectionRefusedError):
            link.close()
            if time.monotonic() > deadline:
                log = (folder / f"{number}.log").read_text()
                raise RankError(f"no server of ranks has started:\n{log}") from None
            time.sleep(0.05)
        else:
            return connection.Connection(link.detach())


class Ranks:
    """Processes at work: those of one torchrun on one node, or one that is started alone.

    Attributes:
        codes: exit codes by rank, negative for a signal; None of one that still runs.
    """

    def __init__(self, work: tuple[Any, ...], processes: int | None) -> None:
        """Start them.

        Args:
            work: ("script", path, arguments), or ("function", function and arguments, pickled).
            processes: how many ranks; None for one alone, with nothing of torchrun's.
        """
        global _calls
        _calls += 1
        start_servers()
        count = processes or 1
        self.codes: list[int | None] = [None] * count
        self._folder = Path(tempfile.mkdtemp(prefix="call-", dir=os.environ[_FOLDER]))
        self._store: Any = None
        env = dict(os.environ)
        if processes:
            env |= self._of_torchrun(count)
        self._links = [_connect((rank + _calls) % _SERVERS) for rank in range(count)]
        for rank, link in enumerate(self._links):
            own = env | self._of_rank(rank) if processes else env
            link.send((work, own, sys.path, str(self._folder / str(rank))))

    def _of_torchrun(self, count: int) -> dict[str, str]:
        """What torchrun tells every rank, with a store of these ranks' own."""
        from torch.distributed import TCPStore

        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        return {
            "GROUP_RANK": "0",
            "GROUP_WORLD_SIZE": "1",
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "ROLE_NAME": "default",
            "ROLE_WORLD_SIZE": str(count),
            "TORCHELASTIC_MAX_RESTARTS": "0",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_RUN_ID": self._folder.name,
            "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
            "WORLD_SIZE": str(count),
        }

    def _of_rank(self, rank: int) -> dict[str, str]:
        names = ("RANK", "LOCAL_RANK", "ROLE_RANK")
        error = {"TORCHELASTIC_ERROR_FILE": str(self._folder / f"{rank}.error.json")}
        return {name: str(rank) for name in names} | error

    def said(self, stream: str) -> str:
        """What the ranks have written to "stdout" or "stderr", one rank after the other."""
        files = [self._folder / f"{rank}.{stream}" for rank in range(len(self.codes))]
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def returned(self) -> list[Any]:
        """What the function returned, by rank."""
        files = [self._folder / f"{rank}.result" for rank in range(len(self.codes))]
        return [pickle.loads(file.read_bytes()) for file in files]

    def send(self, rank: int, number: int) -> None:
        """Send a signal to a rank."""
        with contextlib.suppress(BrokenPipeError):  # it has ended
            self._links[rank].send(int(number))

    def kill(self) -> None:
        """Send SIGKILL to all at once."""
        self._send_all(signal.SIGKILL)
        self._gather(_TO_END)
        self._close()

    def poll(self, timeout: float = 0) -> bool:
        """Whether all have ended, when one has or the time is over; one that fails ends the rest.

        Args:
            timeout: seconds to wait for one to end.
        """
        self._gather(timeout, first=True)
        if any(self.codes):
            for number in (signal.SIGTERM, signal.SIGKILL):
                self._send_all(number)
                self._gather(_TO_END)
        if None in self.codes:
            return False
        self._close()
        return True

    def wait(self, timeout: float = 300) -> int:
        """The exit code of torchrun, or of the one alone, when they have ended.

        Raises:
            RankError: they took longer.
        """
        deadline = time.monotonic() + timeout
        while not self.poll(max(0, deadline - time.monotonic())):
            if time.monotonic() >= deadline:
                self.kill()
                raise RankError(self._everything(f"not done in {timeout} s"))
        return int(any(self.codes)) if len(self.codes) > 1 else self.codes[0] or 0

    def require_success(self, what: str) -> None:
        """Raise a RankError with all that was said, unless they all ended well."""
        if any(self.codes):
            raise RankError(self._everything(what))

    def _running(self) -> dict[Any, int]:
        return {self._links[rank]: rank for rank, code in enumerate(self.codes) if code is None}

    def _send_all(self, number: int) -> None:
        for rank in self._running().values():
            self.send(rank, number)

    def _gather(self, timeout: float, first: bool = False) -> None:
        """Exit codes, until all have ended, or the `first` of them."""
        deadline = time.monotonic() + timeout
        while running := self._running():
            ended = connection.wait(list(running), max(0, deadline - time.monotonic()))
            for link in ended:
                rank = running[link]
                self.codes[rank] = self._links[rank].recv()
            if first or not ended:
                return

    def _close(self) -> None:
        for link in self._links:
            link.close()
        self._store = None

    def _everything(self, what: str) -> str:
        text = f"{what}; exit codes {self.codes}\n"
        for stream in ("stdout", "stderr"):
            text += f"--- {stream}\n{self.said(stream)[-8000:]}\n"
        return text


def start_script(
    script: Path | str, arguments: Sequence[str] = (), processes: int | None = None
) -> Ranks:
    """A script in ranks, at work; None for one process alone."""
    return Ranks(("script", str(script), list(arguments)), processes)


def run(
    script: Path | str,
    arguments: Sequence[str] = (),
    processes: int | None = None,
    check: bool = True,
    timeout: float = 300,
) -> "subprocess.CompletedProcess[str]":
    """A script as it is started: `python script`, or on so many ranks under torchrun.

    Raises:
        RankError: it failed, unless it may (`check=False`); or it took longer than `timeout`.
    """
    ranks = start_script(script, arguments, processes)
    code = ranks.wait(timeout)
    if check:
        ranks.require_success(f"{script} {' '.join(arguments)}")
    command = [str(script), *arguments]
    return subprocess.CompletedProcess(command, code, ranks.said("stdout"), ranks.said("stderr"))


def on_ranks(processes: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function of a module returns on each of so many ranks.

    Raises:
        RankError: it failed on one, with the traceback.
    """
    ranks = Ranks(("function", pickle.dumps((function, arguments))), processes)
    ranks.wait()
    ranks.require_success(f"{function.__qualname__} on {processes} ranks")
    return ranks.returned()


# The servers' side.


def _import_everything() -> None:
    """All modules of this package that are not for a host, with what they need."""
    for name in ("tokenizers", "torch.distributed.elastic.multiprocessing.errors"):
        importlib.import_module(name)
    sys.path.insert(0, str(ROOT))  # this folder's package, whichever is installed
    package = importlib.import_module("nemo_chameleon")
    del sys.path[0]
    # A host that is not installed is none's fault here, and what a test misses it will say.
    for module in pkgutil.walk_packages(package.__path__, "nemo_chameleon.", lambda _: None):
        with contextlib.suppress(ImportError):
            importlib.import_module(module.name)


def _serve(folder: Path, number: int) -> Callable[[], None]:
    """Fork a process for each request; returns in that process only, what it is to do."""
    life = os.open(folder / "life", os.O_RDONLY | os.O_NONBLOCK)
    _import_everything()
    threads = len([*Path("/proc/self/task").iterdir()])
    assert threads == 1, f"{threads} threads, which a fork would not have"
    gc.collect()
    gc.freeze()  # or every fork's first collection would copy all of it
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / f"{number}.socket"))
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while True:
        ready, _, _ = select.select([listener, life], [], [])
        if life in ready:
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(0)
        link = connection.Connection(listener.accept()[0].detach())
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(life)
            listener.close()
            return _keep(link)
        link.close()


def _keep(link: connection.Connection) -> Callable[[], None]:
    """Start a rank, pass signals on to it, and say how it ended; returns in the rank only."""
    try:
        request = link.recv()
    except EOFError:
        os._exit(0)
    child = os.fork()
    if child == 0:
        link.close()
        return _become(*request)
    ended = os.pidfd_open(child)
    while True:
        ready, _, _ = select.select([ended, link], [], [])
        if ended in ready:
            break
        try:
            number = link.recv()
        except EOFError:  # nobody is interested any more
            number = signal.SIGKILL
        os.kill(child, number)
        if number == signal.SIGKILL:
            break
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    # What helpers it has left would otherwise stay for ever.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(BrokenPipeError):
        link.send(code)
    os._exit(0)


def _become(
    work: tuple[Any, ...], env: dict[str, str], path: list[str], files: str
) -> Callable[[], None]:
    """Make this process a new one in all but its imports."""
    os.setsid()
    for stream, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(f"{files}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, stream)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    import numpy as np

    np.random.seed()  # as it is in a process that has just started; Python's own does so itself
    # Megatron's checkpoint writer has a queue in a process that it spawns, for which a new Python
    # reads the script again; forked, it is the same queue.
    context.SpawnContext.Manager = context.ForkContext().Manager
    if work[0] == "script":
        _, script, arguments = work
        sys.argv = [script, *arguments]
        sys.path[0] = str(Path(script).parent)
        return lambda: runpy.run_path(script, run_name="__main__") and None
    sys.path[:] = path
    return lambda: _return(work[1], f"{files}.result")


def _finish(work: Callable[[], None]) -> NoReturn:
    """Do it, and end as Python ends, without its last step of freeing all memory page by page."""
    code: Any = 0
    try:
        work()
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _return(call: bytes, file: str) -> None:
    function, arguments = pickle.loads(call)
    Path(file).write_bytes(pickle.dumps(function(*arguments)))


if __name__ == "__main__":
    _finish(_serve(Path(sys.argv[1]), int(sys.argv[2])))
