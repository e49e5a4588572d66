"""Count the samples that a run of two phases draws twice, and those that it leaves out.

    python -m benchmarks.phases

The run draws a thousand samples of three domains by the weights .45, .45 and .10, and then a
thousand by .25, .70 and .05. Each domain has more samples than are drawn from it. The samples are
read from the training sets, and are told apart by their tokens:

    restarted   Megatron-LM's --phase-transition-iterations: each phase is a blend of its own
    reweighted  a run that is stopped, and goes on where it was with another blend of the whole run
    planned     this package's data.stages
    continued   this package's data.on_mixture_change=continue, for a run that began with a blend

A sample is left out if samples that come after it in its domain's order are drawn, and it is not.
The last line is one JSON object.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from nemo_chameleon import Mixture
from nemo_chameleon.config.data import DataConfig, DomainConfig
from nemo_chameleon.data.blend import training_dataset
from nemo_chameleon.data.kinds import kind_of
from nemo_chameleon.data.planned import planned_dataset
from nemo_chameleon.distributed.processes import process_group
from nemo_chameleon.mixture.plan import Blended, Plan, Stage

LENGTH, VOCABULARY, HALF, SAMPLES = 64, 32_000, 1000, 1500
WEIGHTS = ((0.45, 0.45, 0.10), (0.25, 0.70, 0.05))
Sample = tuple[int, ...]


def write_domains(folder: Path) -> DataConfig:
    """Write three domains of random tokens."""
    data = DataConfig(vocab_size=VOCABULARY, split="1,0,0", cache=str(folder / "cache"))
    for number in range(3):
        tokens = np.random.default_rng(number).integers(VOCABULARY, size=SAMPLES * LENGTH + 1)
        prefix = folder / f"domain{number}"
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
        for document in np.array_split(tokens, 100):
            builder.add_document(torch.from_numpy(document), [len(document)])
        builder.finalize(f"{prefix}.idx")
        data.domains[prefix.name] = DomainConfig(path=str(prefix))
    return data


def read(dataset: Any, numbers: Iterable[int]) -> list[tuple[int, Sample]]:
    """Return the domain and the tokens of some samples."""
    samples = (dataset[number] for number in numbers)
    return [(int(sample["dataset_id"]), tuple(sample["tokens"].tolist())) for sample in samples]


def counted(
    first: list[tuple[int, Sample]],
    second: list[tuple[int, Sample]],
    sample_of: Callable[[int, int], Any],
) -> dict[str, int]:
    """Count repeated samples of the second phase, and those of both that are left out."""
    seen, left_out = set(first + second), 0
    for domain in range(3):
        order = [
            (domain, tuple(sample_of(domain, number)["tokens"].tolist())) in seen
            for number in range(SAMPLES - 1)
        ]
        left_out += sum(not drawn for drawn in order[: SAMPLES - 1 - order[::-1].index(True)])
    return {"repeated": len(first) + len(second) - len(seen), "left_out": left_out}


def compare(folder: Path) -> dict[str, dict[str, int]]:
    """Draw both phases in each way."""
    data, sizes = write_domains(folder), {"seq_length": LENGTH, "seed": 1}
    domains = kind_of(data).open_domains(data, LENGTH)
    phases = [Mixture(dict(zip(domains, weights, strict=True))) for weights in WEIGHTS]
    one, two = (training_dataset(data, domains, p, samples=HALF, **sizes) for p in phases)
    long, other = (training_dataset(data, domains, p, samples=2 * HALF, **sizes) for p in phases)

    def planned(*stages: Stage) -> Any:
        return planned_dataset(data, domains, Plan(stages), **sizes)

    plan = planned(*(Stage(phase, HALF) for phase in phases))
    begun = read(long, range(HALF))
    drawn = {name: sum(d == at for d, _ in begun) for at, name in enumerate(domains)}
    blended = Blended(drawn, phases[0].weights, 2 * HALF)
    continued = planned(Stage(phases[0], HALF, blended=blended), Stage(phases[1], HALF))
    half, rest = range(HALF), range(HALF, 2 * HALF)

    def in_blend(domain: int, number: int) -> Any:
        return long.datasets[domain][number]

    return {
        "restarted": counted(read(one, half), read(two, half), in_blend),
        "reweighted": counted(begun, read(other, rest), in_blend),
        "planned": counted(
            read(plan, half), read(plan, rest), lambda at, number: plan.streams[at][number]
        ),
        "continued": counted(begun, read(continued, rest), in_blend),
    }


def main() -> None:
    """Print the counts."""
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder, process_group():
        print(json.dumps(compare(Path(folder))))


if __name__ == "__main__":
    main()
