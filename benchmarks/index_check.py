"""What it costs a run to verify Megatron's indices when it starts.

    python -m benchmarks.index_check [--samples N] [--turns N] [--folder FOLDER]

The script writes 22 domains and builds the indices of N samples, a hundred million by default. Then
processes start a run in turns, with and without the verification: they import the package, check
the configuration and the domains, build the model and its optimizer, and load the indices. Before
each start of the second half of the turns the indices are dropped from the machine's memory, so
that they are read from the disk. The last line is one JSON object.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.scale import DOCUMENT, LENGTH, VOCABULARY, write_domains
from nemo_chameleon import Mixture
from nemo_chameleon.config import load_config
from nemo_chameleon.data import cached
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.distributed.layout import model_parallel
from nemo_chameleon.distributed.processes import process_group
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.train.trainer import Trainer

DOMAINS, BATCH = 22, 1000


def start(folder: Path, samples: int, verified: bool) -> dict[str, float]:
    """Start a run, up to its first iteration, and time the verification."""
    spent = []
    fault_of = cached.fault_of

    def timed(*arguments: Any) -> str | None:
        begun = time.perf_counter()
        fault = fault_of(*arguments) if verified else None
        spent.append(time.perf_counter() - begun)
        if fault is not None:
            raise RuntimeError(f"the indices are damaged: {fault}")
        return fault

    cached.fault_of = timed
    paths = sorted(path.with_suffix("") for path in folder.glob("*.idx"))
    settings = [f"data.domains.{path.name}.path={path}" for path in paths]
    settings += [f"output={folder}/out", f"data.cache={folder}/cache", "data.mixture=uniform"]
    settings += [f"data.vocab_size={VOCABULARY}", "data.split=1,0,0", "train.eval_iters=0"]
    settings += [f"model.seq_length={LENGTH}", f"train.train_iters={samples // BATCH}"]
    settings += [f"train.global_batch_size={BATCH}"]
    config = load_config(None, settings)
    with process_group():
        domains = kind_of(config.data).open_domains(config.data, LENGTH)
        run = TrainingRun("uniform", config, config, domains, Mixture.uniform(domains))
        with model_parallel(config.parallel, config.train.seed):
            drawn = len(Trainer(run).dataset)
    return {"samples": drawn, "verification": sum(spent)}


def timed_start(folder: Path, samples: int, verified: bool) -> dict[str, float]:
    """Start a run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.index_check", "--start", str(int(verified))]
    command += ["--folder", str(folder), "--samples", str(samples)]
    begun = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    taken = time.perf_counter() - begun
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": taken, **found}


def drop(folder: Path) -> None:
    """Ask the kernel to drop the files of a folder from memory."""
    for path in folder.rglob("*.npy"):
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compare(folder: Path, samples: int, turns: int, cold: bool) -> dict[str, float]:
    """Start runs with and without the verification in turns, and compare the medians."""
    found: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for turn in range(turns):
        for verified in (bool(turn % 2), not turn % 2):
            if cold:
                drop(folder / "cache")
            found[verified].append(timed_start(folder, samples, verified))

    def median(verified: bool, key: str) -> float:
        return statistics.median(one[key] for one in found[verified])

    return {
        "start": median(True, "seconds"),
        "start_without": median(False, "seconds"),
        "ratio": median(True, "seconds") / median(False, "seconds"),
        "verification": median(True, "verification"),
    }


def main() -> None:
    """Parse the command line and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=100_000_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; by default a temporary folder")
    parser.add_argument("--start", type=int, choices=(0, 1), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.start is not None:
        print(json.dumps(start(given.folder, given.samples, bool(given.start))))
        return
    parent = Path(tempfile.mkdtemp(dir=given.folder))
    folder = parent / "data"
    try:
        write_domains(folder, DOMAINS, given.samples * LENGTH // DOCUMENT // DOMAINS + 1)
        first = timed_start(folder, given.samples, True)
        size = sum(path.stat().st_size for path in (folder / "cache").rglob("*.npy"))
        found = {
            "samples": first["samples"],
            "gigabytes": size / 1e9,
            "first_start": first["seconds"],
            "from_memory": compare(folder, given.samples, given.turns, cold=False),
            "from_disk": compare(folder, given.samples, given.turns, cold=True),
        }
        print(json.dumps(found))
    finally:
        shutil.rmtree(parent, ignore_errors=True)


if __name__ == "__main__":
    main()
