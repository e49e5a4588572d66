"""The plan of a run: stages of mixtures, and the samples that the run draws in each.

Each domain's samples are counted over all stages. So a run that goes from one stage to the next
draws no sample of a domain twice before all of them have been drawn once.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from nemo_chameleon.mixture.mixture import Mixture
from nemo_chameleon.mixture.order import DomainOrder
from nemo_chameleon.utils.arrays import Ints
from nemo_chameleon.utils.errors import UserError, reason_of

RECORDED = "recorded"
"""The name of mixtures that are read from a record of a plan."""


@dataclass(frozen=True)
class Blended:
    """Samples that a run has drawn in the order of Megatron's blend, before it followed a plan.

    Attributes:
        drawn: samples of each domain.
        weights: the blend's weights, in its order.
        samples: the samples of the whole run, for which the blend was made.
    """

    drawn: Mapping[str, int]
    weights: Mapping[str, float]
    samples: int


@dataclass(frozen=True)
class Stage:
    """A mixture, and for how many samples a run draws by it.

    Attributes:
        mixture: the weights. Nothing is drawn from a domain that it lacks.
        samples: number of samples of the stage.
        shares: shares of samples by domain, where the weights are shares of answer tokens.
        asked: a digest of what the configuration asked for, before the bounds were applied.
        blended: what was drawn, where it was in the order of Megatron's blend; such a stage is
            over.
    """

    mixture: Mixture
    samples: int
    shares: Mapping[str, float] | None = None
    asked: str | None = None
    blended: Blended | None = None

    @cached_property
    def weights(self) -> dict[str, float]:
        """Shares of the stage's samples by domain, in the order of the names."""
        weights = self.mixture.weights if self.shares is None else self.shares
        return {name: weights[name] for name in sorted(weights)}

    @cached_property
    def order(self) -> DomainOrder:
        """The order of the domains, whose positions are those in `weights`."""
        return DomainOrder([*self.weights.values()])

    @cached_property
    def places(self) -> dict[str, int]:
        """The position of each domain in `weights`."""
        return {name: at for at, name in enumerate(self.weights)}

    @cached_property
    def drawn(self) -> dict[str, int]:
        """Samples of each of its domains in the whole stage."""
        return self.counts()

    def counts(self, samples: int | None = None) -> dict[str, int]:
        """Return how many of the first samples of the stage are of each of its domains.

        Args:
            samples: number of samples from the stage's start; None for the whole stage.

        Returns:
            Samples by domain name.
        """
        if self.blended is not None:
            return dict(self.blended.drawn) if samples != 0 else {}
        counts = self.order.counts(self.samples if samples is None else samples)
        return dict(zip(self.weights, counts.tolist(), strict=True))

    def record(self) -> dict[str, Any]:
        """Return what decides the stage's samples, as JSON can hold it."""
        method = self.mixture.method
        found = {"mixture": method.get("of", self.mixture.name), "asked": self.asked}
        found |= {"samples": self.samples, "weights": self.weights}
        blended = None if self.blended is None else asdict(self.blended)
        found |= {"blended": blended}
        return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class Plan:
    """The stages of a run, in order.

    Attributes:
        stages: at least one; none without samples.

    Raises:
        UserError: there is no stage, or a stage has no samples.

    Example:
        >>> broad = Mixture.static({"code": 1, "wiki": 3})
        >>> plan = Plan((Stage(broad, 80), Stage(Mixture.static({"wiki": 1}), 20)))
        >>> plan.counts(80), plan.counts(90)
        ({'code': 20, 'wiki': 60}, {'code': 20, 'wiki': 70})
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        """Check that there is something to draw in every stage."""
        if not self.stages:
            raise UserError("a plan needs at least one stage")
        for number, stage in enumerate(self.stages, 1):
            if stage.samples < 1:
                raise UserError(f"stage {number} of the plan has {stage.samples} samples")

    @property
    def samples(self) -> int:
        """Samples of the whole run."""
        return self.starts[-1]

    @cached_property
    def starts(self) -> list[int]:
        """(stages + 1,) the sample with which each stage begins, and the number of all samples."""
        return [0, *itertools.accumulate(stage.samples for stage in self.stages)]

    @cached_property
    def names(self) -> list[str]:
        """All domains that are drawn in some stage, in the order of their first stage."""
        return list(dict.fromkeys(name for s in self.stages for name in s.mixture.weights))

    def counts(self, samples: int) -> dict[str, int]:
        """Return how many of the run's first samples are of each domain.

        Args:
            samples: number of samples, at most those of the run.

        Returns:
            Samples by domain name.
        """
        return {name: sum(of_one.values()) for name, of_one in self.by_stage(samples).items()}

    def by_stage(self, samples: int | None = None) -> dict[str, dict[int, int]]:
        """Return how many samples of each domain the run draws in each stage.

        Args:
            samples: how many of the run's samples are counted; None for all.

        Returns:
            By domain name, samples by the stage's number, from 1.
        """
        found: dict[str, dict[int, int]] = {name: {} for name in self.names}
        left = self.samples if samples is None else samples
        for number, stage in enumerate(self.stages, 1):
            for name, count in stage.counts(min(left, stage.samples)).items():
                found.setdefault(name, {})[number] = count
            left = max(0, left - stage.samples)
        return found

    def sample_of(self, name: str, number: int) -> int | None:
        """Return at which sample of the run a sample of a domain comes.

        Args:
            name: the domain.
            number: how many of the domain's samples come before it.

        Returns:
            The number of the sample in the run, from 0; None if the run does not draw it. Within
            samples that were drawn in Megatron's order, it is an estimate.
        """
        for stage, start in zip(self.stages, self.starts, strict=False):
            drawn = stage.drawn.get(name, 0)
            if number < drawn and stage.blended is not None:
                return start + number * stage.samples // drawn
            if number < drawn:
                return start + stage.order.sample_of(stage.places[name], number)
            number -= drawn
        return None

    def until(self, samples: int) -> tuple[Stage, ...]:
        """Return the stages up to a sample, the last of them cut there.

        Args:
            samples: number of samples.

        Returns:
            The stages; none for 0 samples.
        """
        begun = [s for s, start in zip(self.stages, self.starts, strict=False) if start < samples]
        if not begun:
            return ()
        rest = samples - self.starts[len(begun) - 1]
        return (*begun[:-1], replace(begun[-1], samples=min(rest, begun[-1].samples)))

    @property
    def mixture(self) -> Mixture:
        """The mixture of the only stage, or else the shares of all samples, named "plan"."""
        if len(self.stages) == 1:
            return self.stages[0].mixture
        drawn = {name: count for name, count in self.counts(self.samples).items() if count}
        return replace(Mixture.static(drawn), method={"name": "plan"})

    def record(self) -> list[dict[str, Any]]:
        """Return what decides the samples of the run, as JSON can hold it."""
        return [stage.record() for stage in self.stages]

    @classmethod
    def of_record(cls, record: Sequence[Mapping[str, Any]], source: str) -> "Plan":
        """Make a plan from a record.

        Args:
            record: what `record` returned, read from JSON.
            source: where it was found, for errors.

        Returns:
            The plan; its mixtures are named `RECORDED`, and their method has their former name as
            `of`.

        Raises:
            UserError: it is not such a record.
        """
        try:
            return cls(tuple(_stage_of(entry) for entry in record))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{source} has no plan that can be read: {reason_of(error)}") from error


def _stage_of(entry: Mapping[str, Any]) -> Stage:
    method = {"name": RECORDED, "of": str(entry["mixture"])}
    mixture = Mixture(dict(entry["weights"]), method=method)
    blended = entry.get("blended")
    return Stage(
        mixture,
        int(entry["samples"]),
        asked=entry.get("asked"),
        blended=None if blended is None else Blended(**blended),
    )


class PlannedOrder:
    """The order of the samples of a whole plan."""

    def __init__(self, plan: Plan, names: Sequence[str]) -> None:
        """Take a plan whose domains have the positions that they have in `names`.

        Args:
            plan: the plan.
            names: the domains; all of the plan's must be there.
        """
        self._plan = plan
        self._starts = plan.starts
        place = {name: at for at, name in enumerate(names)}
        self._places = [np.array([place[n] for n in s.weights], np.int64) for s in plan.stages]
        self._before = []  # samples of each of the stage's domains before the stage
        drawn = dict.fromkeys(names, 0)
        for stage in plan.stages:
            self._before.append(np.array([drawn[name] for name in stage.weights], np.int64))
            for name, count in stage.drawn.items():
                drawn[name] += count

    def at(self, samples: Ints) -> tuple[Ints, Ints]:
        """Return which domains some samples are of, wherever they are in the run.

        Args:
            samples: (n,) numbers of samples, from 0.

        Returns:
            (n,) positions of domains; and for each sample how many samples of its domain the run
            has drawn before it. Both are -1 for samples that were drawn in Megatron's order, which
            is not known here.
        """
        positions, numbers = np.full(len(samples), -1), np.full(len(samples), -1)
        of_stage = np.searchsorted(self._starts, samples, side="right") - 1
        for at in np.unique(of_stage).tolist():
            stage, here = self._plan.stages[at], of_stage == at
            if stage.blended is None:
                domains, within = stage.order.at(samples[here] - self._starts[at])
                positions[here] = self._places[at][domains]
                numbers[here] = self._before[at][domains] + within
        return positions, numbers
