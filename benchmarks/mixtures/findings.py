"""Explain a size's records beyond the losses of each method: parts of docs/results.md."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.mixtures.markdown import table
from benchmarks.mixtures.measured import Array, Measured, moved
from nemo_chameleon.comparison.paired import Difference


def added(measured: Measured) -> str:
    """Compare ways to add domains to a mixture: embedding them alone, and starting from scratch."""
    ours, records = "chameleon-added", measured.records("chameleon-added")
    if ours not in measured.methods or "chameleon" not in measured.methods:
        return ""
    first = records[min(records)]["first"]
    later = [name for name in measured.size.domains if name not in first]
    rows = []
    for what, method in (
        ("`mixture add`, embedding the new ones", ours),
        ("Chameleon from scratch, with its proxy", "chameleon"),
        ("DoReMi from scratch", "doremi"),
        ("DoGE from scratch", "doge"),
        ("RegMix from scratch", "regmix"),
    ):
        cost, of_adding = (_of_one_proxy(measured, name) for name in (method, ours))
        if method in measured.methods and cost and of_adding:
            losses = [str(measured.difference(method, part)) for part in ("domains", "unseen")]
            rows.append([what, f"{cost / of_adding:.1f}", *losses])
    head = ["weights by", "cost of a proxy (`mixture add` = 1)", "loss on all domains"]
    distance = moved(measured.weights(ours).mean(0), measured.weights("chameleon").mean(0))
    return f"""### Domains that are added later

The first mixture has the domains {", ".join(first)}.
Its proxy was not trained on {", ".join(later)}, which are added later.

{table([*head, "loss on unseen domains"], rows)}

The total variation between the mean weights of `mixture add` and those computed from scratch is
{distance:.3f}."""


def _of_one_proxy(measured: Measured, method: str) -> float | None:
    cost = measured.cost(method, "operations")
    return None if cost is None else cost / len(measured.records(method))


def calm(measured: Measured) -> str:
    """Show how much the base models on uniform weights differ over seeds, by their settings."""
    rows = []
    several = {name: of for name, of in measured.settings.items() if len(of) > 1}
    shared = set.intersection(*(set(of) for of in several.values())) if several else set()
    for name, every in several.items():
        records = {seed: record for seed, record in every.items() if seed in shared}
        if len(records) < 2:
            continue
        of_seeds = np.array([list(record["loss"].values()) for record in records.values()]).mean(1)
        known = [
            record["gradient norm"] for record in records.values() if "gradient norm" in record
        ]
        norms = (
            [
                f"{np.mean([n['median'] for n in known]):.2f}",
                f"{max(n['largest'] for n in known):.2f}",
            ]
            if known
            else ["", ""]
        )
        rows.append(
            [
                name.removeprefix("uniform:") if name != "uniform" else "as all base models",
                ", ".join(map(str, records)),
                f"{of_seeds.mean():.3f}",
                f"{of_seeds.std(ddof=1):.3f}",
                f"{np.ptp(of_seeds):.3f}",
                *norms,
            ]
        )
    if len(rows) < 2:
        return ""
    head = ["settings", "seeds", "mean loss", "standard deviation over seeds", "range"]
    return f"""### The settings of the base models

They were chosen on uniform weights alone, by the spread over the seeds that all of them have. That
these settings end the bad seeds of version 0.1 was known from a pilot, which had also looked at the
default.

{table([*head, "gradient norm, median", "largest"], rows)}"""


def where(measured: Measured) -> str:
    """Show where Chameleon loses, and why."""
    size, records = measured.size, list(measured.records("chameleon").values())
    if not records or "chameleon" not in measured.methods:
        return ""
    scores = np.mean([[record["scores"][n] for n in size.domains] for record in records], axis=0)
    shares = measured.trained_on("chameleon").mean(0)
    differences = measured.differences("chameleon", "domains")
    change = differences.mean(0)
    rows = [
        [name, f"{score:.3f}", f"{share * len(size.domains):.2f}", f"{nats:+.3f}"]
        for name, score, share, nats in zip(size.domains, scores, shares, change, strict=True)
    ]
    inverse = size.config.get("chameleon", {}).get("objective", "pretrain") == "pretrain"
    said = f"""A domain with a high score is drawn {"less" if inverse else "more"} often. The rank
correlation of the leverage scores with the changes in loss, over {len(size.domains)} domains, is
{spearmanr(scores, change).statistic:+.2f}."""
    head = ["domain", "leverage score", "weight (uniform = 1)", "change in loss"]
    return f"### Where Chameleon loses, and why\n\n{table(head, rows)}\n\n{said}"


def unlike(sizes: Sequence[Measured]) -> str:
    """Show side by side what the default did with several sets of domains.

    Args:
        sizes: the records of two sizes or more, each with the default's base models.
    """
    rows: dict[str, list[str]] = {}
    for one in sizes:
        mixed = one.size.domains
        ratios = one.trained_on("chameleon").mean(0) * len(mixed)
        changes = one.by_set("chameleon", "unseen")
        farther = one.losses("uniform", "unseen").mean() - one.losses("uniform", "domains").mean()
        share = moved(ratios, np.ones_like(ratios)) / len(mixed)
        cells = {
            "share of the samples that moved to another domain": f"{share:.3f}",
            "raised domains (weight, uniform = 1)": _named(mixed, ratios, ratios > 1, ".2f"),
            "lowered domains": _named(mixed, ratios, ratios < 1, ".2f"),
            "unseen sets with a lower loss (change)": _changed(changes, -1),
            "unseen sets with a higher loss": _changed(changes, 1),
            "unseen sets not told apart from uniform weights": _changed(changes, 0),
            "loss on unseen sets minus that on the domains, uniform weights": f"{farther:+.3f}",
        }
        for what, cell in cells.items():
            rows.setdefault(what, []).append(cell)
    head = ["", *(f"SIZE={one.size.name}" for one in sizes)]
    return table(head, [[what, *cells] for what, cells in rows.items()])


def _named(names: Sequence[str], values: Array, chosen: NDArray[np.bool_], form: str) -> str:
    """Return the chosen names with their values."""
    listed = zip(names, values, chosen, strict=True)
    return ", ".join(f"{name} {value:{form}}" for name, value, is_in in listed if is_in) or "none"


def _changed(changes: Mapping[str, Difference], sign: int) -> str:
    """Return the sets whose change has a sign, or 0 for those whose interval contains 0."""
    named = [
        f"{name} {found}"
        for name, found in changes.items()
        if (np.sign(found.mean) if found.told_apart else 0) == sign
    ]
    return ", ".join(named) or "none"
