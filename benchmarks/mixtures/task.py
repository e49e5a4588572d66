"""Do one task of the benchmark in a process of its own.

    python -m benchmarks.mixtures.task SIZE start|weights|base METHOD SEED FILE

The task's record is written to FILE. A base model reads its weights from the size's result file.
"""

import json
import logging
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mixtures.size import Size, size_called
from nemo_chameleon.utils.console import program
from nemo_chameleon.utils.files import write_atomically


@program
def main() -> None:
    """Do the task and write its record."""
    name, stage, method, seed, file = sys.argv[1:]
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    work = {"start": start, "weights": weights, "base": base}[stage]
    write_atomically(Path(file), json.dumps(work(size_called(name), method, int(seed))))


def start(size: Size, mixture: str, seed: int) -> dict[str, Any]:
    """Train the model that a finetuning starts from, with the size that it names."""
    from nemo_chameleon import provider
    from nemo_chameleon.distributed.processes import process_group
    from nemo_chameleon.train import trainer

    assert size.start is not None, "run.py starts this task only for a size that has `start`"
    config = size_called(size.start).configured(seed, "start", mixture)
    prepared = provider.prepare(config)
    with process_group():
        weights = provider.resolve_mixture(config, prepared)
        trainer.train(provider.base_run(config, prepared.domains, weights))
    return {}


def weights(size: Size, name: str, seed: int) -> dict[str, Any]:
    """Compute a method's weights and their cost."""
    from benchmarks.mixtures.methods import Setting, method_called
    from nemo_chameleon import provider
    from nemo_chameleon.distributed.processes import process_group

    wanted = "chameleon" if name == "chameleon" else "uniform"
    # Methods that need Chameleon's run read its folder.
    folder = name if name in ("doge", "regmix") else "chameleon"
    config = size.configured(seed, folder, wanted)
    prepared = provider.prepare(config)
    with process_group():
        record = method_called(name)(Setting(size, seed, config, {**prepared.domains}))
    if name in ("doge", "regmix"):
        shutil.rmtree(config.output)
    return record


def base(size: Size, method: str, seed: int) -> dict[str, Any]:
    """Train a base model with the product on a method's weights; return its losses."""
    from benchmarks.mixtures.arms import mixture_of
    from nemo_chameleon import Mixture, provider
    from nemo_chameleon.distributed.processes import process_group
    from nemo_chameleon.train import trainer

    weights, overrides = mixture_of(size, method, seed)
    name = f"base-{method}".replace("/", "_")
    file = size.folder / f"seed{seed}" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    Mixture.static(weights).save(file)
    overrides = [*overrides, "logging.tensorboard=true"]
    config = size.configured(seed, name, str(file), (), overrides)
    prepared = provider.prepare(config)
    with process_group():
        mixture = provider.resolve_mixture(config, prepared)
        run = provider.base_run(config, prepared.domains, mixture)
        result = trainer.train(run)
    norms = gradient_norms(run.directory, config.optimizer.lr_warmup_iters)
    shutil.rmtree(config.output)  # the checkpoints are not needed any more
    return {
        "weights": weights,
        "loss": {name: domain["loss"] for name, domain in result["domains"].items()},
        "unseen": {name: scores["loss"] for name, scores in result["validation"].items()},
        "epochs": {name: domain["epochs"] for name, domain in result["domains"].items()},
        "gradient norm": norms,
        "tokens": result["tokens"],
        "parameters": result["parameters"],
        "seconds": result["seconds"],
    }


def gradient_norms(run: Path, after: int) -> dict[str, float]:
    """Return the median and the largest logged gradient norm after an iteration of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    norms = [point.value for point in events.Scalars("gradient norm") if point.step > after]
    return {"median": float(np.median(norms)), "largest": max(norms)}


if __name__ == "__main__":
    main()
