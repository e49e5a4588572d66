"""Read a size's records as differences from uniform weights, with intervals over seeds."""

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.mixtures.results import Record, Results
from benchmarks.mixtures.size import size_called
from nemo_chameleon.method.intervals import students_t

Array = NDArray[np.float64]


class Measured:
    """The records of one size.

    Attributes:
        size: the size that was run.
        uniform: records of the base models on uniform weights, by seed.
        methods: methods that have a base model on a seed of a uniform one, in the size's order.
    """

    def __init__(self, name: str) -> None:
        self.size = size_called(name)
        self._results = Results(name)
        self.uniform = self._results.of("base", "uniform")
        methods = dict.fromkeys([*self.size.methods, *self._results.methods()])
        self.methods = [method for method in methods if self.seeds(method)]

    @property
    def data(self) -> Record:
        """Tokens and fingerprints, and the text that unseen domains share with the others."""
        facts: Record = self._results.facts["data"]
        return facts

    @cached_property
    def all_seeds(self) -> list[int]:
        """The seeds of all methods."""
        return sorted({seed for method in self.methods for seed in self.seeds(method)})

    def seeds(self, method: str) -> list[int]:
        """Return the seeds that have both the method's base model and the uniform one."""
        return [seed for seed in self._results.of("base", method) if seed in self.uniform]

    def losses(self, method: str, part: str) -> Array:
        """Return losses (seeds, domains) in nats per token.

        Args:
            method: name of the method.
            part: "loss" for the domains that are mixed, "unseen" for the others.
        """
        records = self._results.of("base", method)
        names = self.size.domains if part == "loss" else self.size.unseen
        return np.array([[records[s][part][name] for name in names] for s in self.seeds(method)])

    def differences(self, method: str, part: str) -> Array:
        """Return `losses` minus those of uniform weights at the same seed; negative is better."""
        names = self.size.domains if part == "loss" else self.size.unseen
        same = [[self.uniform[s][part][name] for name in names] for s in self.seeds(method)]
        return self.losses(method, part) - np.array(same)

    def weights(self, method: str, seeds: Iterable[int] | None = None) -> Array:
        """Return weights (seeds, domains) of some seeds, or of all seeds that have them."""
        records, names = self.records(method), self.size.domains
        wanted = records if seeds is None else seeds
        return np.array([[records[seed]["weights"][name] for name in names] for seed in wanted])

    @property
    def studied(self) -> list[str]:
        """Chameleon with its defaults and with other settings, where there are weights."""
        return [
            m for m in self._results.methods() if m.startswith("chameleon:") or m == "chameleon"
        ]

    def records(self, method: str) -> dict[int, Record]:
        """Return the records of a method's weights, by seed."""
        return self._results.of("weights", method)

    def cost(self, method: str, what: str) -> float:
        """Return the mean operations or seconds of computing a method's weights."""
        records = self.records(method)
        records = self.records(records[min(records)].get("same cost as", method))
        return float(np.mean([record[what] for record in records.values()]))


def interval(values: Array) -> tuple[float, float]:
    """Return the mean over seeds and the half-width of its 95 % interval, infinite for one seed."""
    if len(values) < 2:
        return float(values.mean()), math.inf
    spread = values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(students_t(len(values) - 1) * spread)


def moved(weights: Array, others: Array) -> Array:
    """Return the total variation (seeds,) between mixtures (seeds, domains)."""
    result: Array = np.abs(weights - others).sum(1) / 2
    return result


def between_seeds(weights: Array) -> float:
    """Return the mean total variation over all pairs of seeds; nan for one seed."""
    pairs = [moved(weights[:i], weights[i]) for i in range(1, len(weights))]
    return float(np.concatenate(pairs).mean()) if pairs else math.nan


def versions(created: dict[str, Any]) -> str:
    """Format the versions and the time that a record was made with."""
    return ", ".join(f"{key} {value}" for key, value in created.items())
