"""docs/results.md and its pictures, written from the result files.

    python -m benchmarks.mixtures.report [SIZE ...]

Every difference is to uniform weights at the same seed; its interval is Student's t over seeds.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.mixtures import pictures
from benchmarks.mixtures.elasticity import Elasticities, left_out
from benchmarks.mixtures.measured import Array, Measured, between_seeds, interval, moved, versions
from benchmarks.mixtures.results import FOLDER, Record
from benchmarks.mixtures.size import SIZES
from nemo_chameleon.console import program
from nemo_chameleon.files import write_atomically
from nemo_chameleon.weights import effective_domains

PAGE = Path("docs/results.md")
_FEW = 12  # base models that are too few to say what shares are worth


def verdict(values: Array) -> str:
    """A difference with its interval, and in words where it exceeds it."""
    mean, half = interval(values)
    if not math.isfinite(half):
        return f"{mean:+.3f} (one seed)"
    word = "" if abs(mean) <= half else " **better**" if mean < 0 else " **worse**"
    return f"{mean:+.3f} ± {half:.3f}{word}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def section(measured: Measured) -> str:
    """A size's part of the page."""
    first = measured.uniform[min(measured.uniform)]
    parts = [
        f"## SIZE={measured.size.name}",
        f"{_setup(measured, first)} {first['machine']}, {versions(first['created'])}.",
        _summary(measured),
        f"![what each method wins and loses]({_picture(measured).name})",
        """Losses are nats a token less uniform's at the same seed, averaged over domains: mean and
95 % interval over seeds; bold where the difference exceeds it. Cost counts floating point
operations of all proxies, embedding included; seconds are of runs side by side on a shared machine.
Effective domains are exp(entropy of the weights).""",
        _worth(measured),
        _studies(measured),
        "Weights, mean over seeds (and standard deviation between them):",
        _by_weight(measured),
        "Loss by domain, less uniform's, mean over seeds:",
        _by_domain(measured),
        _checks(measured),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _setup(measured: Measured, first: Record) -> str:
    size, config = measured.size, measured.size.config
    seeds = f"seeds {', '.join(map(str, measured.all_seeds))}."
    made = f"`make bench-quality SIZE={(size.start or size.name)}`"
    if size.start is not None:
        return (
            f"{made}: the model of SIZE={size.start} on uniform weights, of the same seed, "
            f"finetuned on {first['tokens'] / 1e6:.2f}M tokens of {len(size.domains)} domains "
            f"that it never "
            f"saw; {len(size.unseen)} other ones only to evaluate on; {seeds} Domains are embedded "
            "by that model itself."
        )
    proxy = config["proxy"]
    proxy_length = proxy["model"].get("seq_length", config["model"]["seq_length"])
    seen = proxy["train"]["train_iters"] * proxy["train"]["global_batch_size"] * proxy_length
    return (
        f"{made}: {len(size.domains)} domains, {len(size.unseen)} unseen ones, base models of "
        f"{first['parameters'] / 1e6:.1f}M parameters on {first['tokens'] / 1e6:.2f}M tokens, "
        f"proxies on {seen / 1e6:.2f}M; {seeds}"
    )


def _summary(measured: Measured) -> str:
    ours, rows = measured.cost("chameleon", "operations"), []
    for method in measured.methods:
        loss = measured.losses(method, "loss")
        compared = []
        for part in ("loss", "unseen"):
            differences = measured.differences(method, part)
            count = f"{(differences.mean(0) < 0).sum()} of {differences.shape[1]}"
            compared += [verdict(differences.mean(1)), count]
        rows.append(
            [
                method,
                str(len(loss)),
                f"{np.mean([effective_domains(w) for w in measured.weights(method)]):.1f}",
                f"{np.exp(loss).mean():.1f}",
                *(compared if method != "uniform" else [""] * 4),
                f"{measured.cost(method, 'operations') / ours:.2f}",
                f"{measured.cost(method, 'seconds'):,.0f}",
            ]
        )
    return table(
        [
            "weights",
            "seeds",
            "effective domains",
            "macro perplexity",
            "loss on the domains",
            "better in",
            "loss on unseen domains",
            "better in",
            "cost of weights (ours = 1)",
            "seconds",
        ],
        rows,
    )


def _worth(measured: Measured) -> str:
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


def _studies(measured: Measured) -> str:
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


def _by_weight(measured: Measured) -> str:
    return table(
        ["domain", *measured.methods],
        [
            [domain, *(_spread(measured.weights(method)[:, i]) for method in measured.methods)]
            for i, domain in enumerate(measured.size.domains)
        ],
    )


def _by_domain(measured: Measured) -> str:
    size, others = measured.size, [m for m in measured.methods if m != "uniform"]
    return table(
        ["domain", "uniform, nats", *others],
        [
            [
                name + ("" if part == "loss" else " (unseen)"),
                f"{measured.losses('uniform', part)[:, i].mean():.3f}",
                *(f"{measured.differences(m, part)[:, i].mean():+.3f}" for m in others),
            ]
            for part, names in (("loss", size.domains), ("unseen", size.unseen))
            for i, name in enumerate(names)
        ],
    )


def _checks(measured: Measured) -> str:
    checks = [
        f"- {method}, seed {seed}: " + "; ".join(f"{k} {_figure(v)}" for k, v in check.items())
        for method in measured.methods
        for seed, record in measured.records(method).items()
        if (check := record.get("check"))
    ]
    shared = ", ".join(
        f"{domain} {facts['still shared with the domains']:.1%}"
        for domain, facts in measured.data["unseen"].items()
    )
    lines = []
    if checks:
        lines += ["Checks that the methods work, as their papers have them:", "\n".join(checks)]
    lines.append(
        "13-word runs that unseen domains share with what is trained on (documents that share "
        f"more\nthan half are dropped): {shared}."
    )
    return "\n\n".join(lines)


def _picture(measured: Measured) -> Path:
    return PAGE.with_name(f"results-{measured.size.name}.svg")


def all_measured() -> list[Measured]:
    """Sizes that have results of more than a miniature."""
    names = [name for name in sorted(SIZES) if (FOLDER / f"{name}.json").is_file()]
    return [Measured(name) for name in names if not name.startswith("smoke")]


def page() -> str:
    """All sizes' parts."""
    return "\n".join(
        [
            "# Does it pay?",
            "",
            "Written by `python -m benchmarks.mixtures.report` from benchmarks/mixtures/results.",
            "",
            *map(section, all_measured()),
        ]
    )


@program
def main() -> None:
    """Write the page, or print some sizes' parts of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sizes", nargs="*", help="print these results alone")
    arguments = parser.parse_args()
    for name in arguments.sizes:
        print(section(Measured(name)))
    if not arguments.sizes:
        for measured in all_measured():
            pictures.write(measured, _picture(measured))
        write_atomically(PAGE, page())
        print(PAGE)


def _spread(values: Array) -> str:
    if len(values) < 2:
        return f"{values.mean():.3f}"
    return f"{values.mean():.3f} ({values.std(ddof=1):.3f})"


def _figure(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
