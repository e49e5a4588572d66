"""How the recipes and the command line behave as programs."""

import functools
import os
import re
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from nemo_chameleon.utils.errors import UserError
from nemo_chameleon.utils.logging import show_on_stdout
from nemo_chameleon.utils.preemption import StoppedError

# megatron-core says on import, several times and in every process, what is not installed, and
# torch's checkpoint code warns of what megatron-core calls in it. Neither is for the user to mend.
_KNOWN_WARNINGS = (
    "Transformer Engine and Apex are not installed",
    "Apex is not installed",
    "full scope is deprecated",
    "`load_state_dict` is deprecated",
    "Please use DTensor instead",
)

# Longer than it takes torchrun and srun to notice a process that is gone, and end the rest.
_LET_OTHERS_SPEAK = 30  # seconds


def program(main: Callable[[], None]) -> Callable[[], None]:
    """Make `main` end on a UserError with one line on stderr and exit code 2, no traceback.

    On a StoppedError too, with its exit code.

    Under torchrun every rank finds the same error, and one per node should say so. So the others
    wait: torchrun ends them as soon as that one exits. Who is still there then was alone with it.
    What torchrun says in the end has the traceback of any other error in it; and ranks whose
    collective broke because another one died wait too, so that its error comes first.
    """

    @functools.wraps(main)
    def run() -> None:
        for message in _KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message=re.escape(message))
        # Megatron's checkpoint writer starts a Python of its own.
        inherited = [os.environ.get("PYTHONWARNINGS"), *(f"ignore:{m}" for m in _KNOWN_WARNINGS)]
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, inherited))
        show_on_stdout()
        try:
            main()
            sys.stdout.flush()
        except BrokenPipeError:
            # Whoever reads has seen enough, as `head` has. What is still buffered goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except (UserError, StoppedError) as error:
            if int(os.environ.get("LOCAL_RANK", "0")) != 0:
                time.sleep(10)
            stopped = isinstance(error, StoppedError)
            print(f"{'' if stopped else 'error: '}{error}", file=sys.stderr, flush=True)
            sys.exit(StoppedError.exit_code if stopped else 2)
        except Exception as error:
            if _came_from_elsewhere(error):
                time.sleep(_LET_OTHERS_SPEAK)
            raise

    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return run
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(run)


def _came_from_elsewhere(error: Exception) -> bool:
    """Whether it is a collective's that lost another rank."""
    if "torch" not in sys.modules:
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo/transport" in str(error)


def progress_bar(**settings: Any) -> Any:
    """A tqdm bar that redraws itself on a terminal, and adds a line now and then to a log."""
    interval = 1.0 if sys.stderr.isatty() else 30.0
    return tqdm(dynamic_ncols=True, mininterval=interval, maxinterval=2 * interval, **settings)
