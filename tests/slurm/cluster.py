"""A real SLURM cluster on this machine: Debian's slurm-wlm and munge, as root.

    python tests/slurm/cluster.py COMMAND [ARGUMENT ...]

starts a cluster, runs the command and stops the cluster. All tests that the command runs use this
cluster, also in several processes, as pytest -n starts them.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

NODES = tuple(f"n{number}" for number in range(1, 15))
"""Enough for all jobs of the tests that run at the same time."""

_SHARED = "CHAMELEON_SLURM"  # environment variable: the folder of the cluster that tests share

# The scheduler looks for jobs that can start every second. By default it takes up to a minute to
# start a job that was put back into the queue.
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5,socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
GresTypes=gpu
KillWait=10
MinJobAge=86400
NodeName=n[1-{count}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=4 Gres=gpu:8
PartitionName=all Nodes=n[1-{count}] Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs.

    Attributes:
        folder: its files; each node sees files of its own in the folder `local`.
        work: the folder that jobs are submitted from.
        env: environment variables of its commands and jobs.
    """

    folder: Path
    work: Path
    env: dict[str, str]

    def run(self, *command: str) -> str:
        """Run a command of SLURM and return what it prints."""
        done = subprocess.run(
            command, env=self.env, cwd=self.work, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}: {done.stderr}{self.logs()}"
        return done.stdout.strip()

    def given(self, **variables: str) -> "Cluster":
        """Return the same cluster, with more environment variables for its commands and jobs."""
        return replace(self, env={**self.env, **variables})

    def submit(self, *arguments: str) -> str:
        """Submit a job and return its number."""
        return self.run("sbatch", "--parsable", *arguments)

    def facts(self, job: str) -> dict[str, str]:
        """Return what `scontrol show job` says."""
        pairs = self.run("scontrol", "show", "job", job).split()
        return dict(pair.split("=", 1) for pair in pairs if "=" in pair)

    def ended(self, job: str, within: float = 300) -> dict[str, str]:
        """Wait for the end of a job and return its facts."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.until(lambda: self.facts(job)["JobState"] in over, within, job)
        return self.facts(job)

    def until(self, happened: Callable[[], bool], within: float, job: str) -> None:
        """Wait until something has happened, for a number of seconds at most."""
        deadline = time.monotonic() + within
        while not happened():
            assert time.monotonic() < deadline, f"{self.facts(job)}{self.logs()}"
            time.sleep(0.2)

    @property
    def local(self) -> Path:
        """A folder in which every node sees different files."""
        return self.folder / "local"

    def on(self, node: str, *command: str) -> None:
        """Run a command that sees the files of a node."""
        pid = (self.folder / f"{node}.pid").read_text().strip()
        subprocess.run(["nsenter", f"--target={pid}", "--mount", *command], check=True)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` returns in the first process that asks for `name`, as JSON keeps it.

        Other processes wait for the first one.
        """
        kept = self.folder / f"{name}.json"
        with (self.folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():
                kept.write_text(json.dumps(make()))
        return json.loads(kept.read_text())

    def logs(self) -> str:
        """Return the ends of the daemons' logs."""
        return "".join(
            f"\n{path}:\n{path.read_text()[-1500:]}" for path in self.folder.glob("*.log")
        )


@contextlib.contextmanager
def shared_cluster(folder: Path, work: Path) -> Iterator[Cluster]:
    """Give the cluster that this file started as a command, or else start one in `folder`.

    Its jobs run in this environment and start one process per node. They do not compile: loading
    torch's compiler would take a quarter of the time that a process needs to start.
    """
    env = {**os.environ, "NPROC": "1", "OMP_NUM_THREADS": "1", "GRACE": "60"}
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "TORCHDYNAMO_DISABLE": "1"}
    shared = os.environ.get(_SHARED)
    with contextlib.nullcontext(Path(shared)) if shared else _started(folder) as running:
        yield Cluster(running, work, {**env, "SLURM_CONF": str(running / "slurm.conf")})


@contextlib.contextmanager
def _started(folder: Path) -> Iterator[Path]:
    """Start a cluster whose files are in `folder`, and stop its processes in the end."""
    devices = folder / "devices"
    for path in (devices, folder / "state", folder / "local"):
        path.mkdir(parents=True)
    for number in range(8):
        os.mknod(devices / f"gpu{number}", 0o20666, os.makedev(1, 3))  # these act like /dev/null
    count = len(NODES)
    port = _free_ports(1 + count)
    configuration = _CONFIGURATION.format(
        host=socket.gethostname(),
        folder=folder,
        port=port,
        first=port + 1,
        last=port + count,
        count=count,
    )
    (folder / "slurm.conf").write_text(configuration)
    (folder / "gres.conf").write_text(f"Name=gpu File={devices}/gpu[0-7]\n")
    cluster = Cluster(folder, folder, {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")})
    try:
        _start_munge(folder)
        cluster.run("slurmctld", "-c")
        for node in NODES:
            own_disk = f'mount -t tmpfs none "{cluster.local}" && exec slurmd -N {node}'
            cluster.run("unshare", "--mount", "sh", "-c", own_disk)
        deadline = time.monotonic() + 60
        while cluster.run("sinfo", "-h", "-o", "%t %D") != f"idle {count}":
            assert time.monotonic() < deadline, cluster.logs()
            time.sleep(0.2)
        yield folder
    finally:
        subprocess.run(["scancel", "--user=root", "--full"], env=cluster.env, check=False)
        stopped = []
        for name in (*NODES, "slurmctld", "munge"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                pid = int((folder / f"{name}.pid").read_text())
                os.kill(pid, signal.SIGTERM)
                stopped.append(Path(f"/proc/{pid}"))
        deadline = time.monotonic() + 30
        # Until they have ended they write files.
        while any(process.exists() for process in stopped) and time.monotonic() < deadline:
            time.sleep(0.1)


def missing() -> list[str]:
    """Return the commands that the tests need and that are not installed."""
    needed = ("sbatch", "slurmctld", "slurmd", "munged", "shellcheck")
    return [command for command in needed if shutil.which(command) is None]


def _start_munge(folder: Path) -> None:
    """Start SLURM's authentication, with a key and a socket of this cluster's own."""
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))
    files = ("socket", "pid-file", "log-file", "seed-file")
    options = [f"--{name}={folder}/munge.{name.removesuffix('-file')}" for name in files]
    subprocess.run(["munged", "--force", f"--key-file={key}", *options], check=True)


def _free_ports(count: int) -> int:
    """Return the first of `count` consecutive ports that nobody listens at."""
    for first in range(26800, 28000, count):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError("no free ports")


def main() -> int:
    """Run a command with a cluster and return its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster is stopped
    with (
        tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as name,
        _started(Path(name)) as folder,
    ):
        return subprocess.run(sys.argv[1:], env={**os.environ, _SHARED: str(folder)}).returncode


if __name__ == "__main__":
    sys.exit(main())
