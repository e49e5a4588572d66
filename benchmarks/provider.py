"""Compare datasets built through the provider with those of Megatron's builder alone.

    python benchmarks/provider.py [--quick] [--samples N]

The script builds the blend of 22 domains both ways in turns, each time without a cache, and then
reads samples from both in turns. It prints a table and, as its last line, one JSON object. Times
are the best of all turns, and ratios are ours divided by Megatron's.
"""

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from nemo_chameleon import Mixture, provider
from nemo_chameleon.config import load_config
from nemo_chameleon.data.blend import training_dataset
from nemo_chameleon.data.vocabulary import Vocabulary
from nemo_chameleon.distributed.processes import process_group

DOMAINS, VOCABULARY, LENGTH, SEED = 22, 32_000, 512, 1


def write_domain(prefix: Path, documents: int, generator: np.random.Generator) -> None:
    """Write random documents of 100 to 2,000 tokens."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for size in generator.integers(100, 2000, documents):
        tokens = torch.from_numpy(generator.integers(0, VOCABULARY, size))
        builder.add_document(tokens, [len(tokens)])
    builder.finalize(f"{prefix}.idx")


def ours(config: Any, cache: Path, samples: int) -> Any:
    """Do everything that a run does between its configuration and its first batch."""
    config.data.cache = str(cache)
    prepared = provider.prepare(config)
    mixture = provider.resolve_mixture(config, prepared)
    return training_dataset(
        config.data, prepared.domains, mixture, samples=samples, seq_length=LENGTH, seed=SEED
    )


def megatrons(prefixes: list[str], weights: list[float], cache: Path, samples: int) -> Any:
    """Call the builder as a training script without this package does."""
    settings = GPTDatasetConfig(
        random_seed=SEED,
        sequence_length=LENGTH,
        blend=(prefixes, weights),
        split="95,5,0",
        path_to_cache=str(cache),
        tokenizer=Vocabulary(VOCABULARY, -2, {}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    settings.split_matrix = [settings.split_matrix[0], None, None]
    return BlendedMegatronDatasetBuilder(
        GPTDataset, [samples, 0, 0], lambda: True, settings
    ).build()[0]


def seconds(work: Callable[[], Any]) -> float:
    """Return the seconds that one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def read(dataset: Any, indices: np.ndarray) -> None:
    """Read samples one after the other."""
    for index in indices:
        dataset[int(index)]


def main() -> None:
    """Measure, and print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="use small sizes; takes seconds")
    parser.add_argument(
        "--samples", type=int, help="samples of the blend (default: 1,000,000; 20,000 if --quick)"
    )
    arguments = parser.parse_args()
    quick = arguments.quick
    documents, samples, turns = (200, 20_000, 3) if quick else (2000, 1_000_000, 5)
    samples = arguments.samples or samples
    logging.disable(logging.WARNING)
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name, process_group():
        folder = Path(name)
        names = [f"domain{i:02}" for i in range(DOMAINS)]
        weights = generator.dirichlet(np.full(DOMAINS, 2.0))
        for domain in names:
            write_domain(folder / domain, documents, generator)
        prefixes = {domain: str(folder / domain) for domain in names}
        Mixture.static(dict(zip(names, weights.tolist(), strict=True))).save(folder / "m.json")
        overrides = [f"data.domains.{domain}.path={path}" for domain, path in prefixes.items()]
        overrides += [f"output={folder / 'out'}", f"data.mixture={folder / 'm.json'}"]
        overrides += [f"data.vocab_size={VOCABULARY}", f"model.seq_length={LENGTH}"]
        overrides += ["train.train_iters=1000", "train.global_batch_size=8", "train.eval_iters=0"]
        config = load_config(None, overrides)
        built: dict[str, Any] = {}
        build: dict[str, list[float]] = {"ours": [], "megatron": []}
        for turn in range(turns):
            cache = folder / f"cache{turn}"

            def by_us(cache: Path = cache) -> None:
                built["ours"] = ours(config, cache / "ours", samples)

            def by_megatron(cache: Path = cache) -> None:
                blend = list(prefixes.values()), weights.tolist()
                built["megatron"] = megatrons(*blend, cache / "megatron", samples)

            build["ours"].append(seconds(by_us))
            build["megatron"].append(seconds(by_megatron))
        reading: dict[str, list[float]] = {"ours": [], "megatron": []}
        for turn in range(4 * turns):
            indices = generator.integers(0, samples, 2000)
            for way in ("ours", "megatron") if turn % 2 else ("megatron", "ours"):
                reading[way].append(seconds(partial(read, built[way], indices)))
        figures = {
            "benchmark": "provider",
            "quick": quick,
            "domains": DOMAINS,
            "samples": samples,
            "build_seconds": min(build["ours"]),
            "megatron_build_seconds": min(build["megatron"]),
            "build_ratio": min(build["ours"]) / min(build["megatron"]),
            "build_more_seconds": min(build["ours"]) - min(build["megatron"]),
            "read_ratio": min(reading["ours"]) / min(reading["megatron"]),
            "same_class": type(built["ours"]) is type(built["megatron"]),
        }
    for key, value in figures.items():
        print(f"{key:26} {value:,.4g}" if isinstance(value, float) else f"{key:26} {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
