"""The claims of claims.yaml, which was committed before the runs, and what became of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.mixtures.markdown import table
from benchmarks.mixtures.measured import Measured
from benchmarks.mixtures.size import size_called

FILE = Path(__file__).with_name("claims.yaml")
VERDICTS = {True: "**held**", False: "**not held**", None: "undecided"}


@dataclass(frozen=True)
class Claim:
    """One claim: that a difference in loss is below a bound.

    Attributes:
        says: the claim in words.
        sizes: the sizes that it is about; it holds if it holds on all of them.
        method: whose losses.
        against: the method whose losses at the same seeds are subtracted.
        part: "domains" or "unseen".
        below: the bound, in nats per token.
    """

    says: str
    sizes: list[str]
    method: str
    against: str
    part: str
    below: float


def claims() -> list[Claim]:
    """Read the claims."""
    return [Claim(**claim) for claim in yaml.safe_load(FILE.read_text())["claims"]]


def seeds_of(claim: Claim, size: str) -> int:
    """Return how many seeds a claim is decided by: the first ones, as many as the size says."""
    arms = size_called(size).methods
    return min(arms[method].seeds for method in (claim.method, claim.against))


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Attributes:
        claim: the claim.
        held: whether it holds; None if that is not decided.
        seen: the difference on each of its sizes, in words.
    """

    claim: Claim
    held: bool | None
    seen: str


def judged(measured: Mapping[str, Measured], listed: Sequence[Claim]) -> list[Verdict]:
    """Judge claims by the seeds that were declared for them.

    Args:
        measured: the records of the sizes, by name.
        listed: the claims.
    """
    verdicts = []
    for claim in listed:
        found: list[bool | None] = []
        seen = []
        for name in claim.sizes:
            size, count = measured.get(name), seeds_of(claim, name)
            done = [] if size is None else size.seeds(claim.method, claim.against)
            if size is None or len(done) < 2:
                found.append(None)
                seen.append(f"{name}: not measured yet")
                continue
            difference = size.difference(claim.method, claim.part, claim.against, count)
            complete = done[:count] == list(range(1, count + 1))
            found.append(difference.below(claim.below) if complete else None)
            seen.append(f"{name}: {difference} ({difference.seeds} of {count} seeds)")
        held = None if None in found else all(found)
        verdicts.append(Verdict(claim, False if False in found else held, "; ".join(seen)))
    return verdicts


def as_table(verdicts: Sequence[Verdict]) -> str:
    """Return a table with what became of claims."""
    rows = [
        [one.claim.says, f"{one.claim.below:+.2f}", one.seen, VERDICTS[one.held]]
        for one in verdicts
    ]
    return table(["claim", "bound", "difference in nats per token", "verdict"], rows)
