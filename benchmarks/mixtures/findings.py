"""What the records of a size say beyond each method's losses: parts of docs/results.md."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from benchmarks.mixtures.elasticity import Elasticities, left_out
from benchmarks.mixtures.forecasts import Forecast
from benchmarks.mixtures.measured import Array, Measured, between_seeds, interval, moved
from benchmarks.mixtures.tables import table, verdict
from nemo_chameleon.method.weights import effective_domains

_FEW = 5  # methods that are too few to say what shares are worth


def added(measured: Measured) -> str:
    """Domains that come later: by embedding alone, and by every method anew."""
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
            ("`mixture add`: embed the new ones", ours),
            ("Chameleon anew, proxy and all", "chameleon"),
            ("DoReMi anew", "doremi"),
            ("DoGE anew", "doge"),
            ("RegMix anew", "regmix"),
        )
        if method in measured.methods
    ]
    head = ["new domains by", "cost (ours = 1)", "seconds"]
    head += ["loss on all domains", "loss on unseen domains"]
    return f"""### Domains that come later

A mixture of {", ".join(first)}; then {", ".join(later)} come, which its proxy was not trained on.

{table(head, rows)}

The weights with the new domains embedded lie {moved(*both).mean():.3f} from those computed anew
(total variation, mean over seeds)."""


@dataclass(frozen=True)
class Fit:
    """What shares are worth, fitted to all base models of a size but those on uniform weights.

    Attributes:
        own: to the domains.
        unseen: to unseen ones.
        errors: of the mean losses of both that a fit to all other methods' runs predicts.
        spreads: of those mean losses about uniform's, which is the error of predicting no change.
        runs: how many there are.
    """

    own: Elasticities
    unseen: Elasticities
    errors: list[float]
    spreads: list[float]
    runs: int


def fit(measured: Measured) -> Fit | None:
    """None where the base models are too few or too much alike to tell."""
    k = len(measured.size.domains)
    methods = [method for method in measured.methods if method != "uniform"]
    # What is made of the same scores is one method, whatever its settings.
    families = [
        "chameleon" if m.startswith(("chameleon", "control")) else m
        for m in methods
        for _ in measured.seeds(m)
    ]
    if len(families) < 2 * k or len(set(families)) < _FEW:
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
    """Where Chameleon loses, and why."""
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
        "share, uniform = 1": [f"{share * k:.2f}" for share in shares],
        "change of its loss": [f"{nats:+.3f}" for nats in change],
    }
    said = f"Rank correlation of the leverage scores and the changes: {_ranks(scores, change)}."
    if size.config.get("chameleon", {}).get("objective", "pretrain") == "pretrain":
        said += """ A domain of
a high score is one that the others do not make up: drawn less, it loses what they cannot give."""
    else:
        said += """ A domain of
a high score is drawn more and gains, and the others, drawn less, lose: what one more sample of a
domain is worth falls with their number, and a distinct domain has little to give the others."""
    if fitted is not None:
        own, unseen = fitted.own.values, fitted.unseen.values.mean(0)
        alone, others = np.diag(own), own.sum(0) - np.diag(own)
        best = {"the domains": fitted.own.best(), "unseen domains": fitted.unseen.best()}
        columns |= {
            "worth to itself": [f"{value:.2f}" for value in alone],
            "to the other domains": [f"{value:.2f}" for value in others],
            "to unseen ones": [f"{value:.2f}" for value in unseen],
        }
        columns |= {f"best for {what}": [f"{w:.3f}" for w in best[what]] for what in best}
        predicted = "; ".join(
            f"for {what} {fitted.own.predicted(w).mean():+.3f} in domain and "
            f"{fitted.unseen.predicted(w).mean():+.3f} unseen"
            for what, w in best.items()
        )
        said += f"""

What a domain's share is worth, in nats a factor of e, is fitted to all {fitted.runs} base models
of other than uniform weights (`elasticity.py`). A fit to all other methods' runs predicts a
method's mean loss to {fitted.errors[0]:.3f} where it is {fitted.spreads[0]:.3f} from uniform's
(domains), and to {fitted.errors[1]:.3f} where it is {fitted.spreads[1]:.3f} (unseen). Rank
correlation of the leverage score with what a domain is worth to itself {_ranks(scores, alone)}, to
the other domains {_ranks(scores, others)}, to unseen ones {_ranks(scores, unseen)}. The best
mixtures are the fit's, with all runs known; it predicts {predicted}."""
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return f"### Where Chameleon loses, and why\n\n{table(list(columns), rows)}\n\n{said}"


def _ranks(a: Array, b: Array) -> str:
    found = spearmanr(a, b)
    return f"{found.statistic:+.2f} (p = {found.pvalue:.2f})"


def forecast(measured: Measured) -> str:
    """Whether the loss curves of Chameleon's proxy tell what the base models came to."""
    records, name = measured.records("chameleon-forecast"), "chameleon-forecast"
    said = []
    for seed, record in records.items():
        others = [m for m in measured.methods if m != name and seed in measured.seeds(m)]
        if len(others) < _FEW:
            continue
        known = Forecast(np.array(record["curves"]), np.array(record["passed"]))
        weights = np.concatenate([measured.weights(method, [seed]) for method in others])
        predicted = known.losses(weights, measured.uniform[seed]["tokens"]).mean(1)
        came = [measured.losses(m, "loss")[measured.seeds(m).index(seed)].mean() for m in others]
        said.append(f"seed {seed}: {_ranks(predicted, np.array(came))} over {len(others)}")
    if not said:
        return ""
    return f"""### A forecast from loss curves

chameleon-forecast fits the proxy's loss curves and minimises the mean loss that they promise
(`forecasts.py`). Rank correlation of the mean loss forecast with that of the other methods' base
models: {"; ".join(said)}."""


def studies(measured: Measured, fitted: Fit | None) -> str:
    """What moves the weights, and with them the losses."""
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
        "moves the weights by",
        "between seeds",
        *(["predicted loss on the domains", "on unseen ones"] if fitted else []),
        "cost",
    ]
    told = (
        " Losses are those that what shares are worth predicts, less uniform's." if fitted else ""
    )
    return f"""### What moves the weights

{table(head, rows)}

Distances between mixtures are total variations: the share of samples that would be drawn from
another domain. "Between seeds" is the mean distance of the mixtures of two seeds, each with its own
proxy, its own order of data and its own windows.{told}"""
