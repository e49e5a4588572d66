"""Read a size's records as differences from uniform weights at the same seed."""

import math
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.mixtures.results import Record, Results
from benchmarks.mixtures.size import size_called
from nemo_chameleon.comparison.paired import Difference
from nemo_chameleon.utils.errors import UserError

Array = NDArray[np.float64]
PARTS = {"domains": "loss", "unseen": "unseen"}
"""The parts of a record that hold losses, by the names that claims.yaml uses."""


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
        own = [m for m in methods if not m.startswith("uniform:")]
        self.methods = [method for method in own if self.seeds(method)]
        for method in self.methods:
            self._require_one_mixture(method)

    def _require_one_mixture(self, method: str) -> None:
        """Refuse base models of one method that were trained on several mixtures.

        Raises:
            UserError: there are such.
        """
        records = self._results.of("base", method).values()
        weights = [list(record["weights"].values()) for record in records if "weights" in record]
        if (
            method != "permuted"
            and self.size.start is None
            and weights
            and np.ptp(weights, 0).any()
        ):
            raise UserError(
                f"{self._results.path}: the base models of {method} have several mixtures; remove "
                "their records, and measure them again"
            )

    @property
    def settings(self) -> dict[str, dict[int, Record]]:
        """Base models on uniform weights, by seed, by their settings."""
        other = [name for name in self._results.methods() if name.startswith("uniform:")]
        return {name: self._results.of("base", name) for name in ("uniform", *other)}

    @property
    def data(self) -> Record:
        """Tokens, bytes and fingerprints, and the text that unseen domains share with others."""
        facts: Record = self._results.facts["data"]
        return facts

    @property
    def times(self) -> list[str]:
        """When each record was made."""
        of_methods = (self._results.of("base", method) for method in self._results.methods())
        records = [record for of_one in of_methods for record in of_one.values()]
        return [record["created"]["time"] for record in records if "time" in record["created"]]

    @cached_property
    def all_seeds(self) -> list[int]:
        """The seeds of all methods."""
        return sorted({seed for method in self.methods for seed in self.seeds(method)})

    def names(self, part: str) -> list[str]:
        """Return the names of the mixed domains, or of the unseen ones."""
        return self.size.domains if part == "domains" else self.size.unseen

    def seeds(self, method: str, against: str = "uniform") -> list[int]:
        """Return the seeds that have base models of both methods."""
        others = self._results.of("base", against)
        return [seed for seed in self._results.of("base", method) if seed in others]

    def losses(self, method: str, part: str, against: str = "uniform") -> Array:
        """Return a method's losses (seeds, domains) in nats per token.

        Args:
            method: name of the method.
            part: a key of `PARTS`.
            against: only seeds that this method has too.
        """
        records, key = self._results.of("base", method), PARTS[part]
        seeds = self.seeds(method, against)
        return np.array([[records[s][key][name] for name in self.names(part)] for s in seeds])

    def differences(self, method: str, part: str, against: str = "uniform") -> Array:
        """Return `losses` minus those of another method at the same seeds; negative is better."""
        return self.losses(method, part, against) - self.losses(against, part, method)

    def difference(
        self,
        method: str,
        part: str,
        against: str = "uniform",
        first: int | None = None,
        without: int = 0,
    ) -> Difference:
        """Return the difference as claims.yaml defines it.

        That is the mean over the mixed domains or the median over the unseen ones, of the first
        seeds or of all, without as many as `without` says at the beginning.
        """
        over = np.mean if part == "domains" else np.median
        return Difference.of(over(self.differences(method, part, against)[without:first], axis=1))

    def by_set(self, method: str, part: str) -> dict[str, Difference]:
        """Return the difference from uniform weights on each domain of a part."""
        columns = self.differences(method, part).T
        return dict(zip(self.names(part), map(Difference.of, columns), strict=True))

    def weights(self, method: str) -> Array:
        """Return the weights (proxies, domains) that a method's proxies gave."""
        records = self.records(method)
        return np.array([[r["weights"][n] for n in self.size.domains] for r in records.values()])

    def trained_on(self, method: str) -> Array:
        """Return the weights (seeds, domains) of a method's base models."""
        base, computed = self._results.of("base", method), self.records(method)
        records = [base[seed].get("weights") or computed[seed]["weights"] for seed in base]
        return np.array([[weights[name] for name in self.size.domains] for weights in records])

    def records(self, method: str) -> dict[int, Record]:
        """Return the records of a method's weights, by the seed of the proxy."""
        return self._results.of("weights", method)

    def cost(self, method: str, what: str) -> float | None:
        """Return the operations or seconds of all proxies of a method, if they were measured."""
        if not (records := self.records(method)):
            return None
        records = self.records(records[min(records)].get("same cost as", method))
        known = [record[what] for record in records.values() if what in record]
        return float(np.mean(known)) * len(self.records(method)) if known else None

    def bits_per_byte(self, part: str) -> Array | None:
        """Return what turns nats per token into bits per byte (domains,), if it is known."""
        facts = self.data["domains" if part == "domains" else "unseen"]
        sets = [facts[name].get("validation", facts[name]) for name in self.names(part)]
        if not all("bytes" in one for one in sets):
            return None
        return np.array([one["tokens"] / one["bytes"] / math.log(2) for one in sets])


def moved(weights: Array, others: Array) -> Array:
    """Return the total variation (...,) between mixtures (..., domains)."""
    result: Array = np.abs(weights - others).sum(-1) / 2
    return result


def between_seeds(weights: Array) -> float:
    """Return the mean total variation over all pairs of proxies; nan for one proxy."""
    pairs = [moved(weights[:i], weights[i]) for i in range(1, len(weights))]
    return float(np.concatenate(pairs).mean()) if pairs else math.nan


def versions(created: dict[str, Any]) -> str:
    """Format the versions and the time that a record was made with."""
    return ", ".join(f"{key} {value}" for key, value in created.items())
