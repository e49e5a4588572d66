"""Write docs/results.md and its pictures from the result files.

    python -m benchmarks.mixtures.report [SIZE ...]

Every difference compares a method with uniform weights at the same seed. Its interval follows
Student's t distribution over seeds.
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
    """Return the section of one size."""
    first, fitted = measured.uniform[min(measured.uniform)], fit(measured)
    parts = [
        f"## SIZE={measured.size.name}",
        f"{_setup(measured, first)} Machine and versions: {first['machine']}, "
        f"{versions(first['created'])}.",
        _former_defaults(measured),
        _summary(measured),
        f"![changes in loss by method]({_picture(measured).name})",
        """Losses are nats per token, minus uniform's at the same seed, averaged over domains. The
table gives their mean over seeds and its 95 % interval. A difference is bold where there are three
seeds or more and the interval does not contain zero; there are some twenty comparisons, and no
correction for their number. Macro perplexity is averaged over all seeds of a method, and its change
is taken at the same seeds. The cost is the number of floating point operations of all proxies,
embedding included. The seconds were measured on a shared machine with several runs side by side.
The effective number of domains is exp(entropy of the weights).""",
        _chosen(measured),
        added(measured),
        where(measured, fitted),
        forecast(measured),
        studies(measured, fitted),
        "Weights, averaged over seeds (the standard deviation over seeds is in parentheses):",
        _by_weight(measured),
        "Loss by domain, minus uniform's, averaged over seeds:",
        _by_domain(measured),
        _checks(measured),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _former_defaults(measured: Measured) -> str:
    records = measured.records("chameleon").values()
    settings = [record["settings"] for record in records if "settings" in record]
    if all("normalize_states" in known for known in settings):
        return ""
    return """Chameleon's weights come from raw token states and windows within documents
(`chameleon.normalize_states=false`, `chameleon.cross_documents=false`), which were the defaults of
version 0.1.0. docs/mixture.md says what has changed since, and why."""


def _setup(measured: Measured, first: Record) -> str:
    size, config = measured.size, measured.size.config
    seeds = f"The seeds are {', '.join(map(str, measured.all_seeds))}."
    made = f"`make bench-quality SIZE={(size.start or size.name)}`"
    unseen = f"{len(size.unseen)} unseen domain{'s' if len(size.unseen) > 1 else ''}"
    if size.start is not None:
        return (
            f"{made} finetunes the model that SIZE={size.start} trained on uniform weights with "
            f"the same seed. It is finetuned on {first['tokens'] / 1e6:.2f}M tokens of "
            f"{len(size.domains)} other domains, which it embeds itself, and is also evaluated on "
            f"{unseen}. {seeds}"
        )
    proxy = config["proxy"]
    proxy_length = proxy["model"].get("seq_length", config["model"]["seq_length"])
    seen = proxy["train"]["train_iters"] * proxy["train"]["global_batch_size"] * proxy_length
    return (
        f"{made} mixes {len(size.domains)} domains and also evaluates on {unseen}. Base models "
        f"have {first['parameters'] / 1e6:.1f}M parameters and train on "
        f"{first['tokens'] / 1e6:.2f}M tokens; proxies train on {seen / 1e6:.2f}M tokens. {seeds}"
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
            "method",
            "seeds",
            "effective domains",
            "macro perplexity",
            "loss on the domains",
            "better on",
            "loss on unseen domains",
            "better on",
            "cost of the weights (chameleon = 1)",
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
    return f"""The default exponent was chosen on seed {chosen}. On the other seeds alone, the
difference of chameleon is {domains} on the domains and {unseen} on unseen domains."""


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
        ["domain", "uniform (nats per token)", *others],
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
        f"- {method}, seed {seed}: " + "; ".join(f"{k}: {figure(v)}" for k, v in check.items())
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
        lines += ["Checks of the other methods, taken from their papers:", "\n".join(checks)]
    lines.append(
        "Share of the 13-word sequences of unseen domains that also occur in training text "
        f"(a document\nis dropped if more than half of its sequences do): {shared}."
    )
    return "\n\n".join(lines)


def _picture(measured: Measured) -> Path:
    return PAGE.with_name(f"results-{measured.size.name}.svg")


def all_measured() -> list[Measured]:
    """Return the sizes whose results belong on the page.

    Miniatures do not, nor does a size that has no base model on Chameleon's weights yet.
    """
    names = [name for name in sorted(SIZES) if (FOLDER / f"{name}.json").is_file()]
    measured = [Measured(name) for name in names if not name.startswith("smoke")]
    return [one for one in measured if "chameleon" in one.methods]


def page() -> str:
    """Return the page: the sections of all sizes."""
    return "\n".join(
        [
            "# Does it pay?",
            "",
            "`python -m benchmarks.mixtures.report` writes this page from the files in "
            "benchmarks/mixtures/results.",
            "",
            *map(section, all_measured()),
        ]
    )


@program
def main() -> None:
    """Write the page, or print the sections of some sizes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "sizes", nargs="*", help="print the sections of these sizes instead of writing the page"
    )
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
