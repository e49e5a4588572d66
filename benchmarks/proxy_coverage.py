"""Count how often the intervals of a mixture hold the weights that another proxy gives.

    python -m benchmarks.proxy_coverage CORPORA [--proxies 64x400:6 64x100:3]

It trains proxies of SIZE=cpu of benchmarks/mixtures: WIDTHxITERATIONS:COUNT, with the seeds 101,
102, ... Each embeds the same windows after three quarters of its training and at its end. What is
finished is kept in runs/bench, so that the same command continues. It prints tables and, as its
last line, one JSON object.
"""

import argparse
import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mixtures import data
from benchmarks.mixtures.measured import moved
from benchmarks.mixtures.size import Size, size_called
from nemo_chameleon.distributed.processes import process_group
from nemo_chameleon.embedding.megatron import MegatronProxy
from nemo_chameleon.embedding.sampler import Sampler
from nemo_chameleon.method.embeddings import Embeddings, ShardedEmbedding
from nemo_chameleon.method.intervals import students_t
from nemo_chameleon.method.weights import choose_preset
from nemo_chameleon.mixture import compute
from nemo_chameleon.mixture.embeddings_file import load_embeddings, save_embeddings
from nemo_chameleon.models.pretrained import PretrainedCheckpoint
from nemo_chameleon.provider.preflight import Prepared, prepare_mixture
from nemo_chameleon.provider.runs import proxy_run
from nemo_chameleon.train import trainer
from nemo_chameleon.train.run import TrainingRun
from nemo_chameleon.utils.tables import table

FIRST_SEED = 101
PRESET = choose_preset()
# Twice as many as the product draws, to show what half of them would give.
SAMPLES = 256
DEFAULT = "64x400:6 64x60:3 64x100:3 64x200:3 64x800:3 32x400:8"


@dataclass(frozen=True)
class Kind:
    """Proxies of one width and length.

    Attributes:
        width: hidden size.
        iterations: length of the training.
        count: number of proxies.
    """

    width: int
    iterations: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Kind":
        """Read WIDTHxITERATIONS:COUNT."""
        shape, count = text.split(":")
        width, iterations = shape.split("x")
        return cls(int(width), int(iterations), int(count))

    @property
    def name(self) -> str:
        """Its name in tables."""
        return f"{self.width}x{self.iterations}"


@dataclass(frozen=True)
class Embedded:
    """The domains as one proxy embedded them.

    Attributes:
        early: few windows, after three quarters of the training.
        late: the same windows, at the end of the training.
        final: all windows, at the end of the training.
    """

    early: Embeddings
    late: Embeddings
    final: Embeddings


def embedded(size: Size, kind: Kind, seed: int, samples: int) -> Embedded:
    """Train a proxy and embed the domains, unless that is done."""
    own = [
        f"proxy.model.hidden_size={kind.width}",
        f"proxy.train.train_iters={kind.iterations}",
        f"proxy.optimizer.lr_warmup_iters={kind.iterations // 8}",
        f"checkpoint.save_interval={kind.iterations // 4}",
        "chameleon.seed=1234",
        f"chameleon.samples={samples}",
    ]
    config = size.configured(seed, f"coverage-{kind.name}", "chameleon", (), own)
    prepared = prepare_mixture(config)
    run = proxy_run(config, prepared.domains)
    end = kind.iterations
    return Embedded(
        *(
            load_embeddings(file)[0]
            if (file := run.directory / f"embeddings-{done}-{drawn}.safetensors").is_file()
            else _embed(prepared, run, done, drawn, file)
            for done, drawn in ((end * 3 // 4, SAMPLES), (end, SAMPLES), (end, samples))
        )
    )


def _embed(prepared: Prepared, run: TrainingRun, done: int, drawn: int, file: Path) -> Embeddings:
    """Embed the domains with a proxy's checkpoint, after its training."""
    trainer.train(run)
    path = run.directory / f"iter_{done:07d}"
    proxy = MegatronProxy(PretrainedCheckpoint(path, prepared.config.proxy, run.vocab_size))
    assert prepared.plan is not None
    with proxy.opened() as extractor:
        sampler = Sampler(
            extractor,
            prepared.plan.windows,
            micro_batch_size=None,
            model=proxy.identity,
            progress=False,
        )
        save_embeddings(file, sampler.draw(prepared.domains, drawn))
    return load_embeddings(file)[0]


def weights_of(proxies: Sequence[Embeddings]) -> np.ndarray:
    """Return the weights that proxies give together."""
    names = list(proxies[0])
    matrices = [np.stack([proxy[name].embedding for name in names]) for proxy in proxies]
    return compute.weigh(matrices, "pretrain", PRESET)


def halved(embeddings: Embeddings) -> Embeddings:
    """Return the embeddings of every second window."""
    return {
        name: ShardedEmbedding(whole.means[::2], whole.tokens[::2])
        for name, whole in embeddings.items()
    }


def jackknife(several: Sequence[Embeddings], windows: np.ndarray) -> np.ndarray:
    """Return how far the intervals of version 0.2 reach in logarithms, which leave out proxies."""
    count = len(several)
    without = np.log([weights_of([*several[:p], *several[p + 1 :]]) for p in range(count)])
    variance = (count - 1) / count * np.sum((without - without.mean(axis=0)) ** 2, axis=0)
    return np.hypot(windows, students_t(count - 1) * np.sqrt(variance))


def coverage(proxies: Sequence[Embeddings], count: int) -> dict[str, Any]:
    """Count how many weights of single proxies lie in the intervals of `count` other proxies.

    Args:
        proxies: the domains as each proxy embedded them.
        count: number of proxies that intervals are computed from.

    Returns:
        For each kind of interval the share of weights inside, over all sets of proxies; the least
        share of a domain; and the mean half-width.
    """
    names, inside, half = list(proxies[0]), {}, {}
    alone = [np.log(weights_of([proxy])) for proxy in proxies]
    for chosen in itertools.combinations(range(len(proxies)), count):
        several = [proxies[i] for i in chosen]
        errors = compute.errors_of(several, names, "pretrain", PRESET)
        assert errors is not None
        windows = errors.of_windows()
        of_windows = np.log(windows.intervals()[:, 1] / windows.weights)
        reach = {"windows alone": of_windows}
        if count > 1:
            reach["version 0.2"] = jackknife(several, of_windows)
            reach["proxies"] = np.log(errors.intervals()[:, 1] / errors.weights)
        for kind, far in reach.items():
            half.setdefault(kind, []).append(errors.weights * np.sinh(far))
            for other in set(range(len(proxies))) - set(chosen):
                inside.setdefault(kind, []).append(
                    np.abs(alone[other] - np.log(errors.weights)) < far
                )
    return {
        kind: {
            "inside": float(np.mean(hits)),
            "least": float(np.mean(hits, axis=0).min()),
            "half-width": float(np.median(half[kind])),
        }
        for kind, hits in inside.items()
    }


def measured(kind: Kind, proxies: Sequence[Embedded]) -> dict[str, Any]:
    """Return the figures of proxies of one width and length."""
    final = [proxy.final for proxy in proxies]
    pairs = itertools.combinations([weights_of([x]) for x in final], 2)
    drifts = [moved(weights_of([x.early]), weights_of([x.late])) for x in proxies]
    half = [moved(*(weights_of([halved(y)]) for y in (x.early, x.late))) for x in proxies]
    return {
        "proxies": len(proxies),
        "weights": dict(zip(final[0], weights_of(final).tolist(), strict=True)),
        "between seeds": float(np.mean([moved(*pair) for pair in pairs])),
        "drift": float(np.mean(drifts)),
        "drifts": drifts,
        "drifts by half of the windows": half,
        "coverage": {
            count: coverage(final, count) for count in (1, 2, 3, 4) if len(final) > max(count, 3)
        },
    }


def averages(one: Sequence[Embedded], other: Sequence[Embedded]) -> dict[int, float]:
    """Return how far the mean of P proxies is from all of another kind, by P.

    Args:
        one: proxies whose means are taken.
        other: proxies that give the mixture to compare with. Where they are the same ones, those of
            the mean are left out.

    Returns:
        Total variations, averaged over all sets of P proxies.
    """
    result = {}
    for count in range(1, 5):
        distances = []
        for chosen in itertools.combinations(one, count):
            rest = [proxy.final for proxy in other if all(proxy is not c for c in chosen)]
            if len(rest) > 1:
                distances.append(moved(weights_of([c.final for c in chosen]), weights_of(rest)))
        if distances:
            result[count] = float(np.mean(distances))
    return result


def show(figures: dict[str, Any]) -> None:
    """Print the figures as tables."""
    rows = [
        [
            kind,
            count,
            what,
            f"{share['inside']:.1%}",
            f"{share['least']:.1%}",
            f"{share['half-width']:.4f}",
        ]
        for kind, of_kind in figures["kinds"].items()
        for count, by_what in of_kind["coverage"].items()
        for what, share in by_what.items()
    ]
    header = ["proxies", "P", "intervals", "weights inside", "least of a domain", "half-width"]
    print(table(header, [[str(cell) for cell in row] for row in rows]))
    rows = [
        [kind, *(f"{of_kind[key]:.4f}" for key in ("drift", "between seeds"))]
        for kind, of_kind in figures["kinds"].items()
    ]
    print(table(["proxies", "drift", "between seeds"], rows))


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", type=Path)
    parser.add_argument("--proxies", nargs="+", metavar="KIND", default=DEFAULT.split())
    parser.add_argument("--samples", type=int, default=1024)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    size = size_called("cpu")
    data.prepare(size, arguments.corpora)
    figures: dict[str, Any] = {"samples": arguments.samples, "kinds": {}}
    by_kind: dict[str, list[Embedded]] = {}
    with process_group():
        for kind in map(Kind.parse, arguments.proxies):
            seeds = range(FIRST_SEED, FIRST_SEED + kind.count)
            by_kind[kind.name] = [embedded(size, kind, s, arguments.samples) for s in seeds]
            figures["kinds"][kind.name] = measured(kind, by_kind[kind.name])
            print(kind.name, json.dumps(figures["kinds"][kind.name]), flush=True)
    first = next(iter(by_kind))
    figures["averages"] = {
        kind: averages(proxies, by_kind[first]) for kind, proxies in by_kind.items()
    }
    show(figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
