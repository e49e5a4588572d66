"""How the recipes and the command line behave as programs."""

import contextlib
import functools
import io
import json
import os
import re
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.logging import show_on_stdout
from nemo_chameleon.utils.parent import end_with_parent, is_new_helper
from nemo_chameleon.utils.preemption import StoppedError, end_if_terminated, exit_code_of
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
_LET_OTHERS_LEAVE = 1  # second


def program(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap `main` so that a UserError ends it with one line on stderr and exit code 2.

    A StoppedError and Ctrl-C are printed in the same way, with exit codes of their own. A second
    Ctrl-C ends the process at once.

    Under torchrun every rank raises the same error, and one line per node is enough. The first rank
    of a node prints it and records it for torchrun's final report. The others leave without an
    error if the first one has recorded the same, so that the report names one process. A rank that
    finds nothing recorded for a while was the only one with the error, and prints it. Any other
    exception is recorded too. A rank whose collective failed because another rank died waits, so
    that the report shows the original error.

    Args:
        main: the program.

    Returns:
        A function that runs `main` as described.
    """
    if is_new_helper():
        end_with_parent()

    @functools.wraps(main)
    def run() -> None:
        end_with_parent()
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
        except UserError as error:
            _leave(f"error: {error}", 2)
        except StoppedError as error:
            _leave(str(error), error.exit_code)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            _leave("stopped by SIGINT (Ctrl-C)", exit_code_of(signal.SIGINT))
        except Exception as error:
            if _came_from_elsewhere(error):
                end_if_terminated()
                time.sleep(_LET_OTHERS_SPEAK)
            raise

    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return run
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(run)


def _leave(text: str, code: int) -> NoReturn:
    """Print a line and exit, or exit alone if the first rank of this node says the same."""
    text = printable(text)
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if file is not None and not first:
        # torchrun gives each of its processes a folder, named by its number on the node.
        of_first = Path(file).parent.parent / "0" / Path(file).name
        deadline = time.monotonic() + _LET_OTHERS_SPEAK
        while time.monotonic() < deadline:
            if _recorded(of_first) == text:
                sys.exit(0)
            time.sleep(0.05)
    if file is not None:
        with contextlib.suppress(OSError):
            _record(Path(file), text)
    print(text, file=sys.stderr, flush=True)
    if file is not None and first and os.environ.get("LOCAL_WORLD_SIZE", "1") != "1":
        time.sleep(_LET_OTHERS_LEAVE)
    sys.exit(code)


def _record(file: Path, text: str) -> None:
    """Write what torchrun shows of this process in its final report."""
    extra = {"py_callstack": text, "timestamp": str(int(time.time()))}
    beside = file.with_name(f"{file.name}.tmp")
    beside.write_text(json.dumps({"message": {"message": text, "extraInfo": extra}}))
    beside.replace(file)


def _recorded(file: Path) -> str | None:
    try:
        return str(json.loads(file.read_text())["message"]["message"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


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
