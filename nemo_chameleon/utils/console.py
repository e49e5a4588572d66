"""How the recipes and the command line behave as programs."""

import functools
import io
import os
import re
import select
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.logging import show_on_stdout
from nemo_chameleon.utils.preemption import StoppedError
from nemo_chameleon.utils.tables import printable

# megatron-core warns in every process about packages that are not installed, and torch's checkpoint
# code warns about how megatron-core calls it. A user can do nothing about either.
_KNOWN_WARNINGS = (
    "Transformer Engine and Apex are not installed",
    "Apex is not installed",
    "full scope is deprecated",
    "`load_state_dict` is deprecated",
    "Please use DTensor instead",
)

# torchrun and srun need less time than this to notice a process that has died and to end the rest.
_LET_OTHERS_SPEAK = 30  # seconds


def program(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap `main` so that a UserError ends it with one line on stderr and exit code 2.

    A StoppedError is printed in the same way, with an exit code of its own.

    Under torchrun every rank raises the same error, and one line per node is enough. The other
    ranks of a node therefore wait before they print, and torchrun ends them once the first rank has
    exited. A rank that is still alive after the wait was the only one with the error. Any other
    exception is recorded for torchrun's final report. A rank whose collective failed because
    another rank died waits as well, so that the report shows the original error.

    Args:
        main: the program.

    Returns:
        A function that runs `main` as described.
    """

    @functools.wraps(main)
    def run() -> None:
        for message in _KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message=re.escape(message))
        # Megatron's checkpoint writer starts another Python process, which reads this variable.
        inherited = [os.environ.get("PYTHONWARNINGS"), *(f"ignore:{m}" for m in _KNOWN_WARNINGS)]
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, inherited))
        if isinstance(sys.stdout, io.TextIOWrapper):  # it may be a terminal that takes ASCII alone
            sys.stdout.reconfigure(errors="backslashreplace")
        show_on_stdout()
        try:
            main()
            sys.stdout.flush()
        except BrokenPipeError:
            if not _stdout_is_closed():
                raise
            # The reader of stdout, for instance `head`, has closed it: drop the buffered rest.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except (UserError, StoppedError) as error:
            if int(os.environ.get("LOCAL_RANK", "0")) != 0:
                time.sleep(_LET_OTHERS_SPEAK)
            stopped = isinstance(error, StoppedError)
            text = printable(f"{'' if stopped else 'error: '}{error}")
            print(text, file=sys.stderr, flush=True)
            sys.exit(StoppedError.exit_code if stopped else 2)
        except Exception as error:
            if _came_from_elsewhere(error):
                time.sleep(_LET_OTHERS_SPEAK)
            raise

    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return run
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(run)


def _stdout_is_closed() -> bool:
    """Return whether the broken pipe is stdout, and not one to another process."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # a pipe without a reader is an error, asked for or not
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _came_from_elsewhere(error: Exception) -> bool:
    """Return whether a collective failed because another rank died."""
    if "torch" not in sys.modules:
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo/transport" in str(error)


def progress_bar(**settings: Any) -> Any:
    """Make a tqdm progress bar that updates each second on a terminal, each 30 seconds in a log.

    Args:
        settings: arguments of `tqdm`.

    Returns:
        The tqdm bar.
    """
    interval = 1.0 if sys.stderr.isatty() else 30.0
    return tqdm(dynamic_ncols=True, mininterval=interval, maxinterval=2 * interval, **settings)
