"""Count how often the intervals of a mixture hold the weights that another proxy gives.

    python -m benchmarks.proxy_coverage CORPORA [--proxies 64x400:6 64x100:3]

It trains proxies of SIZE=cpu of benchmarks/mixtures: WIDTHxITERATIONS:COUNT, with the seeds 101,
102, ... Each embeds the same windows after three quarters of its training and at its end. What is
finished is kept in runs/bench, so that the same command continues. It prints tables and, as its
last line, one JSON object.
"""

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

from benchmarks.mixtures import data
from benchmarks.mixtures.size import Size, size_called
from nemo_chameleon.distributed.processes import process_group
from nemo_chameleon.embedding.megatron import MegatronProxy
from nemo_chameleon.embedding.sampler import Sampler
from nemo_chameleon.method.embeddings import Embeddings
from nemo_chameleon.mixture.embeddings_file import load_embeddings, save_embeddings
from nemo_chameleon.models.pretrained import PretrainedCheckpoint
from nemo_chameleon.provider.preflight import prepare_mixture
from nemo_chameleon.provider.runs import proxy_run
from nemo_chameleon.train import trainer

FIRST_SEED = 101
EARLY_SAMPLES = 256


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


def embedded(size: Size, kind: Kind, seed: int, samples: int) -> tuple[Embeddings, Embeddings]:
    """Return the embeddings by a proxy after three quarters of its training, and at its end."""
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
    results = []
    for done, drawn in ((kind.iterations * 3 // 4, EARLY_SAMPLES), (kind.iterations, samples)):
        file = run.directory / f"embeddings-{done}-{drawn}.safetensors"
        if not file.is_file():
            trainer.train(run)
            path = run.directory / f"iter_{done:07d}"
            proxy = MegatronProxy(PretrainedCheckpoint(path, config.proxy, run.vocab_size))
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
        results.append(load_embeddings(file)[0])
    return results[0], results[1]


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", type=Path)
    parser.add_argument(
        "--proxies",
        nargs="+",
        type=Kind.parse,
        default=["64x400:6", "64x60:3", "64x100:3", "64x200:3", "64x800:3", "32x400:8"],
    )
    parser.add_argument("--samples", type=int, default=1024)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    size = size_called("cpu")
    data.prepare(size, arguments.corpora)
    kinds = [kind if isinstance(kind, Kind) else Kind.parse(kind) for kind in arguments.proxies]
    with process_group():
        for kind in kinds:
            for seed in range(FIRST_SEED, FIRST_SEED + kind.count):
                embedded(size, kind, seed, arguments.samples)
                print(kind.name, seed, flush=True)


if __name__ == "__main__":
    main()
