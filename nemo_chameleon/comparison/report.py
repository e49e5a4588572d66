"""What a comparison shows: tables of paired differences in loss, and verdicts in words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nemo_chameleon.comparison.paired import Difference
from nemo_chameleon.train.report import Result
from nemo_chameleon.utils.arrays import Floats
from nemo_chameleon.utils.tables import decimal, table

PARTS = {"domains": "the domains", "validation": "the other sets"}
"""The keys of a result that hold losses, and what they are called in words."""
_BY_CHANCE = (
    "Each interval is for itself: if nothing differed, chance would tell one set in twenty apart."
)
# How many sets a line names before the rest is only counted.
_NAMED = 12


@dataclass(frozen=True)
class Comparison:
    """The results of several mixtures at the same seeds; all are compared with the first one.

    Attributes:
        results: by seed, by mixture.
        difference: the smallest difference in loss that matters, in nats per token.
        worst: the most that the loss on any one domain may rise by; None for no such limit.
    """

    results: Mapping[str, Mapping[int, Result]]
    difference: float = 0.01
    worst: float | None = None

    @property
    def baseline(self) -> str:
        """The mixture that the others are compared with."""
        return next(iter(self.results))

    @property
    def others(self) -> list[str]:
        """The other mixtures."""
        return list(self.results)[1:]

    @property
    def seeds(self) -> list[int]:
        """The seeds that every mixture has a run of."""
        all_runs = self.results.values()
        return [s for s in self.results[self.baseline] if all(s in runs for runs in all_runs)]

    def sets(self, part: str) -> list[str]:
        """Return the names of the sets that losses were measured on.

        Args:
            part: "domains", or "validation" for the sets that no run draws from.

        Returns:
            The names of those that every run was evaluated on.
        """
        runs = [run for of_seed in self.results.values() for run in of_seed.values()]
        return [
            name for name in runs[0][part] if all("loss" in r[part].get(name, {}) for r in runs)
        ]

    def losses(self, mixture: str, part: str) -> Floats:
        """Return the losses of a mixture's runs.

        Args:
            mixture: its name.
            part: as in `sets`.

        Returns:
            (seeds, sets), in nats per token.
        """
        sets, runs = self.sets(part), self.results[mixture]
        return np.array([[runs[seed][part][name]["loss"] for name in sets] for seed in self.seeds])

    def differences(self, mixture: str, part: str) -> Floats:
        """Return `losses` minus those of the baseline at the same seeds.

        Args:
            mixture: its name.
            part: as in `sets`.

        Returns:
            (seeds, sets), in nats per token; below 0 where the mixture is better.
        """
        result: Floats = self.losses(mixture, part) - self.losses(self.baseline, part)
        return result

    def summaries(self, part: str) -> dict[str, Callable[..., Floats]]:
        """Return how the losses on several sets are summarised, by what that is called.

        Args:
            part: as in `sets`.

        Returns:
            The mean and, over three or more sets that no run draws from, the median too: their mean
            follows the set that is farthest from the training data.
        """
        found: dict[str, Callable[..., Floats]] = {f"mean over {PARTS[part]}": np.mean}
        if part == "validation" and len(self.sets(part)) > 2:
            found[f"median over {PARTS[part]}"] = np.median
        return found

    def summary(self, mixture: str, part: str, over: Callable[..., Floats] = np.mean) -> Difference:
        """Return the difference in the mean or median loss over the sets.

        Args:
            mixture: its name.
            part: as in `sets`.
            over: one of `summaries`.

        Returns:
            The difference over seeds.
        """
        return Difference.of(over(self.differences(mixture, part), axis=1))

    def by_set(self, mixture: str, part: str) -> dict[str, Difference]:
        """Return the difference in the loss on each set.

        Args:
            mixture: its name.
            part: as in `sets`.

        Returns:
            The differences over seeds, by set.
        """
        of_sets = self.differences(mixture, part).T
        return {n: Difference.of(of) for n, of in zip(self.sets(part), of_sets, strict=True)}

    def text(self) -> str:
        """Return the tables and the verdicts."""
        seeds = len(self.seeds)
        intervals = "with 95 % intervals over seeds" if seeds > 1 else "of one seed each"
        return "\n".join(
            [
                self._table(),
                f"{self.baseline}: mean loss in nats per token over {seeds} "
                f"seed{'s' if seeds > 1 else ''}. The other columns are differences from it at the "
                f"same seed, {intervals}; below 0 is better.",
                *([_BY_CHANCE] if seeds > 1 else []),
                *(line for mixture in self.others for line in self._verdicts(mixture)),
            ]
        )

    def _table(self) -> str:
        rows, rule = [], -1
        for part in PARTS:
            sets = self.sets(part)
            if not sets:
                continue
            compared = {mixture: self.by_set(mixture, part) for mixture in self.others}
            own = self.losses(self.baseline, part).mean(axis=0)
            for name, loss in zip(sets, own, strict=True):
                differences = [str(compared[mixture][name]) for mixture in self.others]
                rows.append([name, decimal(loss, 3), *differences])
            for words, over in self.summaries(part).items():
                cells = [str(self.summary(mixture, part, over)) for mixture in self.others]
                rows.append([words, decimal(float(over(own)), 3), *cells])
            rule = len(rows) if part == "domains" and self.sets("validation") else rule
        return table(["set", *self.results], rows, rule_before=rule)

    def _verdicts(self, mixture: str) -> list[str]:
        against, parts = f"{mixture} against {self.baseline}", [p for p in PARTS if self.sets(p)]
        lines = [
            f"{against}, {words}: {self._verdict(self.summary(mixture, part, over))}."
            for part in parts
            for words, over in self.summaries(part).items()
        ]
        if len(self.seeds) > 1:
            by_set = {n: f for part in parts for n, f in self.by_set(mixture, part).items()}
            lines.append(f"{against}, set by set: {_set_by_set(by_set)}.")
        if self.worst is not None:
            lines.append(f"{mixture}: {self._guard_rail(self.by_set(mixture, 'domains'))}.")
        return lines

    def _verdict(self, found: Difference) -> str:
        if found.seeds == 1:
            return f"{found} nats, from one seed, which cannot tell; compare at least three seeds"
        if found.told_apart:
            small = max(-found.low, found.high) < self.difference
            return (
                f"the loss is {'lower' if found.mean < 0 else 'higher'}, {found} nats"
                f"{f', but by less than the {self.difference:g} that matter' if small else ''}"
            )
        if max(-found.low, found.high) < self.difference:
            return f"there is no difference of {self.difference:g} nats or more, {found}"
        # If the mean stays what it is, an interval as narrow as this one shows a difference, or
        # that there is none that matters.
        size = max(abs(found.mean), self.difference - abs(found.mean))
        return f"they cannot be told apart, {found} nats; {_advice(found.further_seeds(size))}"

    def _guard_rail(self, by_domain: Mapping[str, Difference]) -> str:
        assert self.worst is not None
        limit = f"no domain may lose more than {self.worst:g} nats"
        broken = [n for n, found in by_domain.items() if found.below(self.worst) is False]
        if broken:
            return f"{limit}: broken by {_list(broken, by_domain)}"
        unknown = [n for n, found in by_domain.items() if found.below(self.worst) is None]
        if not unknown:
            return f"{limit}: kept on every domain"
        return (
            f"{limit}: it cannot be told whether {_list(unknown, by_domain)} "
            f"keep{'s' if len(unknown) == 1 else ''} to it; {self._until_told(unknown, by_domain)}"
        )

    def _until_told(self, unknown: Sequence[str], by_domain: Mapping[str, Difference]) -> str:
        assert self.worst is not None
        needed = []
        for name in unknown:
            found = by_domain[name]
            if found.seeds < 2:
                return "one seed cannot tell"
            needed.append(found.further_seeds(abs(self.worst - found.mean)))
        return _advice(None if None in needed else max(n for n in needed if n is not None))


def _set_by_set(found: Mapping[str, Difference]) -> str:
    groups = {
        "lower on": [n for n, f in found.items() if f.told_apart and f.mean < 0],
        "higher on": [n for n, f in found.items() if f.told_apart and f.mean > 0],
        "not told apart on": [n for n, f in found.items() if not f.told_apart],
    }
    return "; ".join(
        f"{words} {', '.join(names[:_NAMED])}"
        f"{f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''}"
        for words, names in groups.items()
        if names
    )


def _advice(more: int | None) -> str:
    if more is None:
        return "even a thousand seeds might not tell"
    return f"about {more} more seed{'s' if more > 1 else ''} might tell"


def _list(names: Sequence[str], by_domain: Mapping[str, Difference]) -> str:
    return ", ".join(f"{name} ({by_domain[name]})" for name in names)
