"""The folder of a run that a host trains, for engine=nemo and engine=bridge."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from nemo_chameleon.config.schema import Config
from nemo_chameleon.distributed.collectives import on_first_rank
from nemo_chameleon.distributed.lease import Lease
from nemo_chameleon.distributed.processes import process_group
from nemo_chameleon.provider.runs import run_name
from nemo_chameleon.utils.ranks import is_first_rank


def run_folder(config: Config) -> Path:
    """Return the folder of a run that a host trains, for engine=nemo and engine=bridge.

    Args:
        config: the whole configuration.

    Returns:
        A folder under `output` that this package's own engine does not use.
    """
    return Path(config.output) / f"{run_name(config)}-{config.engine}"


@contextlib.contextmanager
def owned_folder(run: Path) -> Iterator[None]:
    """Keep other jobs from the folder of a run that a host trains in the block.

    Every rank must enter it, before the host starts its processes' group. The host writes without
    asking again, so a job that was suspended for a minute may write although another one has begun.

    Args:
        run: what `run_folder` returns.

    Yields:
        Nothing.

    Raises:
        UserError: another job has the folder.
    """
    # It is beside the folder, because NeMo moves the files that it finds in there.
    lease = Lease(run.with_name(f"{run.name}.lease"), str(run), "set output to another folder")
    with process_group():
        on_first_rank(lease.take)
    try:
        yield
    finally:
        if is_first_rank():
            lease.release()
