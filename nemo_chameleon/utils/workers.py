"""Processes that work for one command, and end with it however it ends."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from typing import Any

from nemo_chameleon.utils.errors import UserError

TOKENIZER_THREADS = "TOKENIZERS_PARALLELISM"
"""The variable that tells the tokenizers library whether it may use several threads."""


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def workers(
    count: int, begin: Callable[..., None], arguments: tuple[Any, ...], broken: str
) -> Iterator[ProcessPoolExecutor]:
    """Start processes; inside the block they take tasks.

    Args:
        count: number of processes.
        begin: called in each process before its first task; a function of a module.
        arguments: what `begin` is called with.
        broken: what a process does and what helps if one ends by itself, for the error.

    Yields:
        The pool. What waits when the block ends is not begun.

    Raises:
        UserError: a process has ended by itself.
    """
    # Processes that are started anew share no locks and no threads with this one.
    context = get_context("spawn")
    with ProcessPoolExecutor(count, context, _begin, (begin, *arguments)) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise UserError(broken) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(begin: Callable[..., None], *arguments: Any) -> None:
    os.environ[TOKENIZER_THREADS] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    begin(*arguments)


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, even if it was killed."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
