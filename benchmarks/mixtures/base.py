"""Train base models, as many at once as there are processes, as `recipes/compare_mixtures.py` does.

    torchrun --nproc_per_node=2 -m benchmarks.mixtures.base SIZE FILE

FILE is JSON: the seed of the model that a finetuning starts from, overrides of the configuration,
and the runs, each with a method, a seed and weights. run.py writes it and collects the results.
"""

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mixtures.size import Size, size_called
from nemo_chameleon.comparison.runs import Candidate, train_missing
from nemo_chameleon.provider.runs import COMPARED
from nemo_chameleon.utils.console import program

Record = dict[str, Any]


def directory(size: Size, method: str, seed: int) -> Path:
    """Return the folder of a base model."""
    return size.folder / COMPARED / _name(method) / f"seed{seed}"


def _name(method: str) -> str:
    return method.replace("/", "_")


@program
def main() -> None:
    """Train the base models that are not trained yet."""
    from nemo_chameleon import Mixture, provider
    from nemo_chameleon.distributed.processes import process_group, world_size

    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    size, wanted = size_called(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    own = (f"output={size.folder}", "logging.tensorboard=true", "train.eval_interval=0")
    overrides = [*wanted["overrides"], *own]
    config = size.configured(wanted["seed"], "base", "uniform", (), overrides)
    runs = [
        Candidate(_name(method), seed, Mixture.static(weights))
        for method, seed, weights in wanted["runs"]
    ]
    with process_group():
        domains = provider.inspect(config, 1, world_size()).domains
    train_missing(config, domains, runs)


def record(run: Path) -> Record:
    """Return the record of a base model that is trained."""
    result = json.loads((run / "result.json").read_text())
    return {
        "weights": {name: domain["weight"] for name, domain in result["domains"].items()},
        "loss": {name: domain["loss"] for name, domain in result["domains"].items()},
        "unseen": {name: scores["loss"] for name, scores in result["validation"].items()},
        "epochs": {name: domain["epochs"] for name, domain in result["domains"].items()},
        "gradient norm": _gradient_norms(run),
        "tokens": result["tokens"],
        "parameters": result["parameters"],
        "seconds": result["seconds"],
    }


def _gradient_norms(run: Path) -> dict[str, float]:
    """Return the median and the largest logged gradient norm after the warm-up."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    rates = [point.value for point in events.Scalars("learning rate")]
    norms = [point.value for point in events.Scalars("gradient norm")][int(np.argmax(rates)) :]
    return {"median": float(np.median(norms)), "largest": max(norms)}


if __name__ == "__main__":
    main()
