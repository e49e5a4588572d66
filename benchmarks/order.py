"""Compare the order of domains by streams with Megatron's blend: its speed, its shares, its start.

    python -m benchmarks.order [--domains N ...] [--started N ...] [--folder FOLDER]

For each number of domains the script puts a million samples in order, in Megatron's way and in that
of data.order=streams, and looks at every prefix for how far a domain is from its share. Then it
builds the indices of runs over domains of about a thousand documents, and times how long a process
takes from the opened domains to its first sample when they are there. The last line is one JSON
object.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from megatron.core.datasets import helpers

from benchmarks.provider import seconds
from benchmarks.scale import LENGTH, VOCABULARY, write_domains
from nemo_chameleon import Mixture
from nemo_chameleon.config.data import DataConfig, DomainConfig
from nemo_chameleon.data.blend import training_dataset
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.data.planned import planned_dataset
from nemo_chameleon.distributed.processes import process_group
from nemo_chameleon.mixture.order import DomainOrder
from nemo_chameleon.mixture.plan import Plan, Stage
from nemo_chameleon.utils.arrays import Floats, Ints

SAMPLES, DOCUMENTS = 1_000_000, 1000


def deviation(weights: Floats, domains: Ints, numbers: Ints) -> float:
    """Return how far a domain's count is from its share, at any prefix of an order."""
    # A count is furthest from its share right before and right after a sample of the domain.
    shares, prefix = weights[domains], np.arange(len(domains))
    early, late = numbers + 1 - (prefix + 1) * shares, prefix * shares - numbers
    return float(max(early.max(), late.max()))


def ordered(count: int) -> dict[str, Any]:
    """Put samples in order in both ways."""
    weights = np.random.default_rng(0).dirichlet(np.full(count, 2.0))
    of_domain, of_sample = np.zeros(SAMPLES, np.int16), np.zeros(SAMPLES, np.int64)
    arguments = (of_domain, of_sample, weights, count, SAMPLES, False)
    blended = seconds(lambda: helpers.build_blending_indices(*arguments))
    trees: list[DomainOrder] = []
    tree = seconds(lambda: trees.append(DomainOrder(weights)))
    drawn: list[tuple[Ints, Ints]] = []
    streamed = seconds(lambda: drawn.append(trees[0].at(np.arange(0, SAMPLES))))
    return {
        "domains": count,
        "microseconds_a_sample": {
            "megatron": blended / SAMPLES * 1e6,
            "streams": streamed / SAMPLES * 1e6,
        },
        "deviation": {
            "megatron": deviation(weights, of_domain.astype(np.int64), of_sample),
            "streams": deviation(weights, *drawn[0]),
            "bound": trees[0].bound,
        },
        "seconds_of_tree": tree,
    }


def draw_first(folder: Path, order: str) -> float:
    """Open a folder's domains, and return the seconds from then on to the first sample of a run."""
    paths = sorted(folder.glob("*.idx"))
    data = DataConfig(vocab_size=VOCABULARY, split="1,0,0", cache=str(folder / "cache"))
    for path in paths:
        data.domains[path.stem] = DomainConfig(path=str(path.with_suffix("")))
    with process_group():
        domains = kind_of(data).open_domains(data, LENGTH)
        mixture, samples = Mixture.uniform(domains), 100 * len(paths)
        sizes = {"seq_length": LENGTH, "seed": 1}
        begun = time.perf_counter()
        if order == "megatron":
            dataset = training_dataset(data, domains, mixture, samples=samples, **sizes)
        else:
            dataset = planned_dataset(data, domains, Plan((Stage(mixture, samples),)), **sizes)
        dataset[0]
        return time.perf_counter() - begun


def started(parent: Path, count: int) -> dict[str, Any]:
    """Time the first start of a run, which builds its indices, and one that finds them."""
    folder = parent / f"{count}"
    write_domains(folder, count, DOCUMENTS)
    found: dict[str, Any] = {"domains": count}
    for order in ("megatron", "streams"):
        command = [sys.executable, "-m", "benchmarks.order", "--draw", order]
        times: list[float] = []
        for _ in range(2):
            done = subprocess.run(
                [*command, "--folder", str(folder)], capture_output=True, text=True
            )
            if done.returncode:  # Megatron opens all files at once, which may be too many
                found[order] = {"failed": done.stderr.splitlines()[-1][-300:]}
                break
            times.append(float(done.stdout.splitlines()[-1]))
        else:
            found[order] = {"seconds_to_build": times[0], "seconds_to_first_sample": times[1]}
    shutil.rmtree(folder)
    return found


def main() -> None:
    """Parse the command line and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--domains", type=int, nargs="*", default=[22, 1000, 10_000])
    parser.add_argument("--started", type=int, nargs="*", default=[22, 1000, 10_000])
    parser.add_argument("--folder", type=Path, help="where to write; by default a temporary folder")
    parser.add_argument("--draw", choices=("megatron", "streams"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.draw is not None:
        print(draw_first(given.folder, given.draw))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        found = {
            "ordered": [ordered(count) for count in given.domains],
            "started": [started(Path(folder), count) for count in given.started],
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
