"""Compute every method's weights and train their base models, several at a time.

    python -m benchmarks.mixtures.run SIZE [--corpora FOLDER] [--seeds 1 2 ...] [--methods NAME ...]

The command can be stopped at any time: a record in results/SIZE.json is not computed again.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from benchmarks.mixtures import base, data
from benchmarks.mixtures.arms import has_weights, mixture_of, require_method
from benchmarks.mixtures.methods import after_chameleon
from benchmarks.mixtures.results import Record, Results
from benchmarks.mixtures.size import SIZES, Arm, Size, size_called
from nemo_chameleon.comparison.runs import FINISHED
from nemo_chameleon.provider.runs import COMPARED
from nemo_chameleon.utils.console import program
from nemo_chameleon.utils.errors import UserError

Task = tuple[str, str, int]  # stage ("start", "weights" or "base"), method, seed


@program
def main() -> None:
    """Prepare the data and compute the missing records."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--corpora", type=Path, help="folder of the texts; smoke needs none")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds of base models")
    parser.add_argument("--methods", nargs="+", help="methods to use instead of the size's")
    arguments = parser.parse_args()
    size = size_called(arguments.size)
    data.prepare(size, arguments.corpora)
    if size.name.startswith("smoke"):  # it tests that everything runs, so it always starts over
        Results(size.name).path.unlink(missing_ok=True)
        shutil.rmtree(size.folder / COMPARED, ignore_errors=True)
    results = Results.going_on(size)
    wanted = tasks(size, arguments.methods, arguments.seeds)
    missing = [task for task in wanted if results.get(*task) is None]
    starts = dict.fromkeys(("start", "uniform", seed) for _, _, seed in missing)
    first = [task for task in starts if not _started(size, task[2])]
    compute(size, results, [*first, *(task for task in missing if task[0] == "weights")])
    train(size, results, [task for task in missing if task[0] == "base"])


def tasks(
    size: Size, methods: list[str] | None = None, seeds: list[int] | None = None
) -> list[Task]:
    """Return the tasks of a size in the order in which they start.

    The weights come first, then the base models seed by seed, so that a benchmark that is stopped
    has about as many base models of each method.

    Args:
        size: the size.
        methods: methods to use instead of the size's.
        seeds: seeds of base models to use instead of the size's.
    """
    for name in methods or ():
        require_method(name)
    arms = size.methods if methods is None else {m: size.methods.get(m, Arm(3)) for m in methods}
    weights = [
        ("weights", method, seed)
        for method, arm in arms.items()
        if has_weights(method)
        for seed in range(1, arm.proxies + 1)
    ]
    last = max(arm.seeds for arm in arms.values())
    return weights + [
        ("base", method, seed)
        for seed in seeds or range(1, last + 1)
        for method, arm in arms.items()
        if seeds or seed <= arm.seeds
    ]


def compute(size: Size, results: Results, missing: list[Task]) -> None:
    """Compute weights, and train what a finetuning starts from, each when its inputs exist.

    Raises:
        UserError: a task failed; the message ends with its error output.
    """
    running: dict[Future[Record], Task] = {}
    progress = _Progress(len(missing))
    with ThreadPoolExecutor(size.workers) as pool:
        while missing or running:
            for task in [task for task in missing if _ready(size, task, results)]:
                if len(running) < size.workers:
                    missing.remove(task)
                    running[pool.submit(_in_a_process, size, task)] = task
            if not running:
                raise UserError(f"{missing[0]} needs Chameleon's run; add chameleon to --methods")
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                task = running.pop(future)
                record = future.result()
                if task[0] != "start":
                    results.add(*task, record)
                progress.tell(task)


def train(size: Size, results: Results, missing: list[Task]) -> None:
    """Train base models, and add their records as they are finished.

    Raises:
        UserError: a run failed; the message ends with its error output.
    """
    progress = _Progress(len(missing))
    for seed, overrides, runs in _alike(size, missing):
        wanted = {"seed": seed, "overrides": overrides, "runs": runs}
        left = [("base", method, seed) for method, seed, _ in runs]
        with tempfile.TemporaryDirectory() as folder:
            file, said = Path(folder) / "runs.json", Path(folder) / "stderr"
            file.write_text(json.dumps(wanted))
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += [f"--nproc_per_node={_processes(size)}", "-m", base.__name__]
            started = time.time()
            with said.open("w") as stderr:
                job = subprocess.Popen(
                    [*command, size.name, str(file)],
                    env=_environment(size),
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                )
            try:
                while left:
                    ended = job.poll() is not None
                    # What was finished earlier counts once the job has checked it.
                    since = 0.0 if ended and job.returncode == 0 else started
                    for task in [t for t in left if _is_trained(size, t, since)]:
                        results.add(*task, base.record(base.directory(size, *task[1:])))
                        left.remove(task)
                        progress.tell(task)
                    if ended and left:
                        raise UserError(f"{left[0]}:\n{said.read_text()[-3000:]}")
                    time.sleep(1)
                job.wait()
            finally:
                job.terminate()
                job.wait()


class _Progress:
    def __init__(self, total: int) -> None:
        self._started, self._total, self._done = time.monotonic(), total, 0

    def tell(self, task: Task) -> None:
        """Print that a task is done."""
        self._done += 1
        print(
            f"{time.monotonic() - self._started:6.0f} s  {self._done}/{self._total}  "
            f"{task[0]} {task[1]}, seed {task[2]}",
            flush=True,
        )


Run = tuple[str, int, dict[str, float]]  # method, seed, weights


def _alike(size: Size, missing: Iterable[Task]) -> Iterator[tuple[int, list[str], list[Run]]]:
    """Group base models that have one configuration: yield a seed, overrides and the runs."""
    groups: dict[tuple[int, tuple[str, ...]], list[Run]] = {}
    for _, method, seed in missing:
        weights, overrides = mixture_of(size, method, seed)
        start = seed if size.start is not None else 1
        groups.setdefault((start, tuple(overrides)), []).append((method, seed, weights))
    for (start, settings), runs in groups.items():
        yield start, [*settings], runs


def _is_trained(size: Size, task: Task, since: float) -> bool:
    file = base.directory(size, *task[1:]) / FINISHED
    return file.is_file() and file.stat().st_mtime > since


def _processes(size: Size) -> int:
    import torch

    return min(size.workers, torch.cuda.device_count() or size.workers)


def _environment(size: Size) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // size.workers)
    return {**os.environ, "OMP_NUM_THREADS": str(threads)}


def _started(size: Size, seed: int) -> bool:
    """Return whether the model that a finetuning starts from exists, if the size needs one."""
    folder = size.start_folder(seed)
    return folder is None or (folder / "latest_checkpointed_iteration.txt").is_file()


def _ready(size: Size, task: Task, results: Results) -> bool:
    stage, method, seed = task
    if stage == "start":
        return True
    if not _started(size, seed):
        return False
    return not after_chameleon(method) or results.get("weights", "chameleon", seed) is not None


def _in_a_process(size: Size, task: Task) -> Record:
    stage, method, seed = task
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "record.json"
        command = [sys.executable, "-m", "benchmarks.mixtures.task", size.name, stage, method]
        done = subprocess.run(
            [*command, str(seed), str(file)],
            env=_environment(size),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise UserError(f"{' '.join(command[2:])} {seed}:\n{done.stderr[-3000:]}")
        record: Record = json.loads(file.read_text())
        return record


if __name__ == "__main__":
    main()
