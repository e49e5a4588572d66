"""Write docs/results.md and its pictures from the result files.

    python -m benchmarks.mixtures.report [SIZE ...]

Every difference compares base models of the same seed. claims.yaml has the estimator.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.mixtures import claims
from benchmarks.mixtures.findings import added, calm, unlike, where
from benchmarks.mixtures.markdown import figure, spread, table
from benchmarks.mixtures.measured import Measured, between_seeds, versions
from benchmarks.mixtures.results import FOLDER, Record
from benchmarks.mixtures.size import SIZES
from nemo_chameleon.comparison import picture
from nemo_chameleon.method.weights import effective_domains
from nemo_chameleon.utils.console import program
from nemo_chameleon.utils.files import write_atomically

PAGE = Path("docs/results.md")
_PREFACE = """benchmarks/mixtures/claims.yaml has the estimator and the claims. It was committed
before these runs, but a pilot had looked at the default and at SmolLM2's weights with the seeds 1
to 6 and with these settings. `permuted` was defined more closely after the first runs of the
default and before any run of its own. A claim that was tested on one set of domains is a finding
about that set alone. Nothing else on this page is a result; the rest describes and explains. "The
default" is the mean of the weights of its proxies, six for SIZE=cpu. A run trains one proxy unless
`proxy.count` says otherwise; the total variation between single proxies stands below."""


def section(measured: Measured) -> str:
    """Return the section of one size."""
    first = measured.uniform[min(measured.uniform)]
    parts = [
        f"## SIZE={measured.size.name}",
        f"{_setup(measured, first)} Machine and versions: {first['machine']}, "
        f"{versions(first['created'])}. {_dates(measured)}".rstrip(),
        _former_defaults(measured),
        _summary(measured),
        f"![changes in loss by method]({_picture(measured).name})",
        """Losses are nats per token, minus uniform's at the same seed: the mean over the mixed
domains and the median over the unseen ones, averaged over seeds, with 95 % intervals by Student's t
distribution. "Lower on" and "higher on" count the domains whose own interval does not contain 0.
The standard deviation is that of the difference on the mixed domains over seeds. The cost is the
number of floating point operations of all proxies whose weights were averaged, embedding included.
The effective number of domains is exp(entropy of the weights). The peers are this benchmark's own
small implementations.""",
        where(measured),
        added(measured),
        calm(measured),
        "Weights that the base models trained on:",
        _by_weight(measured),
        _from_proxies(measured),
        "Loss by domain, minus uniform's at the same seed:",
        _by_domain(measured),
        _checks(measured),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _dates(measured: Measured) -> str:
    if not (times := sorted(measured.times)):
        return ""
    return f"Records were made from {times[0][:10]} to {times[-1][:10]}."


def _former_defaults(measured: Measured) -> str:
    records = measured.records("chameleon").values()
    settings = [record["settings"] for record in records if "settings" in record]
    if all("normalize_states" in known for known in settings):
        return ""
    return """These are measurements of version 0.1.0, made before claims.yaml was written. Its
defaults were raw token states and windows within documents (`chameleon.normalize_states=false`,
`chameleon.cross_documents=false`), and every base model trained on the weights of its own seed."""


def _setup(measured: Measured, first: Record) -> str:
    size, config = measured.size, measured.size.config
    unseen = f"{len(size.unseen)} unseen domain{'s' if len(size.unseen) > 1 else ''}"
    seeds = f"The seeds are {', '.join(map(str, measured.all_seeds))}."
    made = f"`make bench-quality SIZE={size.start or size.name}`"
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
        compared: list[str] = []
        for part in ("domains", "unseen"):
            of_sets = measured.by_set(method, part).values()
            apart = [one.mean for one in of_sets if one.told_apart]
            signs = [sum(mean < 0 for mean in apart), sum(mean > 0 for mean in apart)]
            counts = f"{signs[0]}, {signs[1]} of {len(of_sets)}"
            compared += [str(measured.difference(method, part)), counts]
        deviation = measured.difference(method, "domains").deviation
        cost, seconds = (measured.cost(method, what) for what in ("operations", "seconds"))
        rows.append(
            [
                method,
                str(len(measured.seeds(method))),
                f"{np.mean([effective_domains(w) for w in measured.trained_on(method)]):.1f}",
                f"{np.exp(measured.losses(method, 'domains')).mean():.1f}",
                *([*compared, f"{deviation:.3f}"] if method != "uniform" else [""] * 5),
                "" if cost is None or not ours else f"{cost / ours:.2f}",
                "" if seconds is None else f"{seconds:,.0f}",
            ]
        )
    return table(
        [
            "method",
            "seeds",
            "effective domains",
            "macro perplexity",
            "loss on the domains",
            "lower on, higher on",
            "loss on unseen domains",
            "lower on, higher on",
            "standard deviation",
            "cost of the weights (chameleon = 1)",
            "seconds",
        ],
        rows,
    )


def _by_weight(measured: Measured) -> str:
    return table(
        ["domain", *measured.methods],
        [
            [domain, *(spread(measured.trained_on(method)[:, i]) for method in measured.methods)]
            for i, domain in enumerate(measured.size.domains)
        ],
    )


def _from_proxies(measured: Measured) -> str:
    rows = [
        [method, str(len(weights)), f"{between_seeds(weights):.3f}"]
        for method in measured.methods
        if len(weights := measured.weights(method)) > 1 and between_seeds(weights) > 0
    ]
    if not rows:
        return ""
    return f"""Total variation between the weights of a method's proxies, averaged over all pairs:

{table(["method", "proxies", "total variation"], rows)}"""


def _by_domain(measured: Measured) -> str:
    others, rows = [m for m in measured.methods if m != "uniform"], []
    bits = all(measured.bits_per_byte(part) is not None for part in ("domains", "unseen"))
    for part in ("domains", "unseen"):
        own, per_byte = measured.losses("uniform", part).mean(0), measured.bits_per_byte(part)
        differences = [measured.differences(method, part).mean(0) for method in others]
        for i, name in enumerate(measured.names(part)):
            row = [name + ("" if part == "domains" else " (unseen)"), f"{own[i]:.3f}"]
            if bits and per_byte is not None:
                row.append(f"{own[i] * per_byte[i]:.3f}")
            rows.append([*row, *(f"{of_method[i]:+.3f}" for of_method in differences)])
    head = ["domain", "uniform (nats per token)"] + (["uniform (bits per byte)"] if bits else [])
    return table([*head, *others], rows)


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


_LABELS = {
    "chameleon": "Chameleon, the default",
    "chameleon:proxy.hf=smollm2,samples=256": "Chameleon, SmolLM2 embeds",
    "chameleon:exponent=0.25": "Chameleon, exponent 0.25",
    "chameleon:exponent=1,uniform=0.7": "Chameleon, 0.7 uniform",
    "chameleon-paper": "Chameleon, published formula",
    "chameleon-added": "Chameleon, mixture add",
    "permuted": "Chameleon's weights, permuted",
    "doremi": "DoReMi",
    "doge": "DoGE",
    "regmix": "RegMix",
}


def draw(measured: Measured, path: Path) -> None:
    """Draw every method's losses on the mixed domains against those on the unseen ones."""
    shown = [
        picture.Point(
            _LABELS.get(method, method),
            measured.difference(method, "domains"),
            measured.difference(method, "unseen"),
            method.startswith("chameleon"),
        )
        for method in measured.methods
        if method != "uniform"
    ]
    size = measured.size
    title = f"{len(size.domains)} domains mixed, {len(size.unseen)} unseen (SIZE={size.name})"
    picture.draw(shown, path, title)


def all_measured() -> list[Measured]:
    """Return the sizes whose results belong on the page.

    Miniatures do not, nor does a size that has no base model on Chameleon's weights yet.
    """
    names = [name for name in sorted(SIZES) if (FOLDER / f"{name}.json").is_file()]
    measured = [Measured(name) for name in names if not name.startswith("smoke")]
    return [one for one in measured if "chameleon" in one.methods]


def _not_held(verdicts: list[claims.Verdict], measured: dict[str, Measured]) -> list[str]:
    """Explain the claims that do not hold or are undecided, with the sizes that they are about."""
    failed = [v for v in verdicts if not v.held and all(n in measured for n in v.claim.sizes)]
    if not failed:
        return []
    names = dict.fromkeys(name for verdict in failed for name in verdict.claim.sizes)
    words = {False: "Not held", None: "Undecided"}
    return [
        "## Where a claim does not hold, and why",
        "",
        *(f"- **{words[verdict.held]}:** {verdict.claim.says}" for verdict in failed),
        "",
        unlike([measured[name] for name in names]),
        "",
        """The scores compare the mixed domains with each other: a domain that is like the others is
raised, and one that is unlike them is lowered. The scores know nothing of text that no domain was
drawn from. It may gain from what it has in common with the raised domains, and it may pay for what
it has in common with the lowered ones. This is how the figures read after the runs; nothing on this
page tests it. Before you trust either result, compare the mixtures on text that stands for what
your model is for (`data.validation` and recipes/compare_mixtures.py).""",
        "",
    ]


def page() -> str:
    """Return the page: the claims, and the sections of all sizes."""
    measured = all_measured()
    by_name = {one.size.name: one for one in measured}
    verdicts = claims.judged(by_name, claims.claims())
    return "\n".join(
        [
            "# Does it pay?",
            "",
            "`python -m benchmarks.mixtures.report` writes this page from the files in "
            "benchmarks/mixtures/results.",
            "",
            "## Claims",
            "",
            _PREFACE,
            "",
            claims.as_table(verdicts),
            "",
            *claims.beside(by_name, [verdict.claim for verdict in verdicts]),
            *_not_held(verdicts, by_name),
            *map(section, measured),
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
            draw(measured, _picture(measured))
        write_atomically(PAGE, page())
        print(PAGE)


if __name__ == "__main__":
    main()
