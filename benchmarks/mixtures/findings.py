"""What the records of a size say beyond each method's losses: parts of docs/results.md."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from benchmarks.mixtures.elasticity import Elasticities, left_out
from benchmarks.mixtures.measured import Measured, between_seeds, interval, moved
from benchmarks.mixtures.tables import table, verdict
from nemo_chameleon.weights import effective_domains

_FEW = 12  # base models that are too few to say what shares are worth


def added(measured: Measured) -> str:
    """Claim two: domains that come later."""
    added = measured.records("chameleon-added")
    if not added:
        return ""
    first = added[min(added)]["first"]
    later = [name for name in measured.size.domains if name not in first]
    ours, anew = "chameleon-added", measured.records("chameleon")
    seeds = [seed for seed in added if seed in anew]
    both = (
        np.array([[of[s]["weights"][n] for n in measured.size.domains] for s in seeds])
        for of in (added, anew)
    )
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
        errors: of the mean losses of both that a fit without a method's runs predicts for them.
        runs: how many there are.
    """

    own: Elasticities
    unseen: Elasticities
    errors: tuple[float, float]
    runs: int


def fit(measured: Measured) -> Fit | None:
    """None where there are too few base models."""
    methods = [method for method in measured.methods if method != "uniform"]
    # Chameleon with other settings is no other method: its mixtures are too much alike.
    families = [m.partition(":")[0] for m in methods for _ in measured.seeds(m)]
    if len(families) < _FEW:
        return None
    weights = np.concatenate([measured.weights_of_runs(m) for m in methods])
    both = [[measured.differences(m, part) for m in methods] for part in ("loss", "unseen")]
    differences = np.hstack([np.concatenate(part) for part in both])
    wrong = left_out(weights, differences, families) - differences
    fitted, k = Elasticities.fit(weights, differences).values, len(measured.size.domains)
    of_domains, of_unseen = (
        float(np.sqrt(np.mean(part.mean(1) ** 2))) for part in (wrong[:, :k], wrong[:, k:])
    )
    own, unseen = Elasticities(fitted[:k]), Elasticities(fitted[k:])
    return Fit(own, unseen, (of_domains, of_unseen), len(families))


def worth(measured: Measured) -> str:
    """Where Chameleon loses, and why."""
    fitted = fit(measured)
    if fitted is None:
        return ""
    size, k = measured.size, len(measured.size.domains)
    own, unseen = fitted.own, fitted.unseen
    ours = measured.weights("chameleon").mean(0)
    change = measured.differences("chameleon", "loss").mean(0)
    scores = np.mean(
        [
            [record["scores"][name] for name in size.domains]
            for record in measured.records("chameleon").values()
        ],
        axis=0,
    )
    best = {"the domains": own.best(), "unseen domains": unseen.best()}
    rows = [
        [
            name,
            f"{scores[i]:.3f}",
            f"{ours[i] * k:.2f}",
            f"{change[i]:+.3f}",
            f"{own.values[i, i]:.2f}",
            f"{own.values[:, i].sum() - own.values[i, i]:.2f}",
            f"{unseen.values[:, i].mean():.2f}",
            *(f"{weights[i]:.3f}" for weights in best.values()),
        ]
        for i, name in enumerate(size.domains)
    ]
    others = own.values.sum(0) - np.diag(own.values)
    follows = spearmanr(np.log(ours), change).statistic
    to_unseen = spearmanr(scores, unseen.values.mean(0)).statistic
    to_others = spearmanr(scores, others).statistic
    alone = spearmanr(scores, np.diag(own.values)).statistic
    found = table(
        [
            "domain",
            "leverage score",
            "share, uniform = 1",
            "change of its loss",
            "worth to itself",
            "to the other domains",
            "to unseen ones",
            *(f"best for {what}" for what in best),
        ],
        rows,
    )
    promised = "; ".join(
        f"{what}: {own.predicted(w).mean():+.3f} in domain, {unseen.predicted(w).mean():+.3f} "
        "unseen"
        for what, w in best.items()
    )
    return f"""### Where Chameleon loses, and why

{found}

What a domain's share is worth, in nats a factor of e, is fitted to all {fitted.runs} base models
of other than uniform weights (`elasticity.py`). Without a method's own runs the fit predicts that
method's mean loss to {fitted.errors[0]:.3f} (domains) and {fitted.errors[1]:.3f} (unseen), root
mean square. A loss follows its own domain's share: rank correlation of Chameleon's shares and the
changes {follows:+.2f}. The leverage score's rank correlation with what a domain is worth to itself is
{alone:+.2f}, to the other domains {to_others:+.2f}, to unseen domains {to_unseen:+.2f}.

The mixtures that the fit would have chosen, had it known all these runs, promise: {promised}."""


def studies(measured: Measured) -> str:
    """What moves the weights, and with them the losses."""
    fitted, ours, rows = fit(measured), measured.records("chameleon"), []
    cost = measured.cost("chameleon", "operations")
    for method in measured.studied:
        records = measured.records(method)
        seeds = [seed for seed in records if seed in ours]
        names = measured.size.domains
        these, default = (
            np.array([[of[s]["weights"][name] for name in names] for s in seeds])
            for of in (records, ours)
        )
        mean, half = interval(moved(these, default))
        within = f" ± {half:.3f}" if math.isfinite(half) else ""
        predicted = []
        for worth in (fitted.own, fitted.unseen) if fitted else ():
            mean_loss, width = interval(worth.predicted(these).mean(1))
            spread = f" ± {width:.3f}" if math.isfinite(width) else ""
            predicted.append(f"{mean_loss:+.3f}{spread}")
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
