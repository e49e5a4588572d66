"""Differences between runs of two mixtures at the same seeds, and what they can tell.

Two runs of one seed share their initial weights and their validation samples, so most of what a
seed changes is the same in both and cancels in their difference.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from nemo_chameleon.method.intervals import students_t

_MOST_SEEDS = 1000
"""A search for the number of seeds that would tell two mixtures apart ends here."""


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences over seeds, with its 95 % interval.

    Attributes:
        mean: of the differences, in their unit; below 0 where the first of a pair is smaller.
        deviation: the standard deviation over seeds; nan for one seed.
        seeds: how many seeds.
    """

    mean: float
    deviation: float
    seeds: int

    @classmethod
    def of(cls, values: ArrayLike) -> "Difference":
        """Summarise the differences at each seed.

        Args:
            values: (seeds,), at least one.

        Returns:
            Their mean and standard deviation.
        """
        x = np.asarray(values, dtype=np.float64)
        return cls(float(x.mean()), float(x.std(ddof=1)) if len(x) > 1 else math.nan, len(x))

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval by Student's t distribution; infinite for one seed."""
        return _half_width(self.deviation, self.seeds)

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.mean + self.half_width

    @property
    def told_apart(self) -> bool:
        """Whether the interval does not contain 0."""
        return abs(self.mean) > self.half_width

    def further_seeds(self, size: float) -> int | None:
        """Return how many more seeds would bring the half-width down to a size.

        Args:
            size: in the unit of the differences.

        Returns:
            The number, which assumes that the standard deviation stays what it is; None where one
            seed shows no deviation, or where a thousand seeds would not do.
        """
        if math.isnan(self.deviation):
            return None
        for seeds in range(self.seeds, _MOST_SEEDS):
            if _half_width(self.deviation, seeds) <= size:
                return seeds - self.seeds
        return None

    def below(self, bound: float) -> bool | None:
        """Return whether the difference is below a bound.

        Args:
            bound: in the unit of the differences.

        Returns:
            True or False where the whole interval is on one side of the bound; None otherwise.
        """
        if self.high < bound:
            return True
        return False if self.low > bound else None

    def __str__(self) -> str:
        if math.isnan(self.deviation):
            return f"{self.mean:+.3f}"
        return f"{self.mean:+.3f} ± {self.half_width:.3f}"


def _half_width(deviation: float, seeds: int) -> float:
    if seeds < 2:
        return math.inf
    return students_t(seeds - 1) * deviation / math.sqrt(seeds)
