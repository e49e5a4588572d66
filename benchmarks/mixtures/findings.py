"""What the records of a size say beyond each method's losses: parts of docs/results.md."""

import math

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


def worth(measured: Measured) -> str:
    """Where Chameleon loses, and why."""
    size = measured.size
    runs = [(m, s) for m in measured.methods if m != "uniform" for s in measured.seeds(m)]
    if len(runs) < _FEW:
        return ""
    weights = np.concatenate([measured.weights_of_runs(m) for m in measured.methods[1:]])
    differences = np.concatenate(
        [
            np.hstack([measured.differences(m, part) for part in ("loss", "unseen")])
            for m in measured.methods[1:]
        ]
    )
    k = len(size.domains)
    fitted = Elasticities.fit(weights, differences)
    own, unseen = Elasticities(fitted.values[:k]), Elasticities(fitted.values[k:])
    predicted = left_out(weights, differences, [method for method, _ in runs])
    errors = [
        np.sqrt(np.mean((predicted - differences)[:, part].mean(1) ** 2))
        for part in (slice(k), slice(k, None))
    ]
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

What a domain's share is worth, in nats a factor of e, is fitted to all {len(runs)} base models of
other than uniform weights (`elasticity.py`); without a method's own runs it predicts that method's
mean loss to {errors[0]:.3f} (domains) and {errors[1]:.3f} (unseen). A loss follows its own domain's
share: rank correlation of Chameleon's shares and the changes {follows:+.2f}. The leverage score's
rank correlation with what a domain is worth to itself is {alone:+.2f}, to the other domains
{to_others:+.2f}, to unseen domains {to_unseen:+.2f}.

The mixtures that the fit would have chosen, had it known all these runs, promise: {promised}."""


def studies(measured: Measured) -> str:
    """How far other settings move the weights."""
    ours, rows = measured.records("chameleon"), []
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
        rows.append(
            [
                method.removeprefix("chameleon:") if method != "chameleon" else "the defaults",
                str(len(seeds)),
                f"{np.mean([effective_domains(w) for w in these]):.1f}",
                f"{mean:.3f}{within}" if method != "chameleon" else "",
                f"{between_seeds(these):.3f}",
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
        "cost",
    ]
    return f"""### What moves the weights

{table(head, rows)}

Distances between mixtures are total variations: the share of samples that would be drawn from
another domain. "Between seeds" is the mean distance of the mixtures of two seeds, each with its own
proxy, its own order of data and its own windows."""
