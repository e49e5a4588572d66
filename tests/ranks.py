"""Ranks for the tests: they are forked from a process that has imported torch and megatron-core.

A test runs a script or a function on ranks as torchrun would, without the seconds of imports:

    done = ranks.run(script, arguments, processes=2)   # exit code and output of the ranks
    results = ranks.on_ranks(2, function, argument)    # the function's return value on each rank

Two servers import everything once per test session and fork a process for each rank. All processes
that one server forks hash strings with the same seed, and therefore order sets alike. That is why
there are two servers: neighbouring ranks come from different servers, and so does the same rank in
two successive runs. Whatever depends on the order of a set differs between ranks and between runs,
as it does when processes really start.

Some things show only when processes really start: torchrun's own messages, the console scripts,
missing imports, and processes that import the recipe again. Tests of these are marked `slow`.
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

_FOLDER = "CHAMELEON_RANK_SERVERS"  # environment variable with the folder of the session's servers
_SERVERS = 2
_TO_START = 300  # seconds that a server may take to import everything
_TO_END = 10  # seconds between SIGTERM and SIGKILL
_calls = 0


class RankError(AssertionError):
    """A rank failed that should not have failed, or took too long; the text has all output."""


# What tests use.


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Make servers available to this process and its children; end the servers on exit."""
    if _FOLDER in os.environ:
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="ranks-"))
    os.environ[_FOLDER] = str(folder)
    # A server reads the end of this file when this process ends, in whatever way it ends.
    os.mkfifo(folder / "life")
    life = os.open(folder / "life", os.O_RDWR)
    try:
        yield
    finally:
        os.close(life)
        del os.environ[_FOLDER]
        shutil.rmtree(folder, ignore_errors=True)


def start_servers() -> None:
    """Start the session's servers, unless they have been started; do not wait for them."""
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
    """Return a connection to a new process that a server has forked to look after one rank."""
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
    """Running processes: the ranks of one torchrun on one node, or one process that runs alone.

    Attributes:
        codes: exit codes by rank, negative for a signal; None for a rank that is still running.
    """

    def __init__(self, work: tuple[Any, ...], processes: int | None) -> None:
        """Start them.

        Args:
            work: ("script", path, arguments), or ("function", function and arguments, pickled).
            processes: number of ranks; None for one process without torchrun's variables.
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
        """Return the variables that torchrun sets on every rank, with a store of their own."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

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
        """Return what the ranks have written to "stdout" or "stderr", one rank after the other."""
        files = [self._folder / f"{rank}.{stream}" for rank in range(len(self.codes))]
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def returned(self) -> list[Any]:
        """Return the function's return value on each rank."""
        files = [self._folder / f"{rank}.result" for rank in range(len(self.codes))]
        return [pickle.loads(file.read_bytes()) for file in files]

    def send(self, rank: int, number: int) -> None:
        """Send a signal to a rank."""
        with contextlib.suppress(BrokenPipeError):  # the rank has ended
            self._links[rank].send(int(number))

    def kill(self) -> None:
        """Send SIGKILL to all at once."""
        self._send_all(signal.SIGKILL)
        self._gather(_TO_END)
        self._close()

    def poll(self, timeout: float = 0) -> bool:
        """Wait for one rank to end, and end the others if it failed; return whether all have ended.

        Args:
            timeout: seconds to wait for one rank to end.
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
        """Wait for all ranks; return the exit code of torchrun, or of the one process without it.

        Raises:
            RankError: they took longer than `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while not self.poll(max(0, deadline - time.monotonic())):
            if time.monotonic() >= deadline:
                self.kill()
                raise RankError(self._everything(f"not done in {timeout} s"))
        return int(any(self.codes)) if len(self.codes) > 1 else self.codes[0] or 0

    def require_success(self, what: str) -> None:
        """Raise a RankError with all output, unless every rank ended with exit code 0."""
        if any(self.codes):
            raise RankError(self._everything(what))

    def _running(self) -> dict[Any, int]:
        return {self._links[rank]: rank for rank, code in enumerate(self.codes) if code is None}

    def _send_all(self, number: int) -> None:
        for rank in self._running().values():
            self.send(rank, number)

    def _gather(self, timeout: float, first: bool = False) -> None:
        """Receive exit codes until all ranks have ended, or the `first` of them has."""
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
    """Start a script on ranks, or as one process without torchrun if `processes` is None."""
    return Ranks(("script", str(script), list(arguments)), processes)


def run(
    script: Path | str,
    arguments: Sequence[str] = (),
    processes: int | None = None,
    check: bool = True,
    timeout: float = 300,
) -> "subprocess.CompletedProcess[str]":
    """Run a script as `python script`, or on a number of ranks as torchrun would; wait for its end.

    Raises:
        RankError: it failed although `check` is true, or it took longer than `timeout` seconds.
    """
    ranks = start_script(script, arguments, processes)
    code = ranks.wait(timeout)
    if check:
        ranks.require_success(f"{script} {' '.join(arguments)}")
    command = [str(script), *arguments]
    return subprocess.CompletedProcess(command, code, ranks.said("stdout"), ranks.said("stderr"))


def on_ranks(processes: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return what a function of a module returns on each of a number of ranks.

    Raises:
        RankError: it failed on a rank; the text has the traceback.
    """
    ranks = Ranks(("function", pickle.dumps((function, arguments))), processes)
    ranks.wait()
    ranks.require_success(f"{function.__qualname__} on {processes} ranks")
    return ranks.returned()


# What runs in the servers and in the processes that they fork.


def _import_everything() -> None:
    """Import all modules of this package that can be imported here, with their dependencies."""
    for name in ("tokenizers", "torch.distributed.elastic.multiprocessing.errors"):
        importlib.import_module(name)
    sys.path.insert(0, str(ROOT))  # this folder's package, whichever is installed
    package = importlib.import_module("nemo_chameleon")
    del sys.path[0]
    # A module of a host that is not installed is skipped. A test that needs it will say so.
    for module in pkgutil.walk_packages(package.__path__, "nemo_chameleon.", lambda _: None):
        with contextlib.suppress(ImportError):
            importlib.import_module(module.name)


def _serve(folder: Path, number: int) -> Callable[[], object]:
    """Fork a process for each request; return what to do, in the forked process only."""
    life = os.open(folder / "life", os.O_RDONLY | os.O_NONBLOCK)
    _import_everything()
    threads = len([*Path("/proc/self/task").iterdir()])
    assert threads == 1, f"{threads} threads, which a fork would not have"
    gc.collect()
    gc.freeze()  # without this the first collection in every fork would copy all memory
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / f"{number}.socket"))
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no process waits for those forked below
    waited_for: list[Any] = [listener, life]
    while True:
        ready, _, _ = select.select(waited_for, [], [])
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


def _keep(link: connection.Connection) -> Callable[[], object]:
    """Start a rank, forward signals to it and report its exit code; return in the rank only."""
    try:
        request = link.recv()
    except EOFError:
        os._exit(0)
    child = os.fork()
    if child == 0:
        link.close()
        return _become(*request)
    ended = os.pidfd_open(child)
    waited_for: list[Any] = [ended, link]
    while True:
        ready, _, _ = select.select(waited_for, [], [])
        if ended in ready:
            break
        try:
            number = link.recv()
        except EOFError:  # the test no longer waits for the rank
            number = signal.SIGKILL
        os.kill(child, number)
        if number == signal.SIGKILL:
            break
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    # Helper processes that the rank leaves behind would otherwise run for ever.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(BrokenPipeError):
        link.send(code)
    os._exit(0)


def _become(
    work: tuple[Any, ...], env: dict[str, str], path: list[str], files: str
) -> Callable[[], object]:
    """Give this process everything but the imports of a newly started process."""
    os.setsid()
    for stream, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(f"{files}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, stream)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    import numpy as np

    np.random.seed()  # as in a new process; Python's own generator does so after a fork by itself
    # Megatron's checkpoint writer spawns a process for its queue, and the new Python would read the
    # script again. A forked process has the same queue.
    forking: Any = context.ForkContext()
    context.SpawnContext.Manager = forking.Manager  # type: ignore[method-assign]
    if work[0] == "script":
        _, script, arguments = work
        sys.argv = [script, *arguments]
        sys.path[0] = str(Path(script).parent)
        return lambda: runpy.run_path(script, run_name="__main__")
    sys.path[:] = path
    return lambda: _return(work[1], f"{files}.result")


def _finish(work: Callable[[], object]) -> NoReturn:
    """Do the work and end as Python ends, but without freeing all memory page by page."""
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
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _return(call: bytes, file: str) -> None:
    function, arguments = pickle.loads(call)
    Path(file).write_bytes(pickle.dumps(function(*arguments)))


if __name__ == "__main__":
    _finish(_serve(Path(sys.argv[1]), int(sys.argv[2])))
