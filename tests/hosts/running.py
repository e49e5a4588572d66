"""Start scripts that train in a host, each in a process of its own."""

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


def started(*command: str, folder: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a script to its end in one process that torchrun did not start."""
    port = str(_free_port())
    alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "1"}
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **alone, "LOCAL_RANK": "0", "TORCHDYNAMO_DISABLE": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


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
    lines = [line for line in run.stdout.splitlines() if line.startswith(f"{what} ")]
    assert run.returncode == 0 and lines, run.stderr[-3000:]
    return json.loads(lines[0].removeprefix(what))
