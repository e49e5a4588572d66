"""Do one task of the benchmark in a process of its own.

    python -m benchmarks.mixtures.task SIZE start|weights METHOD SEED FILE

The task's record is written to FILE.
"""

import json
import logging
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

from benchmarks.mixtures.size import Size, size_called
from nemo_chameleon.utils.console import program
from nemo_chameleon.utils.files import write_atomically


@program
def main() -> None:
    """Do the task and write its record."""
    name, stage, method, seed, file = sys.argv[1:]
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    work = {"start": start, "weights": weights}[stage]
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


if __name__ == "__main__":
    main()
