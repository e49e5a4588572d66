"""Analyse a size's records beyond the losses of each method: parts of docs/results.md."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from benchmarks.mixtures.elasticity import Elasticities, left_out
from benchmarks.mixtures.forecasts import Forecast
from benchmarks.mixtures.measured import Array, Measured, between_seeds, interval, moved
from benchmarks.mixtures.tables import table, verdict
from nemo_chameleon.method.weights import effective_domains

_FEWEST = 5  # methods needed for a fit of elasticities or a rank correlation


def added(measured: Measured) -> str:
    """Compare ways to add domains to a mixture: embedding them alone, and starting from scratch."""
    added = measured.records("chameleon-added")
    if "chameleon-added" not in measured.methods or "chameleon" not in measured.methods:
        return ""
    first = added[min(added)]["first"]
    later = [name for name in measured.size.domains if name not in first]
    ours, anew = "chameleon-added", measured.records("chameleon")
    seeds = [seed for seed in added if seed in anew]
    both = (measured.weights(method, seeds) for method in (ours, "chameleon"))
    rows = [
        [
            what,
            f"{measured.cost(method, 'operations') / measured.cost(ours, 'operations'):.1f}",
            f"{measured.cost(method, 'seconds'):,.0f}",
            *(verdict(measured.differences(method, part).mean(1)) for part in ("loss", "unseen")),
        ]
        for what, method in (
            ("`mixture add`, embedding the new ones", ours),
            ("Chameleon from scratch, with its proxy", "chameleon"),
            ("DoReMi from scratch", "doremi"),
            ("DoGE from scratch", "doge"),
            ("RegMix from scratch", "regmix"),
        )
        if method in measured.methods
    ]
    head = ["weights by", "cost (`mixture add` = 1)", "seconds"]
    head += ["loss on all domains", "loss on unseen domains"]
    return f"""### Domains that are added later

The first mixture has the domains {", ".join(first)}.
Its proxy was not trained on {", ".join(later)}, which are added later.

{table(head, rows)}

The total variation between the weights of `mixture add` and those computed from scratch is
{moved(*both).mean():.3f}, averaged over seeds."""


@dataclass(frozen=True)
class Fit:
    """Elasticities, fitted to all base models of a size except those on uniform weights.

    Attributes:
        own: elasticities of the losses on the domains.
        unseen: elasticities of the losses on unseen domains.
        errors: root mean square errors of a method's mean losses on both, where a fit to the runs
            of all other methods predicts them.
        spreads: the same errors of predicting uniform's losses.
        runs: number of base models.
    """

    own: Elasticities
    unseen: Elasticities
    errors: list[float]
    spreads: list[float]
    runs: int


def fit(measured: Measured) -> Fit | None:
    """Fit elasticities; return None where the base models are too few or too much alike."""
    k = len(measured.size.domains)
    methods = [method for method in measured.methods if method != "uniform"]
    # Weights that come from the same scores count as one method, whatever the settings.
    families = [
        "chameleon" if m.startswith(("chameleon", "control")) else m
        for m in methods
        for _ in measured.seeds(m)
    ]
    if len(families) < 2 * k or len(set(families)) < _FEWEST:
        return None
    weights = np.concatenate([measured.weights(m, measured.seeds(m)) for m in methods])
    both = [[measured.differences(m, part) for m in methods] for part in ("loss", "unseen")]
    differences = np.hstack([np.concatenate(part) for part in both])
    wrong = left_out(weights, differences, families) - differences
    errors, spreads = (
        [float(np.sqrt(np.mean(part.mean(1) ** 2))) for part in (of[:, :k], of[:, k:])]
        for of in (wrong, differences)
    )
    if any(error >= spread for error, spread in zip(errors, spreads, strict=True)):
        return None
    fitted = Elasticities.fit(weights, differences).values
    return Fit(Elasticities(fitted[:k]), Elasticities(fitted[k:]), errors, spreads, len(families))


def where(measured: Measured, fitted: Fit | None) -> str:
    """Show where Chameleon loses, and why."""
    size, k = measured.size, len(measured.size.domains)
    of_seeds = measured.records("chameleon")
    records = [of_seeds[seed] for seed in measured.seeds("chameleon")]
    scores, shares = (
        np.mean([[record[what][n] for n in size.domains] for record in records], axis=0)
        for what in ("scores", "weights")
    )
    change = measured.differences("chameleon", "loss").mean(0)
    columns = {
        "domain": size.domains,
        "leverage score": [f"{score:.3f}" for score in scores],
        "weight (uniform = 1)": [f"{share * k:.2f}" for share in shares],
        "change in loss": [f"{nats:+.3f}" for nats in change],
    }
    said = f"""The rank correlation of the leverage scores with the changes in loss is
{_ranks(scores, change)}. """
    if size.config.get("chameleon", {}).get("objective", "pretrain") == "pretrain":
        said += """The other domains cannot replace a domain with a high score:
it is drawn less often, and they do not make up for what it loses."""
    else:
        said += """A domain with a high score is drawn more often and gains.
The others are drawn less often and lose. The value of one more sample of a domain falls with the
number of its samples, and a distinct domain has little to give to the others."""
    if fitted is not None:
        own, unseen = fitted.own.values, fitted.unseen.values.mean(0)
        alone, others = np.diag(own), own.sum(0) - np.diag(own)
        best = {"the domains": fitted.own.best(), "unseen domains": fitted.unseen.best()}
        columns |= {
            "elasticity of its own loss": [f"{value:.2f}" for value in alone],
            "of the other domains' losses": [f"{value:.2f}" for value in others],
            "of unseen domains' losses": [f"{value:.2f}" for value in unseen],
        }
        columns |= {f"best weight for {what}": [f"{w:.3f}" for w in best[what]] for what in best}
        predicted = "; ".join(
            f"{fitted.own.predicted(w).mean():+.3f} on the domains and "
            f"{fitted.unseen.predicted(w).mean():+.3f} on unseen domains with the best weights for "
            f"{what}"
            for what, w in best.items()
        )
        said += f"""

Elasticities are the nats that a loss falls when a domain's weight grows by a factor of e. They are
fitted to all {fitted.runs} base models that were not trained on uniform weights (`elasticity.py`).
When a method's mean loss is predicted by a fit to the runs of all other methods, the root mean
square error is {fitted.errors[0]:.3f} on the domains, where predicting uniform's loss gives
{fitted.spreads[0]:.3f}, and {fitted.errors[1]:.3f} on unseen domains, where it gives
{fitted.spreads[1]:.3f}. The rank correlation of the leverage score with the elasticity of the
domain's own loss is {_ranks(scores, alone)}, with that of the other domains' losses
{_ranks(scores, others)}, and with that of unseen domains' losses {_ranks(scores, unseen)}. The best
weights are those of the fit to all runs. It predicts these changes in loss: {predicted}."""
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return f"### Where Chameleon loses, and why\n\n{table(list(columns), rows)}\n\n{said}"


def _ranks(a: Array, b: Array) -> str:
    found = spearmanr(a, b)
    return f"{found.statistic:+.2f} (p = {found.pvalue:.2f})"


def forecast(measured: Measured) -> str:
    """Compare losses predicted from the proxy's loss curves with those of the base models."""
    records, name = measured.records("chameleon-forecast"), "chameleon-forecast"
    said = []
    for seed, record in records.items():
        others = [m for m in measured.methods if m != name and seed in measured.seeds(m)]
        if len(others) < _FEWEST:
            continue
        known = Forecast(np.array(record["curves"]), np.array(record["passed"]))
        weights = np.concatenate([measured.weights(method, [seed]) for method in others])
        predicted = known.losses(weights, measured.uniform[seed]["tokens"]).mean(1)
        came = [measured.losses(m, "loss")[measured.seeds(m).index(seed)].mean() for m in others]
        said.append(f"seed {seed}: {_ranks(predicted, np.array(came))} over {len(others)}")
    if not said:
        return ""
    return f"""### A forecast from loss curves

chameleon-forecast fits the proxy's loss curves and minimises the mean loss that the fit predicts
(`forecasts.py`). Rank correlation of predicted and measured mean losses, over the base models of
all other methods: {"; ".join(said)}."""


def studies(measured: Measured, fitted: Fit | None) -> str:
    """Show which settings change the weights, and the losses with them."""
    ours, rows = measured.records("chameleon"), []
    cost = measured.cost("chameleon", "operations")
    for method in measured.studied:
        seeds = [seed for seed in measured.records(method) if seed in ours]
        these, default = (measured.weights(name, seeds) for name in (method, "chameleon"))
        mean, half = interval(moved(these, default))
        within = f" ± {half:.3f}" if math.isfinite(half) else ""
        worths = (fitted.own, fitted.unseen) if fitted else ()
        predicted = [f"{worth.predicted(these).mean():+.3f}" for worth in worths]
        rows.append(
            [
                method.removeprefix("chameleon:") if method != "chameleon" else "the defaults",
                str(len(seeds)),
                f"{np.mean([effective_domains(w) for w in these]):.1f}",
                f"{mean:.3f}{within}" if method != "chameleon" else "",
                f"{between_seeds(these):.3f}" if len(these) > 1 else "",
                *predicted,
                f"{measured.cost(method, 'operations') / cost:.2f}",
            ]
        )
    if len(rows) < 2:
        return ""
    head = [
        "setting",
        "seeds",
        "effective domains",
        "distance from the defaults",
        "distance between seeds",
        *(["predicted loss on the domains", "on unseen domains"] if fitted else []),
        "cost",
    ]
    told = " Losses are predicted by the elasticities; uniform's are subtracted." if fitted else ""
    return f"""### Which settings change the weights

{table(head, rows)}

The distance between two mixtures is their total variation: the share of samples that would be drawn
from another domain. The distance between seeds is the mean over all pairs of seeds; each seed has
its own proxy, its own order of data and its own windows. The cost is relative to that of the
defaults.{told}"""
