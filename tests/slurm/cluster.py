"""A real SLURM cluster of two nodes on this machine, of Debian's slurm-wlm and munge, as root."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
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
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
GresTypes=gpu
KillWait=10
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=4 Gres=gpu:8
PartitionName=all Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """A cluster that is running.

    Attributes:
        folder: the folder of its files; the files in `local` there lie on each node's own disk.
        work: the folder that jobs are submitted from.
        env: the environment of its commands and jobs.
    """

    folder: Path
    work: Path
    env: dict[str, str]

    def run(self, *command: str) -> str:
        """Run a command of SLURM's and return what it prints."""
        done = subprocess.run(
            command, env=self.env, cwd=self.work, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stderr}{self.logs()}"
        return done.stdout.strip()

    def given(self, **variables: str) -> "Cluster":
        """Return this cluster with more variables for its commands and jobs."""
        return replace(self, env={**self.env, **variables})

    def submit(self, *arguments: str) -> str:
        """Submit a job and return its number."""
        return self.run("sbatch", "--parsable", *arguments)

    def facts(self, job: str) -> dict[str, str]:
        """Return what `scontrol show job` says of a job."""
        pairs = self.run("scontrol", "show", "job", job).split()
        return dict(pair.split("=", 1) for pair in pairs if "=" in pair)

    def ended(self, job: str, within: float = 180) -> dict[str, str]:
        """Wait for a job to end, and return its facts."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.until(lambda: self.facts(job)["JobState"] in over, within, job)
        return self.facts(job)

    def until(self, happened: Callable[[], bool], within: float, job: str) -> None:
        """Wait until something has happened, `within` so many seconds."""
        deadline = time.monotonic() + within
        while not happened():
            assert time.monotonic() < deadline, f"{self.facts(job)}{self.logs()}"
            time.sleep(0.2)

    @property
    def local(self) -> Path:
        """Return a path where the two nodes see different files."""
        return self.folder / "local"

    def on(self, node: str, *command: str) -> None:
        """Run a command among the files that a node sees."""
        pid = (self.folder / f"{node}.pid").read_text().strip()
        subprocess.run(["nsenter", f"--target={pid}", "--mount", *command], check=True)

    def logs(self) -> str:
        """Return the ends of the daemons' logs."""
        return "".join(
            f"\n{path}:\n{path.read_text()[-1500:]}" for path in self.folder.glob("*.log")
        )


@contextlib.contextmanager
def cluster(folder: Path, work: Path) -> Iterator[Cluster]:
    """Start a cluster, and end its processes by their numbers in the end.

    Its jobs run in this environment, and start one process per node.
    """
    _munge()
    env = {**os.environ, "NPROC": "1", "OMP_NUM_THREADS": "1", "GRACE": "60"}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    devices = folder / "devices"
    for path in (devices, folder / "state", folder / "local"):
        path.mkdir(parents=True)
    for number in range(8):
        os.mknod(devices / f"gpu{number}", 0o20666, os.makedev(1, 3))  # the device is /dev/null
    first = _free_ports(3)
    configuration = _CONFIGURATION.format(
        host=socket.gethostname(), folder=folder, port=first, first=first + 1, last=first + 2
    )
    (folder / "slurm.conf").write_text(configuration)
    (folder / "gres.conf").write_text(f"Name=gpu File={devices}/gpu[0-7]\n")
    running = Cluster(folder, work, {**env, "SLURM_CONF": str(folder / "slurm.conf")})
    try:
        running.run("slurmctld", "-c")
        for node in ("n1", "n2"):
            own_disk = f'mount -t tmpfs none "{running.local}" && exec slurmd -N {node}'
            running.run("unshare", "--mount", "sh", "-c", own_disk)
        deadline = time.monotonic() + 60
        while running.run("sinfo", "-h", "-o", "%t %D") != "idle 2":
            assert time.monotonic() < deadline, running.logs()
            time.sleep(0.5)
        yield running
    finally:
        subprocess.run(["scancel", "--user=root", "--full"], env=running.env, check=False)
        for name in ("n1", "n2", "slurmctld"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int((folder / f"{name}.pid").read_text()), 15)


def missing() -> list[str]:
    """Return the commands that are not installed."""
    needed = ("sbatch", "slurmctld", "slurmd", "munged", "shellcheck")
    return [command for command in needed if shutil.which(command) is None]


def _munge() -> None:
    """Start SLURM's authentication, unless it is running."""
    if subprocess.run(["munge", "-n"], capture_output=True).returncode == 0:
        return
    for folder in ("/run/munge", "/var/log/munge", "/var/lib/munge"):
        Path(folder).mkdir(exist_ok=True)
        shutil.chown(folder, "munge", "munge")
    Path("/run/munge").chmod(0o755)
    subprocess.run(["su", "-s", "/bin/sh", "munge", "-c", "munged"], check=True)


def _free_ports(count: int) -> int:
    """Return the first of `count` consecutive ports that are free."""
    for first in range(26800, 28000, count):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError("no free ports")
