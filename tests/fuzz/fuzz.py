"""Gives changed inputs to every reader of the package, in several processes, and prints a table.

    python tests/fuzz/fuzz.py --seconds 600
    python tests/fuzz/fuzz.py --inputs 100000 mixture idx
    python tests/fuzz/fuzz.py --replay build/fuzz/idx-1234abcd

An exception that a reader does not document is a finding, and so is a refusal of several lines, an
input that takes longer than 20 seconds or 2 GiB, and one that ends the process. The input of each
kind of finding is written to build/fuzz, with the traceback beside it.
"""

import argparse
import ctypes
import faulthandler
import hashlib
import logging
import mmap
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuzz_targets import targets_in
from fuzzing import Target, attempt, drawn, mutations
from nemo_chameleon.utils.tables import table

FOUND = Path("build/fuzz")
_BATCH, _DRAWN = 2000, 100  # inputs of a batch that are changed seeds, and that hypothesis makes
_MEMORY = 2 << 30
_LARGEST = 1 << 20  # bytes of an input
_RESTARTS = 20
_CONTEXT = multiprocessing.get_context("fork")


class Worker:
    """A process that gives inputs to one reader; what it is doing survives its death."""

    def __init__(self, target: Target, seconds: float, inputs: int) -> None:
        self.target, self.inputs = target, inputs
        self.begun = time.monotonic()
        self.ends = self.begun + seconds
        self.counts: Any = _CONTEXT.Array(ctypes.c_long, 4, lock=False)
        self.current = mmap.mmap(-1, _LARGEST + 8)
        self.findings: set[str] = set()
        self.starts = 0
        self.seconds = 0.0
        self._start()

    def _start(self) -> None:
        self.starts += 1
        self.process = _CONTEXT.Process(target=self._run, daemon=True)
        self.process.start()

    def _run(self) -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.enable()
        batch = self.starts * 1_000_000
        while time.monotonic() < self.ends and self.counts[0] < self.inputs:
            batch += 1
            for data in mutations(self.target, batch, min(_BATCH, self.inputs - self.counts[0])):
                self._try(data)
                if time.monotonic() > self.ends:
                    return
            drawn(self.target, batch, min(_DRAWN, self.inputs - self.counts[0] + 1), self._try)

    def _try(self, data: bytes) -> None:
        self.current[:8] = len(data).to_bytes(8, "little")
        self.current[8 : 8 + len(data[:_LARGEST])] = data[:_LARGEST]
        verdict, details = attempt(self.target, data)
        self.counts[0] += 1
        place = {"refused": 1, "accepted": 2}.get(verdict, 3)
        self.counts[place] += 1
        if place == 3 and verdict not in self.findings:
            self.findings.add(verdict)
            write(self.target.name, data, verdict, details)

    def is_done(self) -> bool:
        """Return whether the process has ended well; start another one if it died of an input."""
        if self.process.is_alive():
            return False
        self.process.join()
        self.seconds = time.monotonic() - self.begun
        if self.process.exitcode == 0:
            return True
        size = int.from_bytes(self.current[:8], "little")
        died = f"the process died with exit code {self.process.exitcode}"
        write(self.target.name, self.current[8 : 8 + min(size, _LARGEST)], died, died)
        self.counts[0] += 1
        self.counts[3] += 1
        if self.starts > _RESTARTS:
            return True
        self._start()
        return False


def write(name: str, data: bytes, verdict: str, details: str) -> None:
    """Write an input that found something, and what it found.

    Args:
        name: of the target.
        data: the input.
        verdict: what it found, in one line.
        details: the traceback.
    """
    FOUND.mkdir(parents=True, exist_ok=True)
    path = FOUND / f"{name}-{hashlib.sha256(verdict.encode()).hexdigest()[:8]}"
    path.write_bytes(data)
    path.with_name(f"{path.name}.txt").write_text(f"{verdict}\n{details}")
    print(f"finding: {name}: {verdict}: {path}", flush=True)


def run(targets: Sequence[Target], jobs: int, seconds: float, inputs: int) -> list[Worker]:
    """Give inputs to each reader, to a few of them at a time.

    Args:
        targets: the readers.
        jobs: number of processes at a time.
        seconds: for all readers together.
        inputs: the most for one reader.

    Returns:
        For each reader what was counted.
    """
    waiting, active, done = list(targets), list[Worker](), list[Worker]()
    ends = time.monotonic() + seconds
    while waiting or active:
        while waiting and len(active) < jobs:
            share = max(1.0, ends - time.monotonic()) * jobs / (len(waiting) + len(active))
            active.append(Worker(waiting.pop(0), share, inputs))
        time.sleep(0.05)
        ended = [worker for worker in active if worker.is_done()]
        active = [worker for worker in active if worker not in ended]
        done += ended
    return done


def main() -> int:
    """Run what the command line says, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="readers; default: all")
    parser.add_argument("--seconds", type=float, help="for all readers together; default: 600")
    parser.add_argument("--inputs", type=int, help="the most for one reader; default: no limit")
    parser.add_argument("--jobs", type=int, default=2, help="processes; default: 2")
    parser.add_argument("--replay", type=Path, help="an input of build/fuzz or tests/fuzz/found")
    arguments = parser.parse_args()
    logging.disable()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # files are ten times as fast
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        targets = targets_in(Path(folder))
        if arguments.replay:
            name = arguments.replay.name.rpartition("-")[0]
            verdict, details = attempt(targets[name], arguments.replay.read_bytes())
            print(verdict, details, sep="\n")
            return int(verdict not in ("accepted", "refused"))
        if unknown := [name for name in arguments.targets if name not in targets]:
            parser.error(f"no target {unknown[0]!r}; there are {', '.join(targets)}")
        chosen = [targets[name] for name in arguments.targets or targets]
        inputs = arguments.inputs or 10**12
        seconds = arguments.seconds or (10**9 if arguments.inputs else 600)
        workers = run(chosen, arguments.jobs, seconds, inputs)
    rows = []
    for worker in workers:
        tried, refused, accepted, findings = worker.counts
        rate = f"{worker.seconds / max(1, tried) * 1e6:,.0f}"
        counts = [f"{count:,}" for count in (tried, refused, accepted, findings)]
        rows.append([worker.target.name, *counts, f"{worker.seconds:,.0f}", rate])
    header = ["target", "inputs", "refused", "accepted", "findings", "seconds", "µs each"]
    print(table(header, sorted(rows)))
    return int(any(worker.counts[3] for worker in workers))


if __name__ == "__main__":
    sys.exit(main())
