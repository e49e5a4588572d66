"""docs/results.md and its pictures, written from the result files.

    python -m benchmarks.mixtures.report [SIZE ...]

Every difference is to uniform weights at the same seed; its interval is Student's t over seeds.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.mixtures import pictures
from benchmarks.mixtures.findings import added, fit, forecast, studies, where
from benchmarks.mixtures.measured import Measured, versions
from benchmarks.mixtures.results import FOLDER, Record
from benchmarks.mixtures.size import SIZES
from benchmarks.mixtures.tables import figure, spread, table, verdict
from nemo_chameleon.method.weights import effective_domains
from nemo_chameleon.utils.console import program
from nemo_chameleon.utils.files import write_atomically

PAGE = Path("docs/results.md")


def section(measured: Measured) -> str:
    """A size's part of the page."""
    first, fitted = measured.uniform[min(measured.uniform)], fit(measured)
    parts = [
        f"## SIZE={measured.size.name}",
        f"{_setup(measured, first)} {first['machine']}, {versions(first['created'])}.",
        _summary(measured),
        f"![what each method wins and loses]({_picture(measured).name})",
        """Losses are nats a token less uniform's at the same seed, averaged over domains: mean and
95 % interval over seeds; bold where three seeds or more exceed it, of
some twenty comparisons. Macro perplexity is over all seeds of a method, its change at the same
seeds. Cost counts floating point
operations of all proxies, embedding included; seconds are of runs side by side on a shared machine.
Effective domains are exp(entropy of the weights).""",
        _chosen(measured),
        added(measured),
        where(measured, fitted),
        forecast(measured),
        studies(measured, fitted),
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
            f"finetuned on {first['tokens'] / 1e6:.2f}M tokens of "
            f"{len(size.domains)} other domains; {len(size.unseen)} more only to evaluate on; "
            f"{seeds} That model itself embeds them."
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
        loss, compared = measured.losses(method, "loss"), []
        perplexity = np.exp(loss).mean(1)
        uniforms = np.exp(loss - measured.differences(method, "loss")).mean(1)
        change = f" ({np.mean(perplexity / uniforms) - 1:+.1%})" if method != "uniform" else ""
        for part in ("loss", "unseen"):
            differences = measured.differences(method, part)
            count = f"{(differences.mean(0) < 0).sum()} of {differences.shape[1]}"
            compared += [verdict(differences.mean(1)), count]
        rows.append(
            [
                method,
                str(len(loss)),
                f"{np.mean([effective_domains(w) for w in measured.weights(method)]):.1f}",
                f"{perplexity.mean():.1f}{change}",
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


def _chosen(measured: Measured) -> str:
    seeds, chosen_on = measured.seeds("chameleon"), measured.size.chosen_on
    others = [i for i, seed in enumerate(seeds) if seed not in chosen_on]
    if not others or len(others) == len(seeds):
        return ""
    chosen = ", ".join(map(str, chosen_on))
    domains, unseen = (
        verdict(measured.differences("chameleon", part).mean(1)[others])
        for part in ("loss", "unseen")
    )
    return f"""The exponent of the default was chosen on seed {chosen}. On the
other seeds alone chameleon has {domains} on the domains and {unseen} on unseen ones."""


def _by_weight(measured: Measured) -> str:
    return table(
        ["domain", *measured.methods],
        [
            [domain, *(spread(measured.weights(method)[:, i]) for method in measured.methods)]
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
        f"- {method}, seed {seed}: " + "; ".join(f"{k} {figure(v)}" for k, v in check.items())
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
    """Sizes that have results of more than a miniature, and by now of Chameleon."""
    names = [name for name in sorted(SIZES) if (FOLDER / f"{name}.json").is_file()]
    measured = [Measured(name) for name in names if not name.startswith("smoke")]
    return [one for one in measured if "chameleon" in one.methods]


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


if __name__ == "__main__":
    main()
