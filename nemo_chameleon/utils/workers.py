"""Processes that work for one command, and end with it however it ends."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, parent_process
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from nemo_chameleon.utils.errors import UserError

_TOKENIZER_THREADS = "TOKENIZERS_PARALLELISM"


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


class _Context(SpawnContext):
    """Starts processes anew, which share no locks and no threads with this one.

    Attributes:
        started: the processes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.started: list[SpawnProcess] = []

    def Process(self, *args: Any, **settings: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        """Make a process, and keep it in `started`."""
        self.started.append(SpawnProcess(*args, **settings))
        return self.started[-1]


@contextmanager
def workers(
    count: int, begin: Callable[..., None], arguments: tuple[Any, ...], broken: str
) -> Iterator[ProcessPoolExecutor]:
    """Start processes; inside the block they take tasks, and show no progress bars of their own.

    If the block ends with an error, they end at once.

    Args:
        count: number of processes.
        begin: called in each process before its first task; a function of a module.
        arguments: what `begin` is called with.
        broken: what a process does and what helps if one ends by itself, for the error.

    Yields:
        The pool.

    Raises:
        UserError: a process has ended by itself.
    """
    context = _Context()
    with (
        _environment(TQDM_DISABLE="1", **{_TOKENIZER_THREADS: "false"}),
        ProcessPoolExecutor(count, context, _begin, (begin, *arguments)) as pool,
    ):
        try:
            yield pool
        except BaseException as error:
            for process in context.started:
                process.kill()
            if isinstance(error, BrokenProcessPool):
                raise UserError(broken) from error
            raise
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def one_tokenizer_thread() -> Iterator[None]:
    """Let the tokenizers library use this thread alone."""
    with _environment(**{_TOKENIZER_THREADS: "false"}):
        yield


def _begin(begin: Callable[..., None], *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    begin(*arguments)


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, even if it was killed."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
