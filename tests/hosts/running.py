"""Start scripts that train in a host, each in a process of its own."""

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LONGEST = 300  # seconds of a run
KILLED = 9
MICRO_BATCH = 2  # samples, of a run that follows a plan


def started(
    *command: str, folder: Path | None = None, ranks: int = 1
) -> "subprocess.CompletedProcess[str]":
    """Run a script to its end in one process that torchrun did not start; or in one for each rank.

    What the ranks print is returned in their order.
    """
    port = str(_free_port())
    with contextlib.ExitStack() as stack:
        jobs, files = [], []
        for rank in range(ranks):
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHDYNAMO_DISABLE": "1"}
            place |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            if ranks > 1:
                place |= {"TORCHELASTIC_RUN_ID": "test", "LOCAL_WORLD_SIZE": str(ranks)}
            # Processes that a killed one has started keep its pipes open, but not these files.
            own = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)]
            job = subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, **place},
                cwd=folder,
                stdout=own[0],
                stderr=own[1],
                start_new_session=True,
            )
            stack.callback(_end, job)
            jobs.append(job)
            files.append(own)
        deadline = time.monotonic() + LONGEST
        codes = [job.wait(timeout=deadline - time.monotonic()) for job in jobs]
        for own in files:
            for file in own:
                file.seek(0)
        out, errors = ("".join(own[at].read() for own in files) for at in range(2))
    code = next((code for code in codes if code), 0)
    return subprocess.CompletedProcess(command, code, out, errors)


def _end(job: "subprocess.Popen[bytes]") -> None:
    """End a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    job.wait()


def _free_port() -> int:
    """Return a port that nobody listens at, below those that the system gives to connections.

    The script listens at it only after a minute of imports.
    """
    first = 28000 + os.getpid() % 2000
    for port in itertools.chain(range(first, 30000), range(28000, first)):
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


def printed(run: "subprocess.CompletedProcess[str]", what: str) -> Any:
    """Return the JSON value that a successful run printed on the line that begins with `what`."""
    assert run.returncode == 0, run.stderr[-3000:]
    return _lines(run, what)[0]


def _lines(run: "subprocess.CompletedProcess[str]", what: str) -> list[Any]:
    lines = [line for line in run.stdout.splitlines() if line.startswith(f"{what} ")]
    assert lines, run.stderr[-3000:]
    return [json.loads(line.removeprefix(what)) for line in lines]


def samples_of(run: "subprocess.CompletedProcess[str]", killed: bool = False) -> list[Any]:
    """Return domain and tokens of the samples that all ranks of a run read, in the run's order."""
    assert (run.returncode == KILLED) if killed else run.returncode == 0, run.stderr[-3000:]
    found, merged = _lines(run, "READ"), []
    for start in range(0, len(found[0]), MICRO_BATCH):
        for of_rank in found:
            merged += [(at, tuple(tokens)) for at, tokens in of_rank[start : start + MICRO_BATCH]]
    return merged
