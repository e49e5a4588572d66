"""docs/results.md, written from the result files.

    python -m benchmarks.mixtures.report [SIZE]

Every difference is to uniform weights at the same seed; its interval is Student's t over seeds.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mixtures.results import FOLDER, Record, Results
from benchmarks.mixtures.size import SIZES, size_called
from nemo_chameleon.console import program
from nemo_chameleon.files import write_atomically
from nemo_chameleon.uncertainty import students_t
from nemo_chameleon.weights import effective_domains

PAGE = Path("docs/results.md")


class Measured:
    """A size's records, as differences to uniform weights."""

    def __init__(self, name: str) -> None:
        self.size = size_called(name)
        self.results = Results(name)
        self.uniform = self.results.of("base", "uniform")
        methods = dict.fromkeys([*self.size.methods, *self.results.methods()])
        self.methods = [method for method in methods if self.seeds(method)]

    def seeds(self, method: str) -> list[int]:
        """Seeds of which both the method's base model and the uniform one are there."""
        return [seed for seed in self.results.of("base", method) if seed in self.uniform]

    def losses(self, method: str, part: str) -> np.ndarray:
        """(seeds, domains) nats a token; `part` is loss (the domains') or unseen."""
        records = self.results.of("base", method)
        names = self.size.domains if part == "loss" else self.size.unseen
        return np.array([[records[s][part][name] for name in names] for s in self.seeds(method)])

    def differences(self, method: str, part: str) -> np.ndarray:
        """(seeds, domains) to uniform weights at the same seed; negative is better."""
        names = self.size.domains if part == "loss" else self.size.unseen
        same = [[self.uniform[s][part][name] for name in names] for s in self.seeds(method)]
        return self.losses(method, part) - np.array(same)

    def weights(self, method: str) -> np.ndarray:
        """(seeds, domains)."""
        records = self.results.of("weights", method)
        return np.array(
            [[records[s]["weights"][n] for n in self.size.domains] for s in self.seeds(method)]
        )

    def cost(self, method: str, what: str) -> float:
        """Mean operations or seconds of a method's weights."""
        records = self.results.of("weights", method)
        records = self.results.of("weights", records[min(records)].get("same cost as", method))
        return float(np.mean([record[what] for record in records.values()]))


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean over seeds and half-width of its 95 % interval; infinite for one seed."""
    if len(values) < 2:
        return float(values.mean()), math.inf
    spread = values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(students_t(len(values) - 1) * spread)


def verdict(values: np.ndarray) -> str:
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


def section(name: str) -> str:
    """A size's part of the page."""
    measured = Measured(name)
    size, methods = measured.size, measured.methods
    run, proxy = size.config["train"], size.config["proxy"]["train"]
    length, proxy_length = (
        part["model"]["seq_length"] for part in (size.config, size.config["proxy"])
    )
    first = measured.uniform[min(measured.uniform)]
    created: Record = first["created"]
    seeds = sorted({seed for method in methods for seed in measured.seeds(method)})
    ours = measured.cost("chameleon", "operations")

    rows = []
    for method in methods:
        weights = measured.weights(method)
        operations = measured.cost(method, "operations")
        loss = measured.losses(method, "loss")
        own, unseen = (measured.differences(method, part) for part in ("loss", "unseen"))
        rows.append(
            [
                method,
                str(len(weights)),
                f"{np.mean([effective_domains(w) for w in weights]):.1f}",
                f"{np.exp(loss).mean():.1f}",
                "" if method == "uniform" else verdict(own.mean(1)),
                "" if method == "uniform" else f"{(own.mean(0) < 0).sum()} of {own.shape[1]}",
                "" if method == "uniform" else verdict(unseen.mean(1)),
                "" if method == "uniform" else f"{(unseen.mean(0) < 0).sum()} of {unseen.shape[1]}",
                f"{operations / ours:.1f}",
                f"{measured.cost(method, 'seconds'):,.0f}",
            ]
        )
    summary = table(
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
    by_weight = table(
        ["domain", *methods],
        [
            [domain, *(_spread(measured.weights(method)[:, i]) for method in methods)]
            for i, domain in enumerate(size.domains)
        ],
    )
    others = [method for method in methods if method != "uniform"]
    by_domain = table(
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
    checks = [
        f"- {method}, seed {seed}: " + "; ".join(f"{k} {_figure(v)}" for k, v in check.items())
        for method in methods
        for seed, record in measured.results.of("weights", method).items()
        if (check := record.get("check"))
    ]
    unseen = measured.results.facts["data"]["unseen"]
    shared = ", ".join(
        f"{domain} {facts['still shared with the domains']:.1%}" for domain, facts in unseen.items()
    )
    return f"""## SIZE={name}

`make bench-quality SIZE={name}`: {len(size.domains)} domains, {len(size.unseen)} unseen ones, base
models of {first["parameters"] / 1e6:.1f}M parameters on
{run["train_iters"] * run["global_batch_size"] * length / 1e6:.2f}M tokens, proxies on
{proxy["train_iters"] * proxy["global_batch_size"] * proxy_length / 1e6:.2f}M; seeds
{", ".join(map(str, seeds))}. {first["machine"]}, {_versions(created)}.

{summary}

Losses are nats a token less uniform's at the same seed, averaged over domains: mean and 95 %
interval over seeds; bold where the difference exceeds it. Cost counts floating point operations of
all proxies; seconds are of runs side by side on a shared machine.

Weights, mean over seeds (and standard deviation between them):

{by_weight}

Loss by domain, less uniform's, mean over seeds:

{by_domain}

Checks that the methods work, as their papers have them:

{chr(10).join(checks)}

13-word runs that unseen domains share with what is trained on (documents that share more than half
are dropped): {shared}.
"""


def page() -> str:
    """All sizes that have results of more than a miniature."""
    sizes = [name for name in SIZES if (FOLDER / f"{name}.json").is_file() and name != "smoke"]
    return "\n".join(
        [
            "# Does it pay?",
            "",
            "Written by `python -m benchmarks.mixtures.report` from benchmarks/mixtures/results.",
            "",
            *map(section, sizes),
        ]
    )


@program
def main() -> None:
    """Write the page, or print one size's part of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("size", choices=SIZES, nargs="?", help="print this one's results alone")
    arguments = parser.parse_args()
    if arguments.size:
        print(section(arguments.size))
        return
    write_atomically(PAGE, page())
    print(PAGE)


def _spread(values: np.ndarray) -> str:
    if len(values) < 2:
        return f"{values.mean():.3f}"
    return f"{values.mean():.3f} ({values.std(ddof=1):.3f})"


def _figure(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _versions(created: Record) -> str:
    return ", ".join(f"{key} {value}" for key, value in created.items())


if __name__ == "__main__":
    main()
