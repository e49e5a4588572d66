"""Compute every method's weights and base models, several at a time.

    python -m benchmarks.mixtures.run SIZE [--corpora FOLDER] [--seeds 1 2 ...] [--methods NAME ...]

The command can be stopped at any time: a record in results/SIZE.json is not computed again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from benchmarks.mixtures import data
from benchmarks.mixtures.arms import has_weights, require_method
from benchmarks.mixtures.methods import after_chameleon
from benchmarks.mixtures.results import Record, Results
from benchmarks.mixtures.size import SIZES, Arm, Size, size_called
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
    results = Results.going_on(size)
    wanted = tasks(size, arguments.methods, arguments.seeds)
    missing = [task for task in wanted if results.get(*task) is None]
    starts = dict.fromkeys(("start", "uniform", seed) for _, _, seed in missing)
    run(size, results, [task for task in starts if not _started(size, task[2])] + missing)


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


def run(size: Size, results: Results, missing: list[Task]) -> None:
    """Start each task when its inputs exist.

    Raises:
        UserError: a task failed; the message ends with its error output.
    """
    started = time.monotonic()
    running: dict[Future[Record], Task] = {}
    total = len(missing)
    with ThreadPoolExecutor(size.workers) as pool:
        while missing or running:
            for task in [task for task in missing if _ready(size, task, results)]:
                if len(running) < size.workers:
                    missing.remove(task)
                    running[pool.submit(_in_a_process, size.name, task, size.workers)] = task
            if not running:
                raise UserError(f"{missing[0]} needs Chameleon's run; add chameleon to --methods")
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                task = running.pop(future)
                record = future.result()
                if task[0] != "start":
                    results.add(*task, record)
                left = len(missing) + len(running)
                print(
                    f"{time.monotonic() - started:6.0f} s  {total - left}/{total}  "
                    f"{task[0]} {task[1]}, seed {task[2]}",
                    flush=True,
                )


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
    if stage == "base":
        needed = "chameleon" if method == "permuted" else method
        arm = size.methods.get(needed, Arm(3))
        return not has_weights(needed) or len(results.of("weights", needed)) >= arm.proxies
    return not after_chameleon(method) or results.get("weights", "chameleon", seed) is not None


def _in_a_process(size: str, task: Task, workers: int) -> Record:
    stage, method, seed = task
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "record.json"
        command = [sys.executable, "-m", "benchmarks.mixtures.task", size, stage, method]
        threads = max(1, (os.cpu_count() or 1) // workers)
        done = subprocess.run(
            [*command, str(seed), str(file)],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise UserError(f"{' '.join(command[2:])} {seed}:\n{done.stderr[-3000:]}")
        record: Record = json.loads(file.read_text())
        return record


if __name__ == "__main__":
    main()
