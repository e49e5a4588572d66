"""Compute every method's weights and base models, several at a time.

    python -m benchmarks.mixtures.run SIZE [--corpora FOLDER] [--seeds 1 2 ...] [--methods NAME ...]

The command can be stopped at any time: a record in results/SIZE.json is not computed again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from benchmarks.mixtures import data
from benchmarks.mixtures.methods import after_chameleon, method_called
from benchmarks.mixtures.results import Record, Results
from benchmarks.mixtures.size import SIZES, Size, size_called
from nemo_chameleon.utils.console import program
from nemo_chameleon.utils.errors import UserError

Task = tuple[str, str, int]  # stage ("start", "weights" or "base"), method, seed


@program
def main() -> None:
    """Prepare the data and compute the missing records."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--corpora", type=Path, help="folder of the texts; smoke needs none")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds to use instead of the size's")
    parser.add_argument("--methods", nargs="+", help="methods to use instead of the size's")
    arguments = parser.parse_args()
    size = size_called(arguments.size)
    data.prepare(size, arguments.corpora)
    if size.name.startswith("smoke"):  # it tests that everything runs, so it always starts over
        Results(size.name).path.unlink(missing_ok=True)
    results = Results.going_on(size)
    seeds, methods = arguments.seeds or size.seeds, arguments.methods or size.methods
    studies = [] if arguments.methods else size.studies
    for name in [*methods, *studies]:
        method_called(name)
    wanted = [(stage, m, s) for s in seeds for m in methods for stage in ("weights", "base")]
    wanted += [("weights", m, s) for s in seeds for m in studies]
    missing = [task for task in wanted if results.get(*task) is None]
    starts = dict.fromkeys(("start", "uniform", seed) for _, _, seed in missing)
    run(size, results, [task for task in starts if not _started(size, task[2])] + missing)


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
                    running[pool.submit(_in_a_process, size.name, task)] = task
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
        return results.get("weights", method, seed) is not None
    return not after_chameleon(method) or results.get("weights", "chameleon", seed) is not None


def _in_a_process(size: str, task: Task) -> Record:
    stage, method, seed = task
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "record.json"
        command = [sys.executable, "-m", "benchmarks.mixtures.task", size, stage, method]
        done = subprocess.run([*command, str(seed), str(file)], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{' '.join(command[2:])} {seed}:\n{done.stderr[-3000:]}")
        record: Record = json.loads(file.read_text())
        return record


if __name__ == "__main__":
    main()
