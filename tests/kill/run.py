"""Kills small jobs again and again, and compares their ends with those of undisturbed ones.

    make kill-test N=200 SEED=1

starts jobs as users do, kills all their processes with SIGKILL at random moments and starts the
same command again, until it ends. Then each job dies right before each change that it makes to a
file of its `output`, and is started again. The counts are printed by the stage that a job was in;
what ended otherwise than the undisturbed job is kept.
"""

import argparse
import collections
import os
import random
import shutil
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from jobs import POINTS, STAGES, Job, differences, ending, kill, make_jobs, stage_of, wait

Counts = dict[str, collections.Counter[str]]
"""By stage: how many jobs were killed there, resumed, and ended equal or different."""


class Harness:
    """Kills one job, and counts what becomes of it."""

    def __init__(self, job: Job, folder: Path) -> None:
        """Run the job undisturbed."""
        self.job, self.folder, self.number = job, folder / job.name, 0
        self.counts: Counts = {stage: collections.Counter() for stage in STAGES}
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        output = self.folder / "undisturbed"
        count = self.folder / "changes"
        process = job.begin(output, self.folder / "undisturbed.log", self._watching(output, count))
        wait(process, output.exists)
        began = time.monotonic()
        if wait(process) != 0:
            raise SystemExit(f"{job.name} fails undisturbed: see {self.folder}/undisturbed.log")
        self.seconds = time.monotonic() - began
        self.ending = ending(output, job.run)
        self.changes = count.read_text().splitlines()
        print(f"{job.name}: {self.seconds:.1f} s, {len(self.changes)} changes of files", flush=True)

    def _watching(self, output: Path, count: Path, at: int = 0) -> dict[str, str]:
        count.unlink(missing_ok=True)
        watch = {"KILL_FOLDER": str(output), "KILL_COUNT": str(count), "KILL_AT": str(at)}
        return {**os.environ, "PYTHONPATH": str(POINTS), **watch}

    def at_random(self, most: int, chance: random.Random) -> int:
        """Kill the job up to `most` times, and let it end; return how often it was killed."""
        output, log = self._new()
        killed: list[str] = []
        while True:
            process, started = self.job.begin(output, log), time.time()
            if len(killed) < most and chance.random() < 0.8:
                known = log.stat().st_size
                # Most of a short job is imports. It begins to work when it says its first word.
                wait(process, partial(_works, output, log, known))
                due = time.monotonic() + chance.uniform(0, self.seconds)
                if wait(process, partial(_over, due)) is None:
                    kill(process)
                    killed.append(stage_of(output, self.job.run, started))
                    continue
            status = wait(process)
            self._judge(output, log, killed, status, f"killed {', '.join(killed)}")
            return len(killed)

    def at_change(self, at: int) -> None:
        """Let the job die right before its `at`-th change of a file, and start it again."""
        output, log = self._new()
        environment = self._watching(output, self.folder / "count", at)
        status = wait(self.job.begin(output, log, environment))
        killed = [] if status == 0 else [stage_of(output, self.job.run)]
        status = wait(self.job.begin(output, log))
        self._judge(output, log, killed, status, f"change {at}: {self.changes[at - 1].strip()}")

    def _new(self) -> tuple[Path, Path]:
        self.number += 1
        output = self.folder / f"{self.number:04d}"
        log = output.with_suffix(".log")
        log.touch()
        return output, log

    def _judge(
        self, output: Path, log: Path, killed: list[str], status: int | None, what: str
    ) -> None:
        for stage in killed:
            self.counts[stage]["kills"] += 1
        found = [f"exit status {status}"]
        if status == 0:
            for stage in killed:
                self.counts[stage]["resumed"] += 1
            try:
                found = differences(self.ending, ending(output, self.job.run))
            except (OSError, ValueError) as error:
                found = [str(error)]
        for stage in killed:
            self.counts[stage]["different" if found else "equal"] += 1
        if found:
            print(f"DIFFERENT {output} ({what}): {'; '.join(found[:3])}", flush=True)
        else:
            shutil.rmtree(output)
            log.unlink()

    def table(self, title: str) -> str:
        """Return the counts since the last call as text, and begin anew."""
        kinds = ("kills", "resumed", "equal", "different")
        lines = [
            f"{self.job.name}, {title}",
            f"  {'stage':16}" + "".join(f"{k:>11}" for k in kinds),
        ]
        of_all: collections.Counter[str] = collections.Counter()
        for stage, counts in self.counts.items():
            if counts:
                lines.append(f"  {stage:16}" + "".join(f"{counts[k]:11}" for k in kinds))
            of_all.update(counts)
        self.counts = {stage: collections.Counter() for stage in STAGES}
        return "\n".join([*lines, f"  {'all':16}" + "".join(f"{of_all[k]:11}" for k in kinds)])


def _works(output: Path, log: Path, known: int) -> bool:
    return output.exists() and log.stat().st_size > known


def _over(due: float) -> bool:
    return time.monotonic() > due


def main() -> int:
    """Kill the jobs; the exit status is 1 if one of them ended otherwise than undisturbed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="random kills (default: 200)")
    parser.add_argument("--every", type=int, default=1, help="try every n-th change; 0: none")
    parser.add_argument("--seed", type=int, default=1, help="of the random moments (default: 1)")
    parser.add_argument("--jobs", nargs="*", help="names of jobs (default: all)")
    parser.add_argument("--folder", type=Path, default=Path("build/kill"), help="for all files")
    given = parser.parse_args()
    folder, chance = given.folder.resolve(), random.Random(given.seed)
    jobs = make_jobs(folder / "data")
    runs = [Harness(job, folder) for job in jobs if not given.jobs or job.name in given.jobs]
    tables, left = [], given.kills
    while left > 0:
        for run in runs:
            left -= run.at_random(min(left, 6), chance) if left > 0 else 0
    tables += [run.table("random kills") for run in runs]
    print("\n".join(tables), flush=True)
    for run in runs if given.every else ():
        for at in range(1, len(run.changes) + 1, given.every):
            run.at_change(at)
        tables.append(run.table(f"deaths before every {given.every}. change of a file"))
        print(tables[-1], flush=True)
    different = any(
        path.is_dir() and path.name.isdecimal() for run in runs for path in run.folder.iterdir()
    )
    return int(different)


if __name__ == "__main__":
    sys.exit(main())
