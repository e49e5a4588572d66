"""The claims of claims.yaml, which was committed before the runs, and what became of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.mixtures.markdown import table
from benchmarks.mixtures.measured import Measured
from benchmarks.mixtures.size import size_called
from nemo_chameleon.comparison.paired import Difference

FILE = Path(__file__).with_name("claims.yaml")
VERDICTS = {True: "**held**", False: "**not held**", None: "undecided"}
PILOT = 6
"""Seeds of SIZE=cpu that a pilot had used before the claims were written, for PILOTED methods."""
PILOTED = {
    "chameleon": "the default",
    "chameleon:proxy.hf=smollm2,samples=256": "SmolLM2's weights",
}
_WHERE = {"domains": "the mixed domains", "unseen": "unseen domains"}


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
    rows = []
    for one in verdicts:
        on_one = " on one set" if one.held and len(one.claim.sizes) == 1 else ""
        verdict = VERDICTS[one.held] + on_one
        rows.append([one.claim.says, f"{one.claim.below:+.2f}", one.seen, verdict])
    return table(["claim", "bound", "difference in nats per token", "verdict"], rows)


def beside(measured: Mapping[str, Measured], listed: Sequence[Claim]) -> list[str]:
    """Return paragraphs on how the claims would read with other seeds and with another summary.

    Args:
        measured: the records of the sizes, by name.
        listed: the claims.
    """
    fresh, mean = [], []
    for claim in listed:
        for name in claim.sizes:
            count = seeds_of(claim, name)
            if (
                name not in measured
                or len(measured[name].seeds(claim.method, claim.against)) < count
            ):
                continue
            by = measured[name]
            ask = (claim.method, claim.part, claim.against)
            if claim.method in PILOTED and claim.against == "uniform" and name == "cpu":
                rest = by.difference(*ask, count, PILOT)
                fresh.append(f"{PILOTED[claim.method]} on {_WHERE[claim.part]} {rest}")
            if claim.part == "unseen":
                other = Difference.of(by.differences(*ask)[:count].mean(1))
                if other.below(claim.below) != by.difference(*ask, count).below(claim.below):
                    mean.append(f"{claim.method} against {claim.against} on {name} {other}")
    paragraphs = []
    if fresh:
        paragraphs += [
            f"On SIZE=cpu with the seeds alone that the pilot had not used: {'; '.join(fresh)}.",
            "",
        ]
    if mean:
        paragraphs += [
            "With the mean over the unseen domains in place of the median, these claims would get "
            f"another verdict: {'; '.join(mean)}.",
            "",
        ]
    return paragraphs
